"""Faster transforms against the library's own."""

from __future__ import annotations

import pytest
import torch
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as tvf
from toy_records import photo

from fastcomposer.data.equivalents import QuickColorJitter, SeparableBlur, SeparableElastic, shift_hue
from fastcomposer.data.transforms import isolated_rng


def noise(height: int = 48, width: int = 40) -> torch.Tensor:
    """Random colours, greys and black among them."""
    pixels = torch.randint(0, 256, (3, height, width), generator=torch.Generator().manual_seed(0))
    pixels[:, :4] = pixels[:1, :4]
    pixels[:, 4:6] = 0
    return pixels.to(torch.uint8)


def levels(ours: torch.Tensor, theirs: torch.Tensor) -> tuple[int, float]:
    """Most levels of 255 that bytes differ by, and the share of bytes that differ."""
    difference = (ours.int() - theirs.int()).abs()
    return int(difference.max()), float((difference > 0).float().mean())


@pytest.mark.parametrize("size", [(32, 32), (25, 40)])
def test_smoothed_displacements(size: tuple[int, int]) -> None:
    image = [torch.zeros(3, *size)]
    displacements = []
    for transform in (SeparableElastic(50.0, 5.0), v2.ElasticTransform(50.0, 5.0)):
        with isolated_rng(11):
            displacements.append(transform.make_params(image)["displacement"])
    torch.testing.assert_close(*displacements, rtol=0, atol=2e-6)
    assert displacements[0].abs().max() > 0.01


@pytest.mark.parametrize("sigma", [0.1, 0.7, 2.0])
@pytest.mark.parametrize("kernel", [3, 5])
def test_blur(sigma: float, kernel: int) -> None:
    ours = SeparableBlur(kernel, (sigma, sigma))(noise())
    most, share = levels(ours, tvf.gaussian_blur(noise(), [kernel, kernel], [sigma, sigma]))
    assert ours.dtype == torch.uint8
    assert most <= 1 and share < 2e-3


@pytest.mark.parametrize("factor", [-0.5, -0.31, 0.0, 0.02, 0.25, 0.5])
def test_hue(factor: float) -> None:
    ours = shift_hue(noise(), factor)
    most, share = levels(ours, tvf.adjust_hue(noise(), factor))
    assert ours.dtype == torch.uint8
    assert most <= 1 and share < 2e-3


def test_jitter_draws_the_same_and_does_the_same() -> None:
    image = torch.from_numpy(photo(2)).permute(2, 0, 1)
    for seed in range(24):  # one of each order of the four steps, more or less
        changed = []
        for transform in (QuickColorJitter(0.5, 0.5, 0.5, 0.5), v2.ColorJitter(0.5, 0.5, 0.5, 0.5)):
            with isolated_rng(seed):
                changed.append(transform(image))
                changed.append(torch.rand(()))
        ours, after, theirs, also_after = changed
        assert after == also_after
        # A step after the hue may widen a difference of one level.
        assert (ours.int() - theirs.int()).abs().max() <= 3
        assert (ours.int() - theirs.int()).abs().float().mean() < 0.02
