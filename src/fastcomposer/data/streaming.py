"""Training data from shards: the same samples as from the data folder that they were made of."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from fastcomposer.data.datamodule import SubjectDataModule
from fastcomposer.data.dataset import SubjectDataset
from fastcomposer.data.index import RecordTable
from fastcomposer.data.samplers import EpochSampler, ShardSampler
from fastcomposer.data.shards import ShardedRecords


class StreamingDataModule(SubjectDataModule):
    """Training and validation data out of shards (:mod:`fastcomposer.data.shards`).

    A sample is the one that the data folder gives for the same record, bit for bit. With ``window=None``
    the order is the folder's too; a window makes few shards do for a while, which an object store or a slow
    disk needs. References out of other records (``other_image``) are read where those lie: over an object
    store this fetches shards out of turn.

    Args:
        root: Folder of shards, or URL.
        *arguments: See :class:`SubjectDataModule`.
        local: Folder to keep downloaded shards in.
        window: Shards mixed at a time; ``None`` mixes all.
        **settings: See :class:`SubjectDataModule`.

    Raises:
        ValueError: If a setting is out of range, or ``other_image`` is asked of data without identities.
        RecordError: If there are no shards of a split.
        DamagedShardsError: If a file of the shards is missing or damaged.
    """

    def __init__(
        self,
        root: str | Path,
        *arguments: Any,
        local: str | Path | None = None,
        window: int | None = None,
        **settings: Any,
    ) -> None:
        if window is not None and window < 1:
            raise ValueError(f"window must be at least 1 shard, not {window}")
        self.local, self.window = local, window
        self._tables: dict[str, ShardedRecords] = {}
        super().__init__(root, *arguments, **settings)

    def check_data(self, splits: tuple[str, ...], settings: dict[str, Any]) -> None:
        """Read the catalogues.

        Raises:
            RecordError: If there are no shards of a split.
            DamagedShardsError: If a file of the shards is missing or damaged.
            ValueError: If ``other_image`` is asked of data without identities.
        """
        for split in splits:
            self._tables[split] = ShardedRecords(str(self.root), split, self.local)
            if settings["reference"] == "other_image" and not self._tables[split].by_identity():
                raise ValueError(
                    "data.module.reference=other_image needs segments with an identity, of which the shards "
                    f"in {self.root} have none; use reference=same_image"
                )

    def records(self, split: str) -> RecordTable:
        """See :class:`SubjectDataModule`."""
        return self._tables[split]

    def sampler(self, dataset: SubjectDataset, **options: Any) -> EpochSampler:
        """See :class:`SubjectDataModule`."""
        if self.window is None:
            return super().sampler(dataset, **options)
        table = self._tables[self.train_split]
        shards = dict(zip(table.record_ids, table.shards(), strict=True))
        numbers = np.array([shards[name] for name in dataset.record_ids])
        return ShardSampler(dataset, self.batch_size, shards=numbers, window=self.window, **options)
