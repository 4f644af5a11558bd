"""Scores of single images and their exact means: prompt consistency, and measures of one's own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F
from torchmetrics import Metric

COLUMN = "measure."
"""What the column of a measure's scores begins with."""


class ImageMeasure(Protocol):
    """Gives every drawn image one number.

    Scores are kept and looked up by the class's name, its attributes that are plain values, and its weights
    where it is a module: what decides a score belongs into one of these.
    """

    def __call__(self, images: Tensor, texts: Sequence[str]) -> Tensor:
        """Score images.

        Args:
            images: (N, 3, H, W) float in [0, 1].
            texts: Their N prompts, without markers.

        Returns:
            (N,) float; no NaN.
        """


def paired_cosine(image_features: Tensor, other_features: Tensor, other: str) -> Tensor:
    """Cosine of every image's features with those that belong to it: no scale, no clipping at 0.

    Args:
        image_features: (B, d) of the images.
        other_features: (B, d) of what belongs to each.
        other: What that is, for the message.

    Returns:
        (B,) in [-1, 1].

    Raises:
        ValueError: If there is not one for every image, or the features are not as wide.
    """
    if image_features.shape != other_features.shape:
        raise ValueError(
            f"features of shape {tuple(image_features.shape)} for images but "
            f"{tuple(other_features.shape)} for {other}s: one {other} for every image"
        )
    return F.cosine_similarity(image_features, other_features.to(image_features), dim=-1)


class ImageMean(Metric):
    """Mean of one score per image, kept as a sum and a count.

    Sums of all processes are added before the division, so that processes may see different numbers of
    images. Float64: a thousand scores of a few digits must not drift. NaN before the first image.
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

    def add(self, scores: Tensor) -> None:
        """Count scores (B,)."""
        self.total += scores.detach().sum(dtype=torch.float64).to(self.total.device)
        self.count += len(scores)

    def compute(self) -> Tensor:
        """The mean, a scalar."""
        return self.total / self.count


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
    return paired_cosine(image_features, text_features, "text")


class PromptConsistency(ImageMean):
    """Mean of :func:`prompt_consistency` over images."""

    def update(self, image_features: Tensor, text_features: Tensor) -> None:
        """Count images with their prompts; arguments as for :func:`prompt_consistency`."""
        self.add(prompt_consistency(image_features, text_features))
