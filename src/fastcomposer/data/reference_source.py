"""Where the references of a training sample come from: its own record, or others of the same people."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fastcomposer.data.records import LoadedRecord, Record, RecordError, Segment, record_path
from fastcomposer.data.segment_crop import cut_out
from fastcomposer.data.transforms import ReferenceTransform

Read = Callable[[str, Callable[[Record, int, int], int]], LoadedRecord | None]
"""Reads a record, its image shrunk by a factor made of record, height and width; ``None`` to skip it."""


class ReferenceSource:
    """Draws the references of subjects.

    Args:
        root: Data folder, for messages.
        read: Reads further records.
        transform: From a piece of an image to a reference.
        others: For each identity the (record, segment) ids that show it; ``None`` to take references from
            the sample's own record.
        count: References N of each subject.
        background: See :func:`~fastcomposer.data.segment_crop.cut_out`.
    """

    def __init__(
        self,
        root: str | Path,
        read: Read,
        transform: ReferenceTransform,
        others: Mapping[str, Sequence[tuple[str, int]]] | None,
        count: int,
        background: str,
    ) -> None:
        self.root, self.read, self.transform, self.others = root, read, transform, others
        self.count, self.background = count, background

    def draw(
        self, loaded: LoadedRecord, segments: Sequence[Segment], slots: int, rng: np.random.Generator
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Draw the references of a sample.

        What is drawn first does not depend on N: the second to last are drawn after the first of all.

        Args:
            loaded: The sample's record.
            segments: Its subjects.
            slots: Subject slots K.
            rng: Source of everything random.

        Returns:
            (1, K, 3, R, R) first references, and with N > 1 (1, K, N − 1, 3, R, R) further ones and which of
            them there are, (1, K, N − 1) bool.
        """
        size, further = self.transform.size, self.count - 1
        first = torch.zeros(1, slots, 3, size, size)
        pieces = [self._pieces(loaded, segment, rng) for segment in segments]
        for slot, own in enumerate(pieces):
            first[0, slot] = self.transform(next(own), int(rng.integers(2**63)))
        if not further:
            return first, None, None
        extra = torch.zeros(1, slots, further, 3, size, size)
        present = torch.zeros(1, slots, further, dtype=torch.bool)
        for slot, own in enumerate(pieces):
            for number, piece in enumerate(islice(own, further)):
                extra[0, slot, number] = self.transform(piece, int(rng.integers(2**63)))
                present[0, slot, number] = True
        return first, extra, present

    def _pieces(self, loaded: LoadedRecord, segment: Segment, rng: np.random.Generator) -> Iterator[Tensor]:
        """Yield the pieces of images that a subject's references are made of, at least one."""

        def piece(source: LoadedRecord, shown: Segment) -> Tensor:
            return cut_out(
                source.image,
                source.segment_map,
                shown.id,
                shown.bbox,
                rng,
                source.reduction,
                self.background,
            )

        found = False
        for source, shown in self._elsewhere(loaded.record.record_id, segment, rng):
            found = True
            yield piece(source, shown)
        if found:
            return
        if self.others is not None and loaded.reduction > 1:  # shrunk for the target alone
            loaded = self.read(loaded.record.record_id, partial(self._reduction, segment.id)) or loaded
        own = piece(loaded, segment)
        yield own
        while self.others is None and self.transform.augmentation is not None:
            yield own

    def _elsewhere(
        self, record_id: str, segment: Segment, rng: np.random.Generator
    ) -> Iterator[tuple[LoadedRecord, Segment]]:
        """Yield other records of an identity in random order, each with the segment that shows it."""
        known = (self.others or {}).get(segment.identity or "", ())
        others = [portrait for portrait in known if portrait[0] != record_id]
        for number in rng.permutation(len(others)):
            other_id, segment_id = others[number]
            other = self.read(other_id, partial(self._reduction, segment_id))
            if other is None:
                continue
            for candidate in other.record.segments:
                if candidate.id == segment_id and candidate.identity == segment.identity:
                    break
            else:
                path = record_path(self.root, other_id, ".json")
                raise RecordError(f"{path}: segments[].identity: changed since the folder was indexed")
            yield other, candidate

    def _reduction(self, segment_id: int, record: Record, height: int, width: int) -> int:
        """Return the factor by which the image may be shrunk that the reference of a segment comes from."""
        box = next((s.bbox for s in record.segments if s.id == segment_id), (0, 0, 0, 0))
        return self.transform.reduction(box, height, width)
