"""Scores of single images, and the torchmetrics that average them over all processes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F
from torchmetrics import Metric

COLUMN = "measure."
"""What the column of a measure's scores begins with."""


class ImageMeasure(Protocol):
    """Gives every generated image one number.

    Scores are kept and looked up by the class's name, its attributes that are plain values, and its weights
    where it is a module: what determines a score belongs into one of these.
    """

    def __call__(self, images: Tensor, texts: Sequence[str]) -> Tensor:
        """Score images.

        Args:
            images: (N, 3, H, W) float in [0, 1].
            texts: Their N prompts, without markers.

        Returns:
            (N,) float; no NaN.
        """


def prompt_consistency(image_features: Tensor, text_features: Tensor) -> Tensor:
    """Raw cosine of CLIP features: no scale, no clipping at 0 (docs/method.md, Evaluation protocol).

    Args:
        image_features: (B, d) of the images.
        text_features: (B, d) of each image's prompt, without markers.

    Returns:
        (B,) in [-1, 1].

    Raises:
        ValueError: If there is not one text for every image.
    """
    if image_features.shape != text_features.shape:
        raise ValueError(
            f"features of shape {tuple(image_features.shape)} for images but "
            f"{tuple(text_features.shape)} for texts: one text for every image"
        )
    return F.cosine_similarity(image_features, text_features.to(image_features), dim=-1)


def copy_paste(output: Tensor, reference: Tensor, others: Tensor) -> float:
    """How much closer a face is to the reference image than to other images of that person.

    ``cos(output, reference) − mean cos(output, others)``: about 0 for a new image of the person, positive
    where the reference's own expression, light and pose came along.

    Args:
        output: (d,) embedding of the person's face in the output.
        reference: (d,) embedding of the reference.
        others: (M, d) embeddings of other images of that person, at least one.

    Returns:
        A number in [-2, 2].

    Raises:
        ValueError: If there is no other image.
    """
    if not len(others):
        raise ValueError("copy-paste needs at least one other image of the person than the reference")
    cosine = F.cosine_similarity(output[None].double(), torch.cat([reference[None], others]).double())
    return float(cosine[0] - cosine[1:].mean())


class ScoreMean(Metric):
    """Mean of scores, kept as a sum and a count; NaN before the first score.

    Sums and counts of all processes are added before the division, so that processes may see different
    numbers of images. Float64: a thousand scores of a few digits must not drift.
    """

    is_differentiable = False
    higher_is_better: bool | None = True
    full_state_update = False
    total: Tensor
    count: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("total", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("count", torch.zeros((), dtype=torch.long), dist_reduce_fx="sum")

    def update(self, scores: Iterable[float | None]) -> None:
        """Count scores; ``None``, where a score is not defined, is left out."""
        for score in scores:
            if score is not None:
                self.total += score
                self.count += 1

    def compute(self) -> Tensor:
        """The mean, a scalar."""
        return self.total / self.count


class IdentityPreservation(ScoreMean):
    """Mean of :func:`~fastcomposer.metrics.identity.identity_score`, over images or over subjects."""


class PromptConsistency(ScoreMean):
    """Mean of :func:`prompt_consistency` over images."""


class CopyPaste(ScoreMean):
    """Mean of :func:`copy_paste` over the images for which it is defined."""

    higher_is_better = False
