"""What images of several people are judged by beside identity: confusion, coverage, head count, copying."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fastcomposer.metrics.faces import Faces
from fastcomposer.metrics.image_scores import ScoreMean
from fastcomposer.utils.matching import optimal_pairs


@dataclass(frozen=True)
class SubjectScore:
    """Who is in one image.

    Attributes:
        confusion: Mean over references of the margin between the best and the second-best matching face,
            relative to the best; high is good. ``None`` with fewer than two faces.
        coverage: 1 where every reference has a face of its own above the threshold and none has two, else 0.
            ``None`` without a threshold.
        duplicates: 1 where a reference has two faces above it, else 0. ``None`` without a threshold.
        head_count: 1 where there are as many faces as references, else 0.
    """

    confusion: float | None
    coverage: float | None
    duplicates: float | None
    head_count: float


def subject_score(faces: Faces, references: Tensor, threshold: float | None) -> SubjectScore:
    """Score one image with K subjects.

    The margin is that of ID-Conf (Cheng et al. 2025, "UMO", arXiv 2509.06818):
    ``(s₁ − s₂) / s₁`` of a reference's similarities with the faces in falling order, 0 where ``s₁ ≤ 0`` and
    ``s₂`` counted as 0 where it is negative.

    Args:
        faces: What was found in the image.
        references: (K, d) unit vectors of the subjects' reference faces.
        threshold: Similarity from which two faces count as one person's, see :func:`gallery_threshold`.
    """
    similarity = (references.cpu().double() @ faces.embeddings.cpu().double().T).numpy()  # (K, faces)
    margins = None
    if len(faces) > 1:
        best = np.sort(similarity, axis=1)[:, :-3:-1].clip(min=0)
        margins = [1 - second / first if first > 0 else 0.0 for first, second in best]
    coverage = duplicates = None
    if threshold is not None:
        matched = [similarity[subject, face] >= threshold for face, subject in optimal_pairs(similarity.T)]
        duplicates = float(((similarity >= threshold).sum(axis=1) > 1).any())
        coverage = float(sum(matched) == len(references) and not duplicates)
    confusion = None if margins is None else float(np.mean(margins))
    return SubjectScore(confusion, coverage, duplicates, float(len(faces) == len(references)))


def gallery_threshold(galleries: Sequence[Tensor]) -> float | None:
    """Threshold of equal error among images of several people, see :func:`equal_error_threshold`.

    Args:
        galleries: For each person (M, d) unit vectors of the faces in its images.

    Returns:
        ``None`` where nobody has two images, or there is one person only.
    """
    vectors = torch.cat(list(galleries)).cpu().double()
    person = torch.arange(len(galleries)).repeat_interleave(torch.tensor([len(g) for g in galleries]))
    first, second = torch.triu_indices(len(vectors), len(vectors), offset=1)
    similarity, same = (vectors @ vectors.T)[first, second], person[first] == person[second]
    if same.all() or not same.any():
        return None
    return equal_error_threshold(similarity[same].tolist(), similarity[~same].tolist())


def equal_error_threshold(same: Sequence[float], different: Sequence[float]) -> float:
    """Similarity at which as many of one person's pairs, as a fraction, lie below as of other people's above.

    In the middle between the pairs next to it: where nothing overlaps, in the middle of the gap.

    Args:
        same: Similarities of two faces of one person, from the embedder's own verification.
        different: Those of different people's.

    Raises:
        ValueError: If one of them is empty.
    """
    if not len(same) or not len(different):
        raise ValueError("a verification threshold needs pairs of the same and of different people")
    candidates = np.unique(np.concatenate([same, different]))
    misses = np.searchsorted(np.sort(same), candidates) / len(same)
    false_alarms = 1 - np.searchsorted(np.sort(different), candidates) / len(different)
    best = int(np.abs(misses - false_alarms).argmin())
    return float(candidates[max(best - 1, 0) : best + 1].mean())


def copy_paste_ratio(generated: Tensor, reference: Tensor, truth: Tensor) -> float:
    """Whether a face is nearer to the reference image than to the person: MultiID-Bench's measure.

    ``(θ_gt − θ_gr) / θ_tr`` (Xu et al. 2025, "WithAnyone", arXiv 2510.14975), angles between unit vectors of
    the generated face g, the reference r and another image t of the person; the largest where copied, 1.

    Args:
        generated: (d,) unit vector.
        reference: (d,).
        truth: (d,).
    """
    g, r, t = (value.cpu().double() for value in (generated, reference, truth))

    def angle(one: Tensor, other: Tensor) -> float:
        return float(torch.arccos((one @ other).clamp(-1, 1)))

    return (angle(g, t) - angle(g, r)) / max(angle(t, r), 1e-6)


class Confusion(ScoreMean):
    """Mean of :attr:`SubjectScore.confusion`."""


class Coverage(ScoreMean):
    """Mean of :attr:`SubjectScore.coverage`."""


class Duplicates(ScoreMean):
    """Mean of :attr:`SubjectScore.duplicates`."""

    higher_is_better = False


class HeadCount(ScoreMean):
    """Mean of :attr:`SubjectScore.head_count`."""


class CopyPasteRatio(ScoreMean):
    """Mean of :func:`copy_paste_ratio` over the images for which it is defined."""

    higher_is_better = False


SUBJECT_METRICS: dict[str, type[ScoreMean]] = {
    "confusion": Confusion,
    "coverage": Coverage,
    "duplicates": Duplicates,
    "head_count": HeadCount,
    "copy_paste_ratio": CopyPasteRatio,
}
"""What averages each score of an image with several people, by the name of its column."""
