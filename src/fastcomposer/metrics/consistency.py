"""Prompt consistency: whether a picture shows what the prompt says."""

from __future__ import annotations

from torch import Tensor

from fastcomposer.metrics.average import PictureMean
from fastcomposer.metrics.cosine import paired_cosine


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
