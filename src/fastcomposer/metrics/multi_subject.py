"""What images of several people are judged by beside identity: confusion, coverage, head count, copying."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torchmetrics import Metric

from fastcomposer.metrics.faces import Faces
from fastcomposer.utils.matching import optimal_pairs


@dataclass(frozen=True)
class SubjectScore:
    """Who is in one image.

    Attributes:
        confusion: Mean over references of the margin between the best and the second-best matching face,
            relative to the best; high is good. ``None`` with fewer than two faces.
        covered: Whether every reference has a face of its own above the threshold.
        duplicated: Whether any reference has two faces above it.
        head_count: Whether there are as many faces as references.
    """

    confusion: float | None
    covered: bool
    duplicated: bool
    head_count: bool


def subject_score(faces: Faces, references: Tensor, threshold: float) -> SubjectScore:
    """Score one image with K subjects.

    The margin is that of ID-Conf (Cheng et al. 2025, "UMO", arXiv 2509.06818):
    ``(s₁ − s₂) / s₁`` of a reference's similarities with the faces in falling order, 0 where ``s₁ ≤ 0`` and
    ``s₂`` counted as 0 where it is negative.

    Args:
        faces: What was found in the image.
        references: (K, d) unit vectors of the subjects' reference faces.
        threshold: Similarity from which two faces count as one person's, see :func:`equal_error_threshold`.
    """
    similarity = (references.cpu().double() @ faces.embeddings.cpu().double().T).numpy()  # (K, faces)
    margins = None
    if len(faces) > 1:
        best = np.sort(similarity, axis=1)[:, :-3:-1].clip(min=0)
        margins = [1 - second / first if first > 0 else 0.0 for first, second in best]
    pairs = optimal_pairs(similarity.T)
    matched = {subject for face, subject in pairs if similarity[subject, face] >= threshold}
    return SubjectScore(
        confusion=None if margins is None else float(np.mean(margins)),
        covered=len(matched) == len(references),
        duplicated=bool((similarity >= threshold).sum(axis=1).max(initial=0) > 1),
        head_count=len(faces) == len(references),
    )


def equal_error_threshold(same: Sequence[float], different: Sequence[float]) -> float:
    """Similarity at which as large a share of one person's pairs lies below as of different people's above.

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
    return float(candidates[np.abs(misses - false_alarms).argmin()])


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


class SubjectCoverage(Metric):
    """Means of :func:`subject_score` over images of several people.

    Args:
        threshold: See :func:`subject_score`.
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False
    sums: Tensor
    counts: Tensor

    def __init__(self, threshold: float) -> None:
        super().__init__()
        self.threshold = threshold
        self.add_state("sums", torch.zeros(4, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("counts", torch.zeros(4, dtype=torch.long), dist_reduce_fx="sum")

    def update(self, faces: Sequence[Faces], references: Sequence[Tensor]) -> None:
        """Count images.

        Args:
            faces: What was found in each image.
            references: For each image, the reference faces of its subjects, (K_i, d).
        """
        for found, subjects in zip(faces, references, strict=True):
            score = subject_score(found, subjects, self.threshold)
            alone = score.covered and not score.duplicated
            values = (score.confusion, alone, score.duplicated, score.head_count)
            for number, value in enumerate(values):
                if value is not None:
                    self.sums[number] += float(value)
                    self.counts[number] += 1

    def compute(self) -> dict[str, Tensor]:
        """Scalars ``confusion``, ``coverage``, ``duplicates`` and ``head_count``; NaN before the first image.

        ``coverage`` is the share of images in which every reference has its own face and nobody appears
        twice.
        """
        means = self.sums / self.counts
        return dict(zip(("confusion", "coverage", "duplicates", "head_count"), means, strict=True))
