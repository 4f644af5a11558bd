"""Precomputation: VAE moments and text states of every record, as a prediction of Lightning."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from fastcomposer.composer import FastComposer
from fastcomposer.data.cache_files import (
    CachePart,
    StaleCacheError,
    Target,
    cache_differences,
    check_manifest,
    clear,
    describe_cache,
    part_file,
    part_files,
    verify_part,
    write_manifest,
    write_part,
)
from fastcomposer.data.datamodule import SubjectDataModule
from fastcomposer.data.dataset import SubjectDataset
from fastcomposer.models.text import ENCODERS
from fastcomposer.utils.files import remove_leftovers
from fastcomposer.utils.ranges import Count
from fastcomposer.utils.settings import weights_digest
from fastcomposer.utils.stages import ResumableStage

logger = logging.getLogger(__name__)

PRECISIONS = {"float32": torch.float32, "float16": torch.float16}
_READERS = 8


def frozen_digests(model: FastComposer) -> dict[str, str]:
    """Digests of the networks that moments and text states come from."""
    return {name: weights_digest(network) for name, network in _frozen(model).items()}


def _frozen(model: FastComposer) -> dict[str, nn.Module]:
    networks = {name: getattr(model, name) for name in ("vae", *ENCODERS)}
    return {name: network for name, network in networks.items() if network is not None}


@dataclass(frozen=True)
class _RecordGroup:
    """Records of the part file ``number``, as numbers of dataset and record."""

    number: int
    records: tuple[tuple[int, int], ...]


class CacheStage(ResumableStage):
    """Fills a cache for the training and validation records of a data module.

    Parts that are there are kept if they are sound and their records have not changed.

    Args:
        model: Its VAE and text encoder are used.
        data: Data module of the training, made without a cache.
        folder: Folder of the cache, made when missing.
        precision: Type that moments and states are kept in: ``float32`` or ``float16``.
        records_per_file: Records in one file; what an interruption loses.
        batch_size: Records encoded together.
        restart: Whether to forget what is there.

    Raises:
        ValueError: If a setting is out of range, or the model does not take the resolution.
        StaleCacheError: If the folder holds a cache made from something else, or parts of no cache.
    """

    title = "records in the cache"

    def __init__(
        self,
        model: FastComposer,
        data: SubjectDataModule,
        folder: str | Path,
        precision: str = "float32",
        records_per_file: Count = 512,
        batch_size: Count = 16,
        restart: bool = False,
    ) -> None:
        super().__init__()
        if precision not in PRECISIONS:
            raise ValueError(f"precompute.precision={precision}: one of {', '.join(PRECISIONS)}")
        for name, value in (("records_per_file", records_per_file), ("batch_size", batch_size)):
            if value < 1:
                raise ValueError(f"precompute.{name} must be at least 1, not {value}")
        data.setup("fit")
        self.datasets = [dataset for dataset in (data.train_dataset, data.val_dataset) if dataset is not None]
        resolution = data.target["resolution"]
        model.check_image_size(resolution, resolution)
        self.folder, self.dtype_kept = Path(folder), PRECISIONS[precision]
        self.batch_size, self.num_workers, self.restart = batch_size, data.num_workers, restart
        self.made_from = describe_cache(data.target, frozen_digests(model), precision)
        check_manifest(self.folder, self.made_from, restart)
        self.groups = _group(self.datasets, records_per_file)
        # Lightning moves these; the rest of the model stays where it is.
        self.networks = nn.ModuleDict(_frozen(model))
        self._encode_moments = model.encode_moments
        self._text = model.text

    def missing_tasks(self) -> list[_RecordGroup]:
        """Claim the folder, and list the parts that are not there or whose records have changed."""
        if self.restart:
            clear(self.folder)
        write_manifest(self.folder, self.made_from)
        remove_leftovers(self.folder, shared=True)
        with ThreadPoolExecutor(_READERS) as pool:
            return [group for group in self.groups if not self._is_current(group, pool)]

    def images_of(self, task: _RecordGroup) -> int:
        """See :class:`ResumableStage`."""
        return len(task.records)

    def predict_step(self, batch: int, batch_idx: int) -> int:
        """Encode and write a part; returns its number of records."""
        group: _RecordGroup = self.tasks[batch]
        records: Any = group.records
        read = partial(_target, self.datasets)
        found = list(DataLoader(records, batch_size=None, num_workers=self.num_workers, collate_fn=read))
        targets = [target for target in found if isinstance(target, Target)]
        bad = {name: why for name, why in zip(self._names(group), found, strict=True) if isinstance(why, str)}
        captions = list(dict.fromkeys(tuple(target.input_ids) for target in targets))
        input_ids = torch.tensor(captions, dtype=torch.long)
        states, pooled = self._states(input_ids)
        content = CachePart(
            ids=[target.record_id for target in targets],
            digests=torch.tensor([list(target.digest) for target in targets], dtype=torch.uint8),
            moments=self._moments(targets),
            captions=torch.tensor([captions.index(tuple(target.input_ids)) for target in targets]),
            input_ids=input_ids,
            states=states,
            pooled=pooled,
            bad=bad,
        )
        _refuse_infinite(content)
        write_part(self.folder, group.number, content, self.made_from)
        return len(group.records)

    def finish(self) -> None:
        """Remove parts that no record belongs to any more."""
        for number, file in part_files(self.folder).items():
            if number >= len(self.groups):
                file.unlink()

    def _names(self, group: _RecordGroup) -> list[str]:
        return [self.datasets[number].record_ids[index] for number, index in group.records]

    def _moments(self, targets: Sequence[Target]) -> Tensor:
        """(N, 2, 2C, h, w) of the targets and their mirror images."""
        moments = []
        for start in range(0, len(targets), self.batch_size):
            pixels = torch.stack([t.pixel_values for t in targets[start : start + self.batch_size]])
            pixels = pixels.to(self.device)
            both = self._encode_moments(torch.cat([pixels, pixels.flip(-1)]))
            moments.append(torch.stack(both.to(self.dtype_kept).cpu().chunk(2), dim=1))
        return torch.cat(moments) if moments else torch.zeros(0, 2, 0)

    def _states(self, input_ids: Tensor) -> tuple[Tensor, Tensor]:
        """(M, T, d) and (M, p) of token ids (M, T)."""
        if not len(input_ids):
            return torch.zeros(0, 0), torch.zeros(0, 0)
        parts = input_ids.to(self.device).split(self.batch_size)
        encoded = [self._text.encode(part, pad=False) for part in parts]
        tokens = torch.cat([states.tokens.to(self.dtype_kept).cpu() for states in encoded])
        pooled = [states.pooled.to(self.dtype_kept).cpu() for states in encoded if states.pooled is not None]
        return tokens, torch.cat(pooled) if pooled else tokens.new_zeros(len(tokens), 0)

    def _is_current(self, group: _RecordGroup, pool: ThreadPoolExecutor) -> bool:
        """Whether a part's file is there and sound, and its records are as they were."""
        file = part_file(self.folder, group.number)
        try:
            found = verify_part(file)
        except FileNotFoundError:
            return False
        except StaleCacheError as error:
            logger.warning("%s: made anew", str(error).partition(";")[0])
            return False
        changes = cache_differences(found.made_from, self.made_from)
        if changes:
            logger.warning("%s was made from something else (%s): made anew", file, "; ".join(changes))
            return False
        if found.bad or found.ids != self._names(group):  # what was bad may have been mended
            return False
        digests = pool.map(lambda record: self.datasets[record[0]].digest(record[1]), group.records)
        return list(digests) == [row.tobytes() for row in found.digests]


def _refuse_infinite(part: CachePart) -> None:
    """Refuse moments and states that are not finite, and name the first such record."""
    sound = part.states.flatten(1).isfinite().all(dim=1) & part.pooled.isfinite().all(dim=1)
    for record_id, moments, caption in zip(part.ids, part.moments, part.captions, strict=True):
        if not (moments.isfinite().all() and sound[caption]):
            raise ValueError(
                f"record {record_id}: moments or text states are not finite; check the weights of "
                "model.base, and precompute.precision=float32"
            )


def _target(datasets: Sequence[SubjectDataset], record: tuple[int, int]) -> Target | str:
    return datasets[record[0]].target(record[1])


def _group(datasets: Sequence[SubjectDataset], size: int) -> list[_RecordGroup]:
    """Divide records into groups, each record once; no group holds records of two datasets."""
    groups: list[_RecordGroup] = []
    seen: set[str] = set()
    for number, dataset in enumerate(datasets):
        records = []
        for index, record_id in enumerate(dataset.record_ids):
            if record_id not in seen:
                seen.add(record_id)
                records.append((number, index))
        for start in range(0, len(records), size):
            groups.append(_RecordGroup(len(groups), tuple(records[start : start + size])))
    return groups
