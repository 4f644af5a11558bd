"""Records on disk become training samples: one :class:`SubjectBatch` of one sample per record."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from fastcomposer.batch import SubjectBatch
from fastcomposer.data.cache_files import StateCache, Target, content_digest
from fastcomposer.data.index import RecordIndex, RecordTable
from fastcomposer.data.pixels import NeededSize
from fastcomposer.data.records import LoadedRecord, Record, RecordError, Segment, decode_record, record_path
from fastcomposer.data.sample_settings import SampleSettings
from fastcomposer.data.segment_crop import cut_out
from fastcomposer.data.transforms import ReferenceTransform, TargetTransform, sample_rng
from fastcomposer.prompt import ParsedPrompt, PromptError, parse_prompt, place_markers

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class SubjectCandidate:
    """A segment that may become a subject."""

    segment: Segment
    end: int  # character offset in the caption just after its word
    mask: Tensor  # (H, W) bool, its pixels in the target


def choose_subjects(
    record: Record, segments: Sequence[Segment], masks: Tensor, tokenizer: Any, max_subjects: int
) -> tuple[list[SubjectCandidate], ParsedPrompt]:
    """Choose the largest of some segments, each with a word of its own that the tokenizer keeps.

    ``masks``, (len(segments), H, W) bool, are their pixels in the target. The subjects come in the order of
    their words, with the caption and a marker for each.
    """
    areas = masks.sum(dim=(1, 2)).tolist()
    by_end: dict[int, SubjectCandidate] = {}  # the largest first
    for number in sorted(range(len(segments)), key=lambda i: (-areas[i], segments[i].id)):
        end = len(record.caption[: segments[number].end].rstrip())  # two offsets around a space are one word
        if areas[number] and end not in by_end:
            by_end[end] = SubjectCandidate(segments[number], end, masks[number])
    while True:
        subjects = sorted(list(by_end.values())[:max_subjects], key=lambda subject: subject.end)
        caption = place_markers(record.caption, [subject.end for subject in subjects])
        try:
            return subjects, parse_prompt(caption, tokenizer, num_references=len(subjects))
        except PromptError:
            if not subjects:
                raise
            # Beyond the tokenizer's limit: the last one at least. The next in size may take its slot.
            del by_end[subjects[-1].end]


class SubjectDataset(Dataset[SubjectBatch]):
    """Samples of a data folder.

    A sample depends on (seed, epoch, index) alone, not on the number of workers or the order of reading.
    Its subjects are the segments of the given labels that are visible in the target, ordered by their word in
    the caption. Where two share a word, or there are more than ``max_subjects``, the largest in the target
    stay (the smaller segment id where equal); one whose word lies beyond the tokenizer's limit is left out.

    Args:
        root: Data folder in the published format (:mod:`fastcomposer.data.records`).
        split: ``train``, ``test`` or ``all``.
        tokenizer: CLIP tokenizer, or a :class:`~fastcomposer.prompt.JointTokenizer`.
        settings: How records become samples.
        records: Where records are read from; ``None`` for the folder itself.
        cache: Where samples take their moments and text states from; ``None`` leaves them out.

    Raises:
        ValueError: If ``other_image`` is asked of data without identities, or the references are too small
            for their augmentation.
        StaleCacheError: If the cache lacks records.
        RecordError: If the id list is missing or empty, or, under ``raise``, a record's JSON is bad.
    """

    def __init__(
        self,
        root: str | Path,
        split: str,
        tokenizer: Any,
        settings: SampleSettings,
        *,
        records: RecordTable | None = None,
        cache: StateCache | None = None,
    ) -> None:
        self.root, self.split, self.tokenizer, self.settings = root, split, tokenizer, settings
        self.target_transform = TargetTransform(settings.resolution)
        self.reference_transform = ReferenceTransform(settings.reference_size, settings.augmentation)
        self.index = records or RecordIndex(root, split, settings.on_bad_record)
        labels, least, share = settings.labels, settings.min_subjects, settings.train_share
        found = [i for i in self.index.record_ids if self.index.num_subjects(i, labels) >= least]
        self.record_ids = tuple(found[: math.ceil(share * len(found))])
        wanted = "any label" if labels is None else f"coco_label in {sorted(labels)}"
        if not self.record_ids:
            raise RecordError(f"{root}: no record of split {split!r} has {least} segments, {wanted}")
        self.cache = cache
        if cache is not None:
            cache.check_records(self.record_ids)
        other_image = settings.reference == "other_image"
        self._by_identity = self.index.by_identity(labels) if other_image else {}
        if other_image and not self._by_identity:
            raise ValueError(
                f"reference=other_image needs the field segments[].identity, which no segment in {root}, "
                f"{wanted}, has; use reference=same_image"
            )
        if share < 1:  # references come from the records that are trained on
            taken = frozenset(self.record_ids)
            self._by_identity = {
                identity: [position for position in shown if position[0] in taken]
                for identity, shown in self._by_identity.items()
            }
        # References of other images are not cut out of what is decoded for the target.
        zoom = settings.augmentation is not None and settings.augmentation.zoom > 0
        reference_size = 0 if other_image else settings.reference_size
        self._target_needs = NeededSize(settings.resolution, reference_size, zoom)
        self._reference_needs = NeededSize(1, settings.reference_size, zoom)
        self._unreadable: dict[str, str] = {}  # found by this process

    def __len__(self) -> int:
        return len(self.record_ids)

    def __getitem__(self, index: int | tuple[int, int]) -> SubjectBatch:
        """Return the sample of an index in the first epoch, or of an (epoch, index) pair."""
        epoch, index = index if isinstance(index, tuple) else (0, index)
        if not -len(self) <= index < len(self):
            raise IndexError(f"index {index} of {len(self)} records")
        rng = sample_rng(self.settings.seed, epoch, index % len(self))
        for step in range(len(self)):
            loaded = self._read(self.record_ids[(index + step) % len(self)], self._target_needs)
            if loaded is not None:
                return self._sample(loaded, rng)
        raise RecordError(f"{self.root}: no record of split {self.split!r} is readable")

    def _read(self, record_id: str, needed: NeededSize) -> LoadedRecord | None:
        """Read a record; ``None`` if it is bad and to be skipped."""
        settings = self.settings
        needs = needed if settings.scaled_decoding else None
        try:
            files = self.index.files(record_id)
            return decode_record(record_id, files, self.index.location, settings.labels, needs)
        except RecordError as error:
            if settings.on_bad_record == "raise":
                raise
            if record_id not in self._unreadable:
                self._unreadable[record_id] = str(error)
                logger.warning("bad record skipped: %s", error)
            return None

    def _sample(self, loaded: LoadedRecord, rng: np.random.Generator) -> SubjectBatch:
        flip = bool(rng.random() < self.settings.flip)
        target, subjects, prompt = self._compose(loaded, flip=flip)
        slots = self.settings.max_subjects
        slot_masks = torch.zeros(1, slots, *target.shape[-2:])
        for slot, subject in enumerate(subjects):
            slot_masks[0, slot] = subject.mask
        idx, idx_3 = (
            torch.tensor([positions + [0] * (slots - len(subjects))], dtype=torch.long)
            for positions in (prompt.subject_token_idx, prompt.subject_token_idx_3)
        )
        present = torch.arange(slots)[None] < len(subjects)
        faces, size = torch.zeros(1, slots, 4), loaded.segment_map.shape
        boxes = [subject.segment.face for subject in subjects]
        faces[0, : len(subjects)] = self.target_transform.boxes(boxes, *size, flip=flip)
        references, extra, extra_present = self._references(loaded, subjects, rng)
        cached = {} if self.cache is None else self.cache.read(loaded, prompt.all_ids, flip=flip)
        return SubjectBatch(
            pixel_values=target[None],
            input_ids=torch.tensor([prompt.all_ids]),
            subject_pixel_values=references,
            subject_token_idx=idx,
            subject_token_idx_3=idx_3 if prompt.input_ids_3 else None,
            subject_present=present,
            subject_masks=slot_masks,
            subject_face_boxes=faces,
            extra_pixel_values=extra,
            extra_present=extra_present,
            size_conditions=torch.tensor([self.target_transform.sizes(*size)]),
            record_ids=(loaded.record.record_id,),
            **cached,
        )

    def _compose(
        self, loaded: LoadedRecord, *, flip: bool
    ) -> tuple[Tensor, list[SubjectCandidate], ParsedPrompt]:
        """Make the target (3, H, W), choose the subjects visible in it, and parse the prompt with them."""
        record, labels = loaded.record, self.settings.labels
        segments = [segment for segment in record.segments if labels is None or segment.label in labels]
        image, ids = torch.from_numpy(loaded.image).permute(2, 0, 1), [segment.id for segment in segments]
        target, masks = self.target_transform(image, loaded.segment_map, ids, flip=flip)
        most = self.settings.max_subjects
        return target, *choose_subjects(record, segments, masks, self.tokenizer, most)

    # --- references ----------------------------------------------------------------------------------------

    def _references(
        self, loaded: LoadedRecord, subjects: Sequence[SubjectCandidate], rng: np.random.Generator
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """(1, K, 3, R, R) first references; for N > 1 (1, K, N − 1, 3, R, R) further ones and their presence.

        Random numbers of the first references do not depend on N: further references follow all first ones.
        """
        transform, slots = self.reference_transform, self.settings.max_subjects
        further = self.settings.num_references - 1
        first = torch.zeros(1, slots, 3, transform.size, transform.size)
        crops = [self._crops(loaded, subject.segment, rng) for subject in subjects]
        for slot, own in enumerate(crops):
            first[0, slot] = transform(next(own), int(rng.integers(2**63)))
        if not further:
            return first, None, None
        extra = torch.zeros(1, slots, further, 3, transform.size, transform.size)
        present = torch.zeros(1, slots, further, dtype=torch.bool)
        for slot, own in enumerate(crops):
            for number, crop in enumerate(islice(own, further)):
                extra[0, slot, number] = transform(crop, int(rng.integers(2**63)))
                present[0, slot, number] = True
        return first, extra, present

    def _crops(self, loaded: LoadedRecord, segment: Segment, rng: np.random.Generator) -> Iterator[Tensor]:
        """Yield the crops that a subject's references are made of, at least one."""
        found = False
        for other in self._other_images(loaded.record.record_id, segment, rng):
            found = True
            yield self._crop(*other, rng)
        if found:
            return
        other_image = self.settings.reference == "other_image"
        if other_image and loaded.reduction > 1:  # decoded for the target alone
            needed = replace(self._reference_needs, segment_id=segment.id)
            loaded = self._read(loaded.record.record_id, needed) or loaded
        own = self._crop(loaded, segment, rng)
        yield own
        while not other_image and self.settings.augmentation is not None:
            yield own

    def _crop(self, loaded: LoadedRecord, segment: Segment, rng: np.random.Generator) -> Tensor:
        image, segment_map, background = loaded.image, loaded.segment_map, self.settings.background
        return cut_out(image, segment_map, segment.id, segment.bbox, rng, loaded.reduction, background)

    def _other_images(
        self, record_id: str, segment: Segment, rng: np.random.Generator
    ) -> Iterator[tuple[LoadedRecord, Segment]]:
        """Yield other records of an identity in random order, each with the segment of the identity."""
        shown = self._by_identity.get(segment.identity or "", ())
        others = [position for position in shown if position[0] != record_id]
        for number in rng.permutation(len(others)):
            other_id, segment_id = others[number]
            other = self._read(other_id, replace(self._reference_needs, segment_id=segment_id))
            if other is None:
                continue
            wanted = (segment_id, segment.identity)
            same = [found for found in other.record.segments if (found.id, found.identity) == wanted]
            if not same:
                path = record_path(self.root, other_id, ".json")
                raise RecordError(f"{path}: segments[].identity: changed since the folder was indexed")
            yield other, same[0]

    # --- precomputation ------------------------------------------------------------------------------------

    def target(self, position: int) -> Target | str:
        """Make the target of a record alone; return the reason if the record is bad and to be skipped."""
        record_id = self.record_ids[position]
        loaded = self._read(record_id, self._target_needs)
        if loaded is None:
            return self._unreadable[record_id]
        pixels, _, prompt = self._compose(loaded, flip=False)
        digest = content_digest(loaded.image_file, loaded.record.caption)
        return Target(record_id, digest, pixels, prompt.all_ids)

    def digest(self, position: int) -> bytes | None:
        """Return the digest that :meth:`target` would have; ``None`` if the record is unreadable."""
        try:
            return content_digest(*self.index.image_and_caption(self.record_ids[position]))
        except (RecordError, OSError):
            return None
