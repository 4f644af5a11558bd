"""Cosine of features that belong together."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F


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
