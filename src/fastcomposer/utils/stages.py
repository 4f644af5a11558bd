"""Predictions of Lightning that write files and resume where they stopped."""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Sequence
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback
from torch.utils.data import DataLoader, IterableDataset

from fastcomposer.utils.progress import LongWork


class ResumableStage(L.LightningModule):
    """A prediction over tasks that write files.

    Before any process begins, the first one finds the missing tasks and broadcasts them. Every process takes
    its share; when all are done, the first one finishes the stage.
    """

    title: str = "images"

    def __init__(self) -> None:
        super().__init__()
        self.tasks: list[Any] = []

    def configure_callbacks(self) -> list[Callback]:
        """Show progress by images."""
        return [StageProgress()]

    def missing_tasks(self) -> list[Any]:
        """Remaining tasks; called on the first process."""
        raise NotImplementedError

    def finish(self) -> None:
        """Whatever remains when every task is done; called on the first process."""

    def images_of(self, task: Any) -> int:
        """Number of images of a task; processes get equally many images."""
        raise NotImplementedError

    def num_images(self) -> int:
        """Number of images of this process's tasks."""
        return sum(map(self.images_of, self.tasks))

    def predict_dataloader(self) -> DataLoader[int]:
        """Numbers of this process's tasks."""
        # Lightning lets no process pass before all are here, so nothing is written while files are looked up.
        tasks = self.trainer.strategy.broadcast(self.missing_tasks() if self.trainer.is_global_zero else [])
        shares = even_shares([self.images_of(task) for task in tasks], self.trainer.world_size)
        self.tasks = [tasks[number] for number in shares[self.global_rank]]
        return DataLoader(_Numbers(len(self.tasks)), batch_size=None)

    def on_predict_end(self) -> None:
        """Wait for the others, then finish."""
        self.trainer.strategy.barrier("stage")
        if self.trainer.is_global_zero:
            self.finish()
        self.trainer.strategy.barrier("finished")


def even_shares(sizes: Sequence[int], count: int) -> list[list[int]]:
    """Divide tasks of some sizes evenly: the largest first, each to the least loaded (Graham's rule).

    Returns the indices of each share's tasks, in their order.
    """
    loads = [(0, share) for share in range(count)]
    shares: list[list[int]] = [[] for _ in range(count)]
    for number in sorted(range(len(sizes)), key=lambda number: -sizes[number]):
        load, share = heapq.heappop(loads)
        shares[share].append(number)
        heapq.heappush(loads, (load + sizes[number], share))
    return [sorted(share) for share in shares]


class _Numbers(IterableDataset[int]):
    """Counts up. Iterable and without a length: a process with an empty share takes part, too."""

    def __init__(self, count: int) -> None:
        self.count = count

    def __iter__(self) -> Iterator[int]:
        return iter(range(self.count))


class StageProgress(Callback):
    """Shows how many of a stage's images are done, on the first process."""

    _work: LongWork | None = None

    def on_predict_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Begin, unless there is nothing to do."""
        assert isinstance(pl_module, ResumableStage)
        if trainer.is_global_zero and (count := pl_module.num_images()):
            share = f", of {trainer.world_size} processes" if trainer.world_size > 1 else ""
            self._work = LongWork(f"{pl_module.title}{share}", count).start()

    def on_predict_batch_end(
        self, trainer: L.Trainer, pl_module: Any, outputs: Any, *args: Any, **kwargs: Any
    ) -> None:
        """Advance by a task's images."""
        if self._work is not None:
            self._work.advance(outputs)

    def on_predict_end(self, *args: Any) -> None:
        """Close the bar."""
        if self._work is not None:
            self._work.stop()
            self._work = None

    def on_exception(self, *args: Any) -> None:
        """Close the bar."""
        self.on_predict_end()
