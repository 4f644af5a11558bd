"""Predictions of Lightning that leave files behind and go on where they stopped."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch.utils.data import DataLoader, IterableDataset


class ResumableStage(L.LightningModule):
    """A prediction over tasks that leave files behind.

    The first process looks up what is missing and tells the others, before any of them begins. Every process
    takes its share of the tasks; when all are done, the first one finishes the stage.
    """

    title: str = "pictures"

    def __init__(self) -> None:
        super().__init__()
        self.tasks: list[Any] = []

    def configure_callbacks(self) -> list[Callback]:
        """Show a progress bar of our own."""
        return [StageProgress()]

    def missing_tasks(self) -> list[Any]:
        """What is left to do; called on the first process."""
        raise NotImplementedError

    def finish(self) -> None:
        """Whatever remains when every task is done; called on the first process."""

    def num_pictures(self) -> int:
        """How many pictures this process's tasks have, for the progress bar."""
        raise NotImplementedError

    def predict_dataloader(self) -> DataLoader[int]:
        """Numbers of this process's tasks."""
        # Lightning lets no process pass before all are here, so nothing is written while files are looked up.
        tasks = self.trainer.strategy.broadcast(self.missing_tasks() if self.trainer.is_global_zero else [])
        self.tasks = tasks[self.global_rank :: self.trainer.world_size]
        return DataLoader(_Numbers(len(self.tasks)), batch_size=None)

    def on_predict_end(self) -> None:
        """Wait for the others, then finish."""
        self.trainer.strategy.barrier("stage")
        if self.trainer.is_global_zero:
            self.finish()
        self.trainer.strategy.barrier("finished")


class _Numbers(IterableDataset[int]):
    """Counts up. Iterable and without a length: a process whose share is empty takes part all the same."""

    def __init__(self, count: int) -> None:
        self.count = count

    def __iter__(self) -> Iterator[int]:
        return iter(range(self.count))


class StageProgress(Callback):
    """A progress bar over a stage's pictures, on the first process."""

    def __init__(self) -> None:
        self._bar: Progress | None = None

    def on_predict_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Show the bar, unless there is nothing to do."""
        assert isinstance(pl_module, ResumableStage)
        if trainer.is_global_zero and pl_module.num_pictures():
            columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn()
            self._bar = Progress(*columns, TimeRemainingColumn())
            share = f", of {trainer.world_size} processes" if trainer.world_size > 1 else ""
            self._bar.add_task(f"{pl_module.title}{share}", total=pl_module.num_pictures())
            self._bar.start()

    def on_predict_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, *args: Any, **kwargs: Any
    ) -> None:
        """Move on by a task's pictures."""
        if self._bar is not None:
            self._bar.advance(self._bar.task_ids[0], outputs)

    def on_predict_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Leave the full bar standing."""
        self._stop()

    def on_exception(
        self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException
    ) -> None:
        """Give the terminal back."""
        self._stop()

    def _stop(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None
