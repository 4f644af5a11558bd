"""Settings of training samples, from ``conf/data/*.yaml`` through the data module to the data set."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Literal

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

from fastcomposer.data.transforms import (
    PUBLISHED,
    Probability,
    ReferenceAugmentation,
    Resolution,
    elastic_kernel,
)
from fastcomposer.utils.ranges import Count, Seed, Whole


@dataclass(frozen=True, config=ConfigDict(title="data.module", extra="forbid"))
class SampleSettings:
    """How records become samples.

    Attributes:
        resolution: Height and width of the target in pixels, a multiple of 8.
        reference_size: Height and width R of the references in pixels.
        max_subjects: Subject slots K.
        reference: ``same_image`` cuts the reference out of the target's record (docs/method.md);
            ``other_image`` out of another record of the same identity where there is one.
        num_references: References N of each subject: with ``other_image`` out of further records of the
            identity, with ``same_image`` further augmentations of the same crop. The first is the same as
            with N = 1; missing ones are masked.
        background: What surrounds a subject in its references: ``noise`` (docs/method.md), ``black``, or
            ``kept``.
        labels: Labels of the segments that count as subjects; ``None`` for all.
        min_subjects: Leave out records with fewer such segments.
        train_share: Fraction of the remaining training records to use, from the first one on; in (0, 1].
        flip: Probability of mirroring the target in training.
        augmentation: Augmentation of the references in training; ``None`` for none.
        scaled_decoding: Decode JPEGs with at least twice the pixels needed at a half, quarter or eighth of
            their size. The result differs by about one level of 255.
        on_bad_record: ``raise``, or ``skip`` to put the next good record in its place.
        seed: Seed of the order of samples and of everything random in them.

    Raises:
        ValueError: If a value is out of range, with its key.
    """

    resolution: Resolution
    reference_size: Count
    max_subjects: Count = 4
    reference: Literal["same_image", "other_image"] = "same_image"
    num_references: Count = 1
    background: Literal["noise", "black", "kept"] = "noise"
    labels: frozenset[str] | None = frozenset({"person"})
    min_subjects: Whole = 0
    train_share: Annotated[float, Field(gt=0, le=1)] = 1.0
    flip: Probability = 0.5
    augmentation: ReferenceAugmentation | None = PUBLISHED
    scaled_decoding: bool = True
    on_bad_record: Literal["raise", "skip"] = "raise"
    seed: Seed = 42

    def __post_init__(self) -> None:
        if self.augmentation is not None and self.augmentation.elastic:
            radius = elastic_kernel(self.augmentation.elastic_sigma) // 2
            if self.reference_size <= radius:
                raise ValueError(
                    f"reference_size {self.reference_size} must exceed {radius} pixels for the elastic "
                    "deformation; set augmentation.elastic=0 or a smaller augmentation.elastic_sigma"
                )

    def without_augmentation(self) -> SampleSettings:
        """Return the settings of validation: all records, neither mirrored nor augmented."""
        return replace(self, train_share=1.0, flip=0.0, augmentation=None)
