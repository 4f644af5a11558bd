"""Predictions of Lightning that leave files behind and go on where they stopped."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback
from torch.utils.data import DataLoader, IterableDataset

from fastcomposer.progress import LongWork


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
        """Show progress in our own way."""
        return [StageProgress()]

    def missing_tasks(self) -> list[Any]:
        """What is left to do; called on the first process."""
        raise NotImplementedError

    def finish(self) -> None:
        """Whatever remains when every task is done; called on the first process."""

    def num_pictures(self) -> int:
        """How many pictures this process's tasks have, for showing progress."""
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
    """How far a stage's pictures are, on the first process."""

    def __init__(self) -> None:
        self._work: LongWork | None = None

    def on_predict_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Begin, unless there is nothing to do."""
        assert isinstance(pl_module, ResumableStage)
        if trainer.is_global_zero and pl_module.num_pictures():
            share = f", of {trainer.world_size} processes" if trainer.world_size > 1 else ""
            self._work = LongWork(f"{pl_module.title}{share}", pl_module.num_pictures()).start()

    def on_predict_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, *args: Any, **kwargs: Any
    ) -> None:
        """Move on by a task's pictures."""
        if self._work is not None:
            self._work.advance(outputs)

    def on_predict_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Say that all is done."""
        self._stop()

    def on_exception(
        self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException
    ) -> None:
        """Give the terminal back."""
        self._stop()

    def _stop(self) -> None:
        if self._work is not None:
            self._work.stop()
            self._work = None
