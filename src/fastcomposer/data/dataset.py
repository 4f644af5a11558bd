"""Records on disk become training samples: one :class:`SubjectBatch` of one sample per record."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from fastcomposer.batch import SubjectBatch
from fastcomposer.data.cache_files import Target, content_digest
from fastcomposer.data.index import RecordIndex, RecordTable
from fastcomposer.data.precomputed import StateCache
from fastcomposer.data.records import (
    LoadedRecord,
    Record,
    RecordError,
    Segment,
)
from fastcomposer.data.reference_source import ReferenceSource
from fastcomposer.data.segment_crop import BACKGROUNDS
from fastcomposer.data.subject_selection import DROPPED, Choice, choose_subjects
from fastcomposer.data.transforms import (
    PUBLISHED,
    ReferenceAugmentation,
    ReferenceTransform,
    TargetTransform,
    sample_rng,
)
from fastcomposer.utils.errors import FaultError

logger = logging.getLogger(__name__)

REFERENCES = ("same_image", "other_image")


class SubjectDataset(Dataset[SubjectBatch]):
    """Samples of a data folder.

    A sample depends on (seed, epoch, index) alone, not on the number of workers or the order of drawing.
    Its subjects are the segments of the given labels that the target still shows, ordered by their word in
    the caption. Where two share a word, or there are more than ``max_subjects``, the largest in the target
    stay (the smaller segment id where equal); one whose word lies beyond the tokenizer's limit is left out.

    Args:
        root: Data folder in the published format (:mod:`fastcomposer.data.records`).
        split: ``train``, ``test`` or ``all``.
        tokenizer: CLIP tokenizer.
        resolution: Height and width of the target in pixels, a multiple of 8.
        reference_size: Height and width R of the references in pixels.
        max_subjects: Subject slots K.
        reference: ``same_image`` cuts the reference out of the target's record (docs/method.md);
            ``other_image`` out of another record of the same identity where there is one.
        num_references: References N of each subject: with ``other_image`` out of further records of the
            identity, with ``same_image`` further augmentations of the same piece. The first is the one that
            there is with N = 1; what is missing is masked.
        background: What is around a subject in its references: ``noise`` (docs/method.md), ``black``, or
        ``kept``.
        labels: Labels of the segments that count as subjects; ``None`` for all.
        min_subjects: Leave out records with fewer such segments.
        share: How much of the remaining records to take, from the first one on; in (0, 1].
        flip: Probability of mirroring the target.
        augmentation: Augmentation of the references; ``None`` for none.
        scaled_decoding: Decode images that are twice as large as needed, or more, at a half, quarter or
            eighth of their size; the result differs from decoding them whole by about a level of 255.
        on_bad_record: ``raise``, or ``skip`` to put the next good record in its place.
        records: Where records are read from, if not from the folder itself.
        cache: Where samples take their moments and text states from; ``None`` leaves them out.
        seed: Seed of all that is random.

    Raises:
        ValueError: If a setting is out of range, or ``other_image`` is asked of data without identities.
        StaleCacheError: If the cache lacks records.
        RecordError: If the id list is missing or empty, or, under ``raise``, a record's JSON is bad.
    """

    def __init__(
        self,
        root: str | Path,
        split: str,
        tokenizer: Any,
        resolution: int,
        reference_size: int,
        *,
        max_subjects: int = 4,
        reference: str = "same_image",
        num_references: int = 1,
        background: str = "noise",
        labels: Collection[str] | None = ("person",),
        min_subjects: int = 0,
        share: float = 1.0,
        flip: float = 0.5,
        augmentation: ReferenceAugmentation | None = PUBLISHED,
        scaled_decoding: bool = True,
        on_bad_record: str = "raise",
        cache: StateCache | None = None,
        records: RecordTable | None = None,
        seed: int = 42,
    ) -> None:
        check_settings(
            max_subjects=max_subjects,
            reference=reference,
            num_references=num_references,
            background=background,
            labels=labels,
            share=share,
            flip=flip,
            seed=seed,
        )
        self.root, self.split = root, split
        self.tokenizer = tokenizer
        self.target_transform = TargetTransform(resolution)
        self.reference_transform = ReferenceTransform(reference_size, augmentation)
        self.max_subjects, self.reference, self.flip = max_subjects, reference, flip
        self.labels = None if labels is None else frozenset(labels)
        self.scaled_decoding, self.on_bad_record, self.seed = scaled_decoding, on_bad_record, seed
        self.epoch = 0
        self.index = records or RecordIndex(root, split, on_bad_record)
        found = [i for i in self.index.record_ids if self.index.num_subjects(i, self.labels) >= min_subjects]
        self.record_ids = tuple(found[: math.ceil(share * len(found))])
        wanted = "any label" if self.labels is None else f"coco_label in {sorted(self.labels)}"
        if not self.record_ids:
            raise RecordError(
                f"{self.root}: no record of split {split!r} has {min_subjects} segments, {wanted}"
            )
        self.cache = cache
        if cache is not None:
            cache.check_records(self.record_ids)
        others = self.index.by_identity(self.labels) if reference == "other_image" else None
        if others is not None and not others:
            raise ValueError(
                f"reference=other_image needs the field segments[].identity, which no segment in {root}, "
                f"{wanted}, has; use reference=same_image"
            )
        if others is not None and share < 1:  # what is left out shows nobody, either
            taken = frozenset(self.record_ids)
            others = {who: [place for place in places if place[0] in taken] for who, places in others.items()}
        self.reference_source = ReferenceSource(
            self.root, self._read, self.reference_transform, others, num_references, background
        )
        # In shared memory, because workers find what there is to count. Each place belongs to one record,
        # so that a record met twice, or by two workers at once, counts once.
        self._dropped = _shared_zeros(len(self.record_ids), len(DROPPED), dtype=torch.int16)
        self._place = {record_id: place for place, record_id in enumerate(self.index.record_ids)}
        self._unreadable = _shared_zeros(len(self.index.record_ids), dtype=torch.bool)

    def __len__(self) -> int:
        return len(self.record_ids)

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch of samples drawn by a plain index; (epoch, index) pairs carry their own."""
        self.epoch = epoch

    def report(self) -> dict[str, int]:
        """Count what has been left out of the samples drawn so far, by all workers.

        Returns:
            ``bad_records``: records found bad, when indexed or when read; and subjects dropped by reason:
            ``empty_mask``, ``same_word``, ``beyond_tokens``, ``over_max_subjects``.
        """
        dropped = self._dropped.sum(dim=0).tolist()
        bad = len(self.index.bad_records) + int(self._unreadable.sum())
        return {"bad_records": bad, **dict(zip(DROPPED, dropped, strict=True))}

    def bad_records(self) -> dict[str, str]:
        """Return the reason for each bad record found so far, by all workers."""
        reasons = dict(self.index.bad_records)
        for place in self._unreadable.nonzero().flatten().tolist():
            record_id = self.index.record_ids[place]
            try:
                self.index.read(record_id, self.labels)
            except RecordError as error:
                reasons[record_id] = str(error)
            else:
                reasons[record_id] = "was unreadable before and is readable now"
        return reasons

    def __getitem__(self, index: int | tuple[int, int]) -> SubjectBatch:
        """Return the sample of an index, or of an (epoch, index) pair.

        Raises:
            IndexError: If the index is out of range.
            RecordError: If the record is bad under ``raise``, or every record is.
        """
        epoch, index = index if isinstance(index, tuple) else (self.epoch, index)
        if not -len(self) <= index < len(self):
            raise IndexError(f"index {index} of {len(self)} records")
        rng = sample_rng(self.seed, epoch, index % len(self))
        for step in range(len(self)):
            place = (index + step) % len(self)
            loaded = self._read(self.record_ids[place], self._reduction)
            if loaded is not None:
                return self._sample(loaded, place, rng)
        raise RecordError(f"{self.root}: no record of split {self.split!r} is readable")

    def _reduction(self, record: Record, height: int, width: int) -> int:
        """Return the factor by which the image of a sample may be shrunk."""
        factor = self.target_transform.reduction(height)
        if self.reference == "other_image":  # the few references out of the target itself are read anew
            return factor
        boxes = [s.bbox for s in self._candidates(record)]
        return min([factor, *(self.reference_transform.reduction(box, height, width) for box in boxes)])

    def _candidates(self, record: Record) -> list[Segment]:
        """Return the segments that may be subjects."""
        return [s for s in record.segments if self.labels is None or s.label in self.labels]

    def _read(
        self, record_id: str, reduction: Callable[[Record, int, int], int] | None = None
    ) -> LoadedRecord | None:
        """Read a record; ``None`` if it is bad and to be skipped."""
        try:
            return self.index.read(record_id, self.labels, reduction if self.scaled_decoding else None)
        except RecordError as error:
            if self.on_bad_record == "raise":
                raise
            place = self._place[record_id]
            if not self._unreadable[place]:
                self._unreadable[place] = True
                logger.warning("bad record skipped: %s", error)
            return None

    def _sample(self, loaded: LoadedRecord, place: int, rng: np.random.Generator) -> SubjectBatch:
        flip = bool(rng.random() < self.flip)
        target, chosen = self._compose(loaded, place, flip=flip)
        subjects, prompt = chosen.subjects, chosen.prompt
        slots = self.max_subjects
        slot_masks = torch.zeros(1, slots, *target.shape[-2:])
        token_idx = torch.zeros(1, slots, dtype=torch.long)
        present = torch.zeros(1, slots, dtype=torch.bool)
        for slot, (subject, token) in enumerate(zip(subjects, prompt.subject_token_idx, strict=True)):
            slot_masks[0, slot] = subject.mask
            token_idx[0, slot] = token
            present[0, slot] = True
        segments = [subject.segment for subject in subjects]
        references, extra, extra_present = self.reference_source.draw(loaded, segments, slots, rng)
        cached = {} if self.cache is None else self.cache.read(loaded, prompt.input_ids, flip=flip)
        return SubjectBatch(
            pixel_values=target[None],
            input_ids=torch.tensor([prompt.input_ids]),
            subject_pixel_values=references,
            subject_token_idx=token_idx,
            subject_present=present,
            subject_masks=slot_masks,
            extra_pixel_values=extra,
            extra_present=extra_present,
            size_conditions=torch.tensor([self.target_transform.sizes(*loaded.segment_map.shape)]),
            record_ids=(loaded.record.record_id,),
            **cached,
        )

    def target(self, place: int) -> Target | None:
        """Make the target of a record alone; ``None`` if the record is bad and to be skipped.

        Args:
            place: Position in :attr:`record_ids`.

        Raises:
            RecordError: If the record is bad under ``raise``.
        """
        loaded = self._read(self.record_ids[place], self._reduction)
        if loaded is None:
            return None
        pixels, chosen = self._compose(loaded, place, flip=False)
        digest = content_digest(loaded.image_file, loaded.record.caption)
        return Target(loaded.record.record_id, digest, pixels, chosen.prompt.input_ids)

    def digest(self, place: int) -> bytes | None:
        """Return the digest that :meth:`target` would have; ``None`` if the record is unreadable."""
        record_id = self.record_ids[place]
        try:
            return content_digest(*self.index.image_and_caption(record_id))
        except (RecordError, OSError):
            return None

    def _compose(self, loaded: LoadedRecord, place: int, *, flip: bool) -> tuple[Tensor, Choice]:
        """Make the target (3, H, W), choose the subjects that it shows, and parse the prompt with them."""
        record = loaded.record
        candidates = self._candidates(record)
        target, target_masks = self.target_transform(
            torch.from_numpy(loaded.image).permute(2, 0, 1),
            loaded.segment_map,
            [segment.id for segment in candidates],
            flip=flip,
        )
        chosen = choose_subjects(record, candidates, target_masks, self.tokenizer, self.max_subjects)
        if any(chosen.dropped):
            self._dropped[place] = torch.tensor(chosen.dropped, dtype=torch.int16)
        return target, chosen


