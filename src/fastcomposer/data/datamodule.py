"""The data of a training run: loaders whose order survives an interruption anywhere."""

from __future__ import annotations

import warnings
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import LightningDataModule
from lightning.pytorch.trainer.states import TrainerFn
from torch.utils.data import DataLoader

from fastcomposer.batch import SubjectBatch
from fastcomposer.data.cache_files import StateCache, describe_target
from fastcomposer.data.dataset import SubjectDataset
from fastcomposer.data.index import RecordTable, describe_records
from fastcomposer.data.records import read_ids
from fastcomposer.data.sample_settings import SampleSettings
from fastcomposer.data.samplers import EpochSampler, ShardSampler
from fastcomposer.data.shards import ShardedRecords
from fastcomposer.utils.ranges import Count, Workers

_BEGINNING = {"batches": 0, "epoch": 0, "samples": 0}


class _ResumableLoader(DataLoader[SubjectBatch]):
    """A loader whose position the data module keeps; the trainer looks for these methods."""

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        pass


class SubjectDataModule(LightningDataModule):
    """Training and validation data of one folder.

    Training samples are shuffled anew each epoch, in an order that depends on (seed, epoch) alone. A run
    resumed from a checkpoint, even within an epoch, continues with the batches that an uninterrupted run
    would have seen: the checkpoint counts the batches that were trained on, not those that workers prepared.

    Validation samples are those of the first epoch without augmentation, mirroring or shuffling.

    Args:
        root: Data folder in the published format (:mod:`fastcomposer.data.records`).
        tokenizer: CLIP tokenizer, or a :class:`~fastcomposer.prompt.JointTokenizer`.
        batch_size: Samples per process and step.
        num_workers: Worker processes per process; 0 loads in the process itself.
        pin_memory: Copy batches into pinned memory, for faster transfer to a GPU.
        train_split: Split to train on.
        val_split: Split to validate on; ``None`` for no validation.
        cache: Folder of precomputed VAE moments and text states; ``None`` computes them in every step.
        **settings: Fields of :class:`~fastcomposer.data.sample_settings.SampleSettings`.

    Raises:
        ValueError: If a setting is out of range.
        FileNotFoundError: If the folder, or that of the cache, is missing.
        StaleCacheError: If the cache is damaged, or of targets made otherwise.
        RecordError: If an id list is missing or empty.
    """

    def __init__(
        self,
        root: str | Path,
        tokenizer: Any,
        batch_size: Count,
        *,
        num_workers: Workers = 0,
        pin_memory: bool = False,
        train_split: str = "train",
        val_split: str | None = "test",
        cache: str | Path | None = None,
        **settings: Any,
    ) -> None:
        super().__init__()
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, not {batch_size}")
        if num_workers < 0:
            raise ValueError(f"num_workers must not be negative, not {num_workers}")
        self.root, self.tokenizer, self.settings = root, tokenizer, SampleSettings(**settings)
        self.batch_size, self.num_workers, self.pin_memory = batch_size, num_workers, pin_memory
        self.train_split, self.val_split = train_split, val_split
        for split in (train_split, val_split):
            if split is not None:
                self.check_data(split)
        self.cache = None if cache is None else StateCache(cache)
        if self.cache is not None:
            self.cache.check_target(self.target)
        self._resumed: tuple[Any, dict[str, int]] = (None, _BEGINNING)
        self.train_dataset: SubjectDataset | None = None
        self.val_dataset: SubjectDataset | None = None

    @cached_property
    def target(self) -> dict[str, Any]:
        """How targets are made, as a cache keeps it."""
        return describe_target(self.settings)

    def setup(self, stage: str | None = None) -> None:
        """Index the data; a second call does nothing."""
        if self.train_dataset is None and stage in (None, "fit"):
            train, labels = self._dataset(self.train_split, self.settings), self.settings.labels
            if labels and not any(train.index.num_subjects(i, labels) for i in train.record_ids):
                raise ValueError(
                    f"data.module.labels={sorted(labels)}: no segment of split {self.train_split!r} in "
                    f"{self.root} has one of these as its coco_label, so there is nobody to learn from"
                )
            self.train_dataset = train
        if self.val_dataset is None and self.val_split is not None and stage in (None, "fit", "validate"):
            self.val_dataset = self._dataset(self.val_split, self.settings.without_augmentation())

    def _dataset(self, split: str, settings: SampleSettings) -> SubjectDataset:
        records = self.records(split)
        return SubjectDataset(self.root, split, self.tokenizer, settings, records=records, cache=self.cache)

    def manifest(self) -> dict[str, Any]:
        """Describe the data in plain values."""
        self.setup("fit")
        found = {self.train_split: self.train_dataset, self.val_split: self.val_dataset}
        labels = self.settings.labels
        splits = {name: describe_records(data.index, labels) for name, data in found.items() if name and data}
        return {"root": str(self.root), **splits}

    def check_data(self, split: str) -> None:
        """Look for the data of a split when the module is made."""
        if not Path(self.root).is_dir():
            raise FileNotFoundError(f"root: no data folder at {self.root}")
        read_ids(self.root, split)

    def records(self, split: str) -> RecordTable | None:
        """Return where the records of a split are read from; ``None`` for the folder itself."""
        return None

    def sampler(self, dataset: SubjectDataset, **options: Any) -> EpochSampler:
        """Make the sampler of the training data."""
        return EpochSampler(dataset, self.batch_size, **options)

    def train_dataloader(self) -> DataLoader[SubjectBatch]:
        """Return the training loader, which begins where the trainer is."""
        self.setup("fit")
        assert self.train_dataset is not None
        rank, world = self._rank_and_world()
        self._sizes()
        sampler = self.sampler(
            self.train_dataset,
            num_replicas=world,
            rank=rank,
            seed=self.settings.seed,
            position=None if self.trainer is None else self._batches_done,
            step=1 if self.trainer is None else self.trainer.accumulate_grad_batches,
        )
        return self._loader(self.train_dataset, sampler=sampler, drop_last=True)

    def val_dataloader(self) -> DataLoader[SubjectBatch] | list[Any]:
        """Return the validation loader, an empty list if there is no validation split."""
        if self.val_split is None:
            return []
        self.setup("validate")
        assert self.val_dataset is not None
        return self._loader(self.val_dataset, shuffle=False)

    def _loader(self, dataset: SubjectDataset, **options: Any) -> DataLoader[SubjectBatch]:
        return _ResumableLoader(
            dataset,
            self.batch_size,
            num_workers=self.num_workers,
            pin_memory=self.pin_memory,
            persistent_workers=self.num_workers > 0,
            collate_fn=SubjectBatch.collate,
            # For the number that the loader draws for its workers each epoch.
            generator=torch.Generator().manual_seed(self.settings.seed),
            **options,
        )

    def _rank_and_world(self) -> tuple[int, int]:
        return (0, 1) if self.trainer is None else (self.trainer.global_rank, self.trainer.world_size)

    # --- resuming ------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, int]:
        """Return the position in the data after the last batch that the trainer finished.

        That is ``batches`` trained on, the ``epoch`` of the data from 0, its finished ``samples`` over all
        processes, and the ``seed`` and number of ``records`` that the order depends on.
        """
        if self.train_dataset is None:
            return {}
        per_epoch, per_batch = self._sizes()
        epoch, batches = divmod(self._batches_done(), per_epoch)
        position = {"batches": self._batches_trained(), "epoch": epoch, "samples": batches * per_batch}
        return {**position, "seed": self.settings.seed, "records": len(self.train_dataset)}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Continue where a checkpoint stopped; the trainer calls this before it makes the loader."""
        if self.trainer is not None and self.trainer.state.fn != TrainerFn.FITTING:
            return
        if state["seed"] != self.settings.seed:
            raise ValueError(
                f"data.seed is {self.settings.seed}, but the checkpoint was trained with {state['seed']}: "
                "another seed would change the order of the remaining batches"
            )
        self.setup("fit")
        assert self.train_dataset is not None
        if state["records"] != len(self.train_dataset):
            found = f"{len(self.train_dataset)} records instead of {state['records']}"
            warnings.warn(f"resumed with {found}: samples come in another order", stacklevel=2)
        self._resumed = (self.trainer, dict(state))

    def _sizes(self) -> tuple[int, int]:
        """Return the batches of an epoch and the samples of a batch, counted over all processes."""
        assert self.train_dataset is not None
        _, world = self._rank_and_world()
        records = len(self.train_dataset)
        per_epoch = records // world // self.batch_size
        if not per_epoch:
            raise ValueError(
                f"{self.root}: {records} records of split {self.train_split!r} do not fill one "
                f"batch of {self.batch_size} on {world} process(es); lower data.module.batch_size"
            )
        return per_epoch, self.batch_size * world

    def _batches_done(self) -> int:
        """Return how many batches of the data, counted from the first epoch, have been trained on."""
        trainer, start = self._resumed
        if trainer is not self.trainer:  # of an earlier run
            start = _BEGINNING
        per_epoch, per_batch = self._sizes()
        before = start["epoch"] * per_epoch + start["samples"] // per_batch
        return before + self._batches_trained() - start["batches"]

    def _batches_trained(self) -> int:
        """Return the trainer's total of finished batches; its epochs may be shorter than the data's."""
        if self.trainer is None:
            return 0
        return int(self.trainer.fit_loop.epoch_loop.batch_progress.total.processed)  # type: ignore[attr-defined]


class StreamingDataModule(SubjectDataModule):
    """Training and validation data out of shards (:mod:`fastcomposer.data.shards`).

    Samples equal those of the data folder bit for bit. With ``window=None`` the order is the folder's too; a
    window reads few shards at a time, which an object store or a slow disk needs. References out of other
    records (``other_image``) fetch shards out of turn.

    Args:
        root: Folder of shards, or URL.
        local: Folder to keep downloaded shards in.
        window: Shards mixed at a time; ``None`` mixes all.

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
        window: Count | None = None,
        **settings: Any,
    ) -> None:
        if window is not None and window < 1:
            raise ValueError(f"window must be at least 1 shard, not {window}")
        self.local, self.window = local, window
        self._tables: dict[str, ShardedRecords] = {}
        super().__init__(root, *arguments, **settings)

    def check_data(self, split: str) -> None:
        """Read the catalogue of a split."""
        self._tables[split] = ShardedRecords(str(self.root), split, self.local)
        if self.settings.reference == "other_image" and not self._tables[split].by_identity():
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
