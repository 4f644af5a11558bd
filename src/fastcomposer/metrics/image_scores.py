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


class PictureMeasure(Protocol):
    """Gives every drawn picture one number.

    Scores are kept and looked up by the class's name, its attributes that are plain values, and its weights
    where it is a module: what decides a score belongs into one of these.
    """

    def __call__(self, images: Tensor, texts: Sequence[str]) -> Tensor:
        """Score pictures.

        Args:
            images: (N, 3, H, W) float in [0, 1].
            texts: Their N prompts, without markers.

        Returns:
            (N,) float; no NaN.
        """


def paired_cosine(image_features: Tensor, other_features: Tensor, other: str) -> Tensor:
    """Cosine of every picture's features with those that belong to it: no scale, no clipping at 0.

    Args:
        image_features: (B, d) of the pictures.
        other_features: (B, d) of what belongs to each.
        other: What that is, for the message.

    Returns:
        (B,) in [-1, 1].

    Raises:
        ValueError: If there is not one for every picture, or the features are not as wide.
    """
    if image_features.shape != other_features.shape:
        raise ValueError(
            f"features of shape {tuple(image_features.shape)} for pictures but "
            f"{tuple(other_features.shape)} for {other}s: one {other} for every picture"
        )
    return F.cosine_similarity(image_features, other_features.to(image_features), dim=-1)


class PictureMean(Metric):
    """Mean of one score per picture, kept as a sum and a count.

    Sums of all processes are added before the division, so that processes may see different numbers of
    pictures. Float64: a thousand scores of a few digits must not drift. NaN before the first picture.
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
        image_features: (B, d) of the pictures.
        text_features: (B, d) of each picture's prompt, without markers.

    Returns:
        (B,) in [-1, 1].

    Raises:
        ValueError: If there is not one text for every picture.
    """
    return paired_cosine(image_features, text_features, "text")


class PromptConsistency(PictureMean):
    """Mean of :func:`prompt_consistency` over pictures."""

    def update(self, image_features: Tensor, text_features: Tensor) -> None:
        """Count pictures with their prompts; arguments as for :func:`prompt_consistency`."""
        self.add(prompt_consistency(image_features, text_features))
