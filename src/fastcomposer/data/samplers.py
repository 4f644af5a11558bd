"""The order of training samples: seeded, resumable anywhere, the same on any number of processes."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from torch.utils.data import Dataset, DistributedSampler


class EpochSampler(DistributedSampler):  # type: ignore[type-arg]
    """Yields permutation after permutation of a dataset as (epoch, index) pairs, from any batch on.

    Batches are counted from the first epoch; each epoch has as many as it fills. One pass has the batches of
    an epoch, rounded up to full steps, and continues into the next epoch. The epoch travels with the index,
    because workers that outlive an epoch keep their copy of the dataset. The samples of all processes
    together do not depend on their number. Lightning does not replace a ``DistributedSampler``.

    Args:
        dataset: Anything with a length.
        batch_size: Samples per process and batch.
        num_replicas: Number of processes.
        rank: Number of this process.
        seed: Seed of the permutations.
        position: Called when a pass begins; returns the batches before it. ``None`` begins with the epoch
            that was set.
        step: Batches that are accumulated to one step, which a pass never splits.
    """

    def __init__(
        self,
        dataset: Dataset[Any],
        batch_size: int,
        *,
        num_replicas: int = 1,
        rank: int = 0,
        seed: int = 0,
        position: Callable[[], int] | None = None,
        step: int = 1,
    ) -> None:
        super().__init__(
            dataset, num_replicas=num_replicas, rank=rank, shuffle=True, seed=seed, drop_last=True
        )
        self.batch_size = batch_size
        self.batches = len(dataset) // num_replicas // batch_size  # type: ignore[arg-type]
        self.position = position
        self.passed = math.ceil(self.batches / step) * step
        """Batches of a pass."""

    def __len__(self) -> int:
        """Samples of a pass for this process."""
        return self.passed * self.batch_size

    def __iter__(self) -> Iterator[tuple[int, int]]:  # type: ignore[override]
        start = self.epoch * self.batches if self.position is None else self.position()
        return itertools.islice(self._stream(start), len(self))

    def _stream(self, start: int) -> Iterator[tuple[int, int]]:
        first_epoch, done = divmod(start, self.batches)
        filled = self.batches * self.batch_size * self.num_replicas
        for epoch in itertools.count(first_epoch):
            mine = self.order(epoch)[:filled][self.rank :: self.num_replicas]
            yield from ((epoch, int(index)) for index in mine[done * self.batch_size :])
            done = 0

    def order(self, epoch: int) -> np.ndarray:
        """Return the permutation of an epoch."""
        return self.epoch_rng(epoch).permutation(len(self.dataset))  # type: ignore[arg-type]

    def epoch_rng(self, epoch: int) -> np.random.Generator:
        """Return the random numbers that order an epoch."""
        return np.random.Generator(np.random.Philox(np.random.SeedSequence((self.seed, epoch))))


class ShardSampler(EpochSampler):
    """An :class:`EpochSampler` whose permutations mix a few shards at a time.

    An epoch takes the shards in random order, a window at a time, and the records of each window in random
    order. Unlike litdata's own order, this one depends on (seed, epoch) alone.

    Args:
        shards: (N,) number of the shard of each sample.
        window: Shards mixed at a time.
    """

    def __init__(self, *arguments: Any, shards: np.ndarray, window: int, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.shards, self.window = shards, window

    def order(self, epoch: int) -> np.ndarray:
        """See :class:`EpochSampler`."""
        mixed = super().order(epoch)
        turns = self.epoch_rng(epoch).permutation(int(self.shards.max()) + 1)
        return mixed[np.argsort(turns[self.shards[mixed]] // self.window, kind="stable")]
