"""Prompt consistency."""

from __future__ import annotations

import pytest
import torch

from fastcomposer.metrics.image_scores import PromptConsistency, prompt_consistency

IMAGES = torch.tensor([[2.0, 0, 0], [0, 3, 4], [1, 0, 0]])
TEXTS = torch.tensor([[1.0, 0, 0], [0, 1, 0], [-3, 0, 4]])
COSINES = [1.0, 0.6, -0.6]  # by hand


def test_raw_cosine_neither_scaled_nor_clipped() -> None:
    torch.testing.assert_close(prompt_consistency(IMAGES, TEXTS), torch.tensor(COSINES))


def test_mean_over_images_of_unequal_batches() -> None:
    metric = PromptConsistency()
    metric.update(IMAGES[:1], TEXTS[:1])
    metric.update(IMAGES[1:], TEXTS[1:])
    assert metric.compute().item() == pytest.approx(sum(COSINES) / 3)
    metric.reset()
    assert metric(IMAGES[:2], TEXTS[:2]).item() == pytest.approx(0.8)


def test_one_text_for_every_image() -> None:
    with pytest.raises(ValueError, match=r"\(3, 3\) for images but \(1, 3\) for texts"):
        prompt_consistency(IMAGES, TEXTS[:1])
