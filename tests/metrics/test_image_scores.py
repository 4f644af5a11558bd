"""Scores of single images by hand, and their means."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from fastcomposer.metrics.image_scores import CopyPaste, PromptConsistency, copy_paste, prompt_consistency

IMAGES = torch.tensor([[2.0, 0, 0], [0, 3, 4], [1, 0, 0]])
TEXTS = torch.tensor([[1.0, 0, 0], [0, 1, 0], [-3, 0, 4]])
COSINES = [1.0, 0.6, -0.6]  # by hand


def test_raw_cosine_neither_scaled_nor_clipped() -> None:
    torch.testing.assert_close(prompt_consistency(IMAGES, TEXTS), torch.tensor(COSINES))
    with pytest.raises(ValueError, match=r"\(3, 3\) for images but \(1, 3\) for texts"):
        prompt_consistency(IMAGES, TEXTS[:1])


def test_mean_over_images_of_unequal_batches() -> None:
    metric = PromptConsistency()
    metric.update(COSINES[:1])
    metric.update([*COSINES[1:], None])
    assert metric.compute().item() == pytest.approx(sum(COSINES) / 3)
    metric.reset()
    assert metric(COSINES[:2]).item() == pytest.approx(0.8)
    assert CopyPaste().higher_is_better is False


def at(degrees: float) -> Tensor:
    """A unit vector in the plane."""
    angle = torch.tensor(degrees).deg2rad()
    return torch.stack([angle.cos(), angle.sin()])


def test_copies_are_positive_and_new_images_near_zero() -> None:
    reference, others = at(0), torch.stack([at(60), at(-60)])
    assert copy_paste(at(0), reference, others) == pytest.approx(1 - 0.5)  # the reference itself
    # At 60 degrees it is another image: 0.5 - (1 - 0.5) / 2.
    assert copy_paste(at(60), reference, others) == pytest.approx(0.5 - 0.25)
    assert copy_paste(at(180), reference, others) == pytest.approx(-1 + 0.5)
    assert copy_paste(3 * at(0), reference, others[:1]) == pytest.approx(0.5)
    with pytest.raises(ValueError, match="at least one other image"):
        copy_paste(at(0), reference, others[:0])
