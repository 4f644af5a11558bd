"""What a captioner, a segmenter, a phrase finder and a matcher take and return, and what they share."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from PIL import Image

from fastcomposer.utils.network_files import check_finite, naming_damage
from fastcomposer.utils.settings import base_fingerprint

# Folders of weights inside a model's own folder: spaCy has some.
_WEIGHTS = ("", "parser", "tagger", "tok2vec")


@dataclass(frozen=True)
class Photo:
    """A photo in memory."""

    photo_id: str  # of its record
    path: Path
    image: Image.Image  # RGB, upright


@dataclass(frozen=True)
class Region:
    """A segment of a photo that is not matched with a phrase yet."""

    id: int  # value of its pixels in the segment map
    label: str  # class name, coco_label on disk


@dataclass(frozen=True)
class Segmentation:
    """Segments of a photo."""

    segment_map: np.ndarray  # (H, W) integers, of the photo's size; pixels of no region have other ids
    regions: tuple[Region, ...]  # each with at least one pixel

    @cached_property
    def areas(self) -> dict[int, float]:
        """Fraction of the image that each region covers, by id."""
        ids, counts = np.unique(self.segment_map, return_counts=True)
        pixels = dict(zip(ids.tolist(), counts.tolist(), strict=True))
        return {region.id: pixels.get(region.id, 0) / self.segment_map.size for region in self.regions}

    def box(self, region_id: int) -> tuple[int, int, int, int]:
        """Smallest x1, y1, x2, y2 around a region, the second corner exclusive."""
        rows, columns = np.nonzero(self.segment_map == region_id)
        return int(columns.min()), int(rows.min()), int(columns.max()) + 1, int(rows.max()) + 1


@dataclass(frozen=True)
class NounPhrase:
    """A phrase of a caption that names one subject."""

    text: str  # up to the next phrase
    end: int  # character offset in the caption just after the subject's word
    word: str  # the subject's word, in lower case
    label: str  # of the regions that it may name


@dataclass(frozen=True)
class SegmentedPhoto:
    """The input of a matcher."""

    photo: Photo
    segmentation: Segmentation
    regions: tuple[Region, ...]  # those that may be subjects
    phrases: tuple[NounPhrase, ...]  # those that may name them


@dataclass(frozen=True)
class Match:
    """A phrase and the region that it names, by their indices in the photo."""

    phrase: int
    region: int
    similarity: float  # cosine, where CLIP matched them


class Component:
    """Base of the four parts of the preparation; their subclasses are dataclasses."""

    component: ClassVar[str]  # name of the part
    choice: ClassVar[str]  # name of the subclass
    network: Any = None  # set by load; Lightning moves modules to the device

    @property
    def settings(self) -> Mapping[str, Any]:
        """Everything that determines the output, in plain values; models by a digest of their weights."""
        own = {field.name: getattr(self, field.name) for field in fields(self)}  # type: ignore[arg-type]
        if "model" in own:
            own["model"] = base_fingerprint(own["model"], parts=_WEIGHTS)
        return {self.component: self.choice, **own}

    def load(self) -> None:
        """Load weights; called once, and only if there are photos to process."""


class Captioner(Component):
    """Captions photos."""

    component = "captioner"

    def caption(self, photos: Sequence[Photo]) -> list[str | None]:
        """Return a caption of each photo, ``None`` where there is none."""
        raise NotImplementedError


class Segmenter(Component):
    """Segments photos."""

    component = "segmenter"

    def segment(self, photos: Sequence[Photo]) -> list[Segmentation]:
        """Return the segments of each photo."""
        raise NotImplementedError


class PhraseFinder(Component):
    """Finds the phrases of captions that name subjects."""

    component = "phrases"

    def find(self, captions: Sequence[str]) -> list[tuple[NounPhrase, ...]]:
        """Return the phrases of each caption, in its order."""
        raise NotImplementedError


class Matcher(Component):
    """Matches phrases with regions."""

    component = "matcher"

    def match(self, photos: Sequence[SegmentedPhoto]) -> list[tuple[Match, ...]]:
        """Return the pairs of each photo: one-to-one, and of equal label."""
        raise NotImplementedError


def check_fractions(part: str, **values: float) -> None:
    """Refuse numbers outside [0, 1] with a ValueError that names the key."""
    for name, value in values.items():
        if not 0 <= value <= 1:
            raise ValueError(f"{part}.{name}={value}: must lie between 0 and 1")


def load_with_processor(
    network: Any, processor: Any, model: str, key: str, unused: Collection[str] = ()
) -> tuple[Any, Any]:
    """Load a network for inference in float32, and its preprocessing, by their auto classes of transformers.

    A missing model is a FileNotFoundError, a missing weight that is not in ``unused`` a ValueError; ``key``
    is for their messages.
    """
    try:
        with naming_damage(f"{key}:", model):
            loaded, info = network.from_pretrained(model, output_loading_info=True)
            prepare = processor.from_pretrained(model)
    except (OSError, ValueError) as error:
        raise FileNotFoundError(
            f"{key}={model}: no folder or hub id with a model for {network.__name__} and its preprocessing: "
            f"{error}"
        ) from error
    missing = sorted(set(map(str, info["missing_keys"])) - set(unused))
    if missing:
        raise ValueError(f"{key}={model}: {len(missing)} weights are missing: {', '.join(missing[:12])}")
    check_finite(loaded.state_dict(), f"{key}:", model)
    return loaded.float().eval().requires_grad_(False), prepare
