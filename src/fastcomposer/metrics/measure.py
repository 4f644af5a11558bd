"""Measures of one's own, beside those of the protocol."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from torch import Tensor

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