def check_settings(
    *,
    max_subjects: int,
    reference: str,
    num_references: int,
    background: str,
    labels: Collection[str] | None,
    share: float,
    flip: float,
    seed: int,
) -> None:
    """Check the settings that need no data.

    Raises:
        ValueError: If one is out of range, with the name of the setting.
    """
    if max_subjects < 1:
        raise ValueError(f"max_subjects must be at least 1, not {max_subjects}")
    if reference not in REFERENCES:
        raise ValueError(f"reference must be one of {', '.join(REFERENCES)}, not {reference!r}")
    if num_references < 1:
        raise ValueError(f"num_references must be at least 1, not {num_references}")
    if background not in BACKGROUNDS:
        raise ValueError(f"background must be one of {', '.join(BACKGROUNDS)}, not {background!r}")
    if isinstance(labels, str):
        raise ValueError(f"labels must be a list, such as [{labels}], or null for all")
    if not 0 < share <= 1:
        raise ValueError(f"train_share must be above 0 and at most 1, not {share}")
    if not 0 <= flip <= 1:
        raise ValueError(f"flip must be a probability, not {flip}")
    if seed < 0:
        raise ValueError(f"seed must not be negative, not {seed}")


def _shared_zeros(*shape: int, dtype: torch.dtype) -> Tensor:
    """Zeros that the processes of a loader write to.

    Raises:
        FaultError: If there is no room for them.
    """
    try:
        return torch.zeros(*shape, dtype=dtype).share_memory_()
    except RuntimeError as error:
        raise FaultError(f"no room in shared memory (/dev/shm): {error}") from error
