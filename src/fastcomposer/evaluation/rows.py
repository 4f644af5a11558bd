"""A row of results: what one method with one choice of settings does on one benchmark."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from fastcomposer.evaluation.statistics import Estimate

METHODS = ("fastcomposer", "text_only", "textual_inversion", "dreambooth", "custom_diffusion")
LEAST_CONSISTENCY = 0.85
"""Share of the text-only prompt consistency that the best settings keep."""


@dataclass(frozen=True)
class Costs:
    """What a method takes to know a subject.

    Attributes:
        reference_images: Pictures of each subject.
        personalization_seconds_per_subject: Fine-tuning; 0 where there is none.
        stored_bytes_per_subject: What is kept of a subject besides its pictures.
        peak_memory_bytes: Most memory in use while personalising or drawing.
    """

    reference_images: int
    personalization_seconds_per_subject: float = 0.0
    stored_bytes_per_subject: int = 0
    peak_memory_bytes: int = 0


@dataclass(frozen=True)
class Distances:
    """How far a run's pictures are from real ones.

    Attributes:
        fid: Too large for few pictures: to be compared between runs of as many.
        kid: Without such a bias.
        kid_std: Standard deviation of KID over subsets of the pictures.
        real_images: Number of real pictures.
        features: What describes the pictures, such as ``InceptionFeatures``.
        scored_by: Digest of features and real pictures: those of one digest can be compared.
    """

    fid: float
    kid: float
    kid_std: float
    real_images: int
    features: str
    scored_by: str | None = None


@dataclass(frozen=True)
class ResultRow:
    """One method with one choice of settings on one benchmark.

    Attributes:
        benchmark: ``single_subject`` or ``multi_subject``.
        method: One of :data:`METHODS`.
        settings: What was chosen, such as ``alpha``; plain values.
        reference_images: Pictures of each subject that the method gets.
        images: How many were scored.
        identity_preservation: Under the corrected protocol.
        prompt_consistency: Raw cosine.
        seconds_per_image: Drawing alone, without personalisation.
        personalization_seconds_per_subject: See :class:`Costs`, as the next two.
        stored_bytes_per_subject: See there.
        peak_memory_bytes: See there.
        unet_calls: Of all images together; calls that images share count once.
        detection_rate: Share of the images with at least as many faces as subjects.
        copy_paste: Over the images for which it is defined.
        identity_published: Under the published protocol: what stands beside published figures.
        by_category: ``identity_preservation`` and ``prompt_consistency`` by category of prompts.
        distances: From real pictures, where they were asked for.
        measures: Further measures of the pictures, by name.
        scored_by: Digest of extractors, their settings and weights: rows of one digest can be compared.
    """

    benchmark: str
    method: str
    settings: Mapping[str, Any]
    reference_images: int
    images: int
    identity_preservation: Estimate
    prompt_consistency: Estimate
    seconds_per_image: float
    personalization_seconds_per_subject: float
    stored_bytes_per_subject: int
    peak_memory_bytes: int
    unet_calls: int
    detection_rate: Estimate | None = None
    copy_paste: Estimate | None = None
    identity_published: Estimate = field(kw_only=True)
    by_category: Mapping[str, Mapping[str, Estimate]] = field(default_factory=dict)
    distances: Distances | None = None
    measures: Mapping[str, Estimate] = field(default_factory=dict)
    scored_by: str | None = None

    def as_dict(self) -> dict[str, Any]:
        """The row as it stands in ``results.json``; what is not known is left out."""
        nested = ("by_category", "measures")
        row = {name: value for name, value in vars(self).items() if value is not None and name not in nested}
        row |= {name: value.as_dict() for name, value in row.items() if isinstance(value, Estimate)}
        row["settings"] = dict(self.settings)
        if self.distances is not None:
            row["distances"] = asdict(self.distances)
        if self.measures:
            row["measures"] = {name: estimate.as_dict() for name, estimate in self.measures.items()}
        if self.by_category:
            row["by_category"] = {
                category: {name: estimate.as_dict() for name, estimate in scores.items()}
                for category, scores in self.by_category.items()
            }
        return row


def most_alike(rows: Sequence[ResultRow], text_only: ResultRow) -> ResultRow:
    """Choose the highest identity among rows that stay true to the prompt.

    Args:
        rows: To choose from, at least one.
        text_only: Text alone on the same cases; :data:`LEAST_CONSISTENCY` of its prompt consistency is to be
            kept. Where no row does, all are chosen from.
    """
    least = LEAST_CONSISTENCY * text_only.prompt_consistency.mean
    faithful = [row for row in rows if row.prompt_consistency.mean >= least]
    return max(faithful or rows, key=lambda row: row.identity_preservation.mean)
