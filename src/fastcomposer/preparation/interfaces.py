"""What the parts of the preparation hand to each other, and what each part must offer.

A part that holds a network is an ``nn.Module``: Lightning moves it to the device.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from PIL import Image


@dataclass(frozen=True)
class Photo:
    """A photo that could be read.

    Attributes:
        photo_id: Name of its record.
        path: Where it lies.
        image: RGB, upright.
    """

    photo_id: str
    path: Path
    image: Image.Image


@dataclass(frozen=True)
class Region:
    """A segment of a photo, before anybody said what it is called.

    Attributes:
        id: Value of its pixels in the segment map.
        label: Class name, as ``coco_label`` on disk.
    """

    id: int
    label: str


@dataclass(frozen=True)
class Segmentation:
    """Segments of a photo.

    Attributes:
        segment_map: (H, W) integers, as large as the photo; pixels of no region have an id of their own.
        regions: Regions; each has at least one pixel.
    """

    segment_map: np.ndarray
    regions: tuple[Region, ...]

    @cached_property
    def areas(self) -> dict[int, float]:
        """Share of the image that each region covers, by id."""
        ids, counts = np.unique(self.segment_map, return_counts=True)
        pixels = dict(zip(ids.tolist(), counts.tolist(), strict=True))
        return {region.id: pixels.get(region.id, 0) / self.segment_map.size for region in self.regions}

    def box(self, region_id: int) -> tuple[int, int, int, int]:
        """Smallest x1, y1, x2, y2 around a region, the second corner exclusive."""
        mask = self.segment_map == region_id
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


@dataclass(frozen=True)
class NounPhrase:
    """A phrase of a caption that names one subject.

    Attributes:
        text: The phrase with what the caption goes on to say of the subject.
        end: Character offset in the caption just after the subject's word.
        word: That word, in lower case.
        label: Label of the regions that it may name.
    """

    text: str
    end: int
    word: str
    label: str


@dataclass(frozen=True)
class SegmentedPhoto:
    """What is to be matched of one photo.

    Attributes:
        photo: The photo.
        segmentation: All its segments.
        regions: Those that may be subjects.
        phrases: Phrases that may name them.
    """

    photo: Photo
    segmentation: Segmentation
    regions: tuple[Region, ...]
    phrases: tuple[NounPhrase, ...]


@dataclass(frozen=True)
class Match:
    """A phrase and the region that it names.

    Attributes:
        phrase: Position in the scene's phrases.
        region: Position in its regions.
        similarity: How well they fit; of CLIP the cosine.
    """

    phrase: int
    region: int
    similarity: float


class Component(Protocol):
    """What all parts have in common."""

    @property
    def settings(self) -> Mapping[str, Any]:
        """All that decides what comes out, in plain values."""

    def load(self) -> None:
        """Read weights; called once, before the part is used and only if there is something to do."""


class Captioner(Component, Protocol):
    """Says what is to be seen."""

    def caption(self, photos: Sequence[Photo]) -> list[str | None]:
        """One caption each, ``None`` where there is nothing to say."""


class Segmenter(Component, Protocol):
    """Divides images into segments."""

    def segment(self, photos: Sequence[Photo]) -> list[Segmentation]:
        """Segments of each."""


class PhraseFinder(Component, Protocol):
    """Finds the phrases that name subjects."""

    def find(self, captions: Sequence[str]) -> list[tuple[NounPhrase, ...]]:
        """Phrases of each caption, in its order."""


class Matcher(Component, Protocol):
    """Decides which phrase names which region."""

    def match(self, scenes: Sequence[SegmentedPhoto]) -> list[tuple[Match, ...]]:
        """Pairs of each scene; no phrase and no region is in two of them, and their labels agree."""
