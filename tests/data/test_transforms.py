from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as tvf
from toy_records import photo

from fastcomposer.data.segment_crop import cut_out
from fastcomposer.data.transforms import (
    PUBLISHED,
    ReferenceAugmentation,
    ReferenceTransform,
    SeparableBlur,
    SeparableElastic,
    TargetTransform,
    isolated_rng,
    pad_to_square,
    sample_rng,
)

STILL = ReferenceAugmentation(zoom=0, rotate=0, jitter=0, blur=0, grey=0, flip=0, elastic=0)


def crop_of(seed: int, height: int, width: int) -> torch.Tensor:
    return torch.from_numpy(photo(seed, height, width)).permute(2, 0, 1).contiguous()


# --- references --------------------------------------------------------------------------------------------


def test_the_published_augmentation() -> None:
    assert ReferenceAugmentation(
        zoom=0.5, max_zoom=2.0, rotate=0.75, degrees=30.0, jitter=0.5, jitter_strength=0.5, blur=0.5,
        blur_kernel=5, blur_sigma=[0.1, 2.0], grey=0.1, flip=0.5, elastic=0.5,
    ) == PUBLISHED  # type: ignore[arg-type]  # fmt: skip


def test_a_cut_out_keeps_its_segment_and_is_noise_elsewhere() -> None:
    image = np.full((40, 40, 3), 9, dtype=np.uint8)
    pixels = np.zeros((40, 40), dtype=np.int32)
    pixels[10:20, 5:15] = 3
    crop = cut_out(image, pixels, 3, (5, 10, 25, 30), sample_rng(0, 0, 0))
    assert crop.shape == (3, 20, 20)
    assert (crop[:, :10, :10] == 9).all()
    noise = crop[:, 10:].flatten().float()
    assert abs(noise.mean() - 127.5) < 12
    assert abs(noise.std() - 73.9) < 6  # of a uniform distribution over 256 values
    assert (crop[:, :10, 10:] != 9).float().mean() > 0.95


def test_boxes_beyond_the_image_are_clamped() -> None:
    crop = cut_out(photo(0), np.ones((24, 24), dtype=np.uint8), 1, (-5, 20, 8, 90), sample_rng(0, 0, 0))
    assert torch.equal(crop, torch.from_numpy(photo(0)[20:24, 0:8]).permute(2, 0, 1))


def test_zoom_keeps_the_top_square_of_a_tall_image() -> None:
    crop = crop_of(1, 40, 20)
    plain = ReferenceTransform(16, None)
    once = ReferenceTransform(16, replace(STILL, zoom=1.0, max_zoom=1.0))
    assert torch.equal(once(crop, 5), plain(crop[:, :20], 0))
    wide = crop_of(1, 20, 40)
    assert torch.equal(once(wide, 5), plain(wide, 0))
    twice = ReferenceTransform(16, replace(STILL, zoom=1.0, max_zoom=2.0))(crop, 5)
    assert (twice - plain(crop[:, :20], 0)).abs().max() < 0.03  # enlarging changes the sampling only


@pytest.mark.parametrize("name", ["rotate", "jitter", "blur", "grey", "flip", "elastic"])
def test_each_step_has_a_probability_of_its_own(name: str) -> None:
    crop = crop_of(2, 32, 32)
    plain = ReferenceTransform(32, None)(crop, 0)
    sometimes = ReferenceTransform(32, replace(STILL, **{name: 0.5}))
    changed = sum(not torch.equal(sometimes(crop, seed), plain) for seed in range(40))
    assert 10 <= changed <= 30
    always = ReferenceTransform(32, replace(STILL, **{name: 1.0}))(crop, 1)
    assert not torch.equal(always, plain)
    assert 0 <= always.min() < always.max() <= 1
    if name == "flip":
        assert torch.equal(always, plain.flip(-1))
    if name == "grey":
        assert torch.equal(always[0], always[1])


# --- against torchvision -----------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(32, 32), (25, 40)])
def test_elastic_displacements_are_torchvisions(size: tuple[int, int]) -> None:
    displacements = []
    for transform in (SeparableElastic(50.0, 5.0), v2.ElasticTransform(50.0, 5.0)):
        with isolated_rng(11):
            displacements.append(transform.make_params([torch.zeros(3, *size)])["displacement"])
    torch.testing.assert_close(*displacements, rtol=0, atol=2e-6)
    assert displacements[0].abs().max() > 0.01


@pytest.mark.parametrize("sigma", [0.1, 0.7, 2.0])
@pytest.mark.parametrize("kernel", [3, 5])
def test_the_blur_is_torchvisions_to_a_level(sigma: float, kernel: int) -> None:
    image = torch.randint(0, 256, (3, 48, 40), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    ours = SeparableBlur(kernel, (sigma, sigma))(image)
    difference = (ours.int() - tvf.gaussian_blur(image, [kernel, kernel], [sigma, sigma]).int()).abs()
    assert ours.dtype == torch.uint8
    assert difference.max() <= 1 and (difference > 0).float().mean() < 2e-3


# --- targets -----------------------------------------------------------------------------------------------


def columns(width: int, *, height: int) -> torch.Tensor:
    """An image whose every column has its own value."""
    return (torch.arange(width, dtype=torch.uint8) * 10).expand(3, height, width).clone()


@pytest.mark.parametrize("flip", [False, True])
def test_the_centre_of_a_wide_image_is_kept(flip: bool) -> None:
    segments = np.zeros((8, 14), dtype=np.uint8)
    segments[:, 3:5] = 1  # the first two columns of the centre
    segments[2, 12] = 9  # outside it
    target, kept = TargetTransform(8)(columns(14, height=8), segments, [1, 9], flip=flip)
    wanted = torch.arange(3, 11) * 10
    row = [1, 1, 0, 0, 0, 0, 0, 0]
    assert torch.allclose(target[1, 5], (wanted.flip(0) if flip else wanted) / 127.5 - 1)
    assert kept[0].int().tolist() == [row[::-1] if flip else row] * 8
    assert kept[1].sum() == 0


@pytest.mark.parametrize("size", [(24, 33), (16, 16), (64, 64), (100, 37), (37, 36), (333, 777), (1023, 512)])
def test_a_target_is_resized_with_antialiasing_and_its_masks_stay_exact(size: tuple[int, int]) -> None:
    height, width = size
    image = crop_of(5, height, width)
    segments = np.random.default_rng(0).integers(0, 3, size, dtype=np.uint16)
    target, kept = TargetTransform(16)(image, segments, [2, 1], flip=False)
    masks = torch.stack([torch.from_numpy(segments == number) for number in (2, 1)]).to(torch.uint8)
    if height > width:
        image, masks = pad_to_square(image), pad_to_square(masks)
    scaled = 16 if height > width else 16 * width // height
    left = (scaled - 16) // 2
    resized = tvf.resize(image, [16, scaled], antialias=True)[:, :, left : left + 16]
    assert torch.equal(target, resized.float() / 127.5 - 1)
    assert target.is_contiguous()
    nearest = tvf.resize(masks, [16, scaled], v2.InterpolationMode.NEAREST_EXACT)[:, :, left : left + 16]
    assert torch.equal(kept, nearest.bool())


# --- images shrunk when decoded --------------------------------------------------------------------------


@pytest.mark.parametrize("factor", [2, 4, 8])
def test_a_shrunken_cut_out_shows_the_same(factor: int) -> None:
    image, segments = photo(3, 176, 144), np.zeros((176, 144), dtype=np.int32)
    segments[16:160, 32:128] = 4
    small = np.asarray(Image.fromarray(image).reduce(factor))
    crops = [
        cut_out(pixels, segments, 4, (32, 16, 128, 160), sample_rng(0, 0, 0), by)
        for pixels, by in ((image, 1), (small, factor))
    ]
    assert crops[1].shape == (3, 144 // factor, 96 // factor)
    whole, shrunken = (ReferenceTransform(16, None)(crop, 0) for crop in crops)
    assert (whole - shrunken)[:, :, 4:12].abs().max() < 0.02  # between the padded sides


def test_an_odd_border_is_left_out_of_a_shrunken_cut_out() -> None:
    segments = np.full((101, 83), 4, dtype=np.uint8)
    crop = cut_out(photo(0, 51, 42), segments, 4, (10, 20, 200, 200), sample_rng(0, 0, 0), 2)
    assert torch.equal(crop, torch.from_numpy(photo(0, 51, 42)[10:50, 5:41]).permute(2, 0, 1))


@pytest.mark.parametrize("factor", [2, 4, 8])
def test_noise_in_a_shrunken_cut_out_is_distributed_as_shrunken_noise(factor: int) -> None:
    segments = np.zeros((256, 256), dtype=np.uint8)
    blank = np.zeros((256 // factor, 256 // factor, 3), dtype=np.uint8)
    crops = [
        cut_out(blank, segments, 1, (0, 0, 256, 256), sample_rng(0, 0, number), factor) for number in range(8)
    ]
    values = torch.stack(crops).float()
    blocks = np.random.default_rng(1).integers(0, 256, (8000, factor**2), dtype=np.uint8)
    means = blocks.mean(axis=1)
    assert abs(values.mean() - 127.5) < 0.7
    assert values.std() == pytest.approx(means.std(), rel=0.02)
    quantiles = [0.01, 0.25, 0.75, 0.99]
    assert np.quantile(values, quantiles) == pytest.approx(np.quantile(means, quantiles), abs=2)


def test_size_conditions() -> None:
    target = TargetTransform(512)
    assert target.sizes(1024, 1536) == (1024, 1536, 0, 128, 512, 512)
    assert target.sizes(1500, 1000) == (1500, 1000, 0, 0, 512, 512)
    assert target.sizes(300, 300) == (300, 300, 0, 0, 512, 512)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("zoom", 1.5),
        ("max_zoom", 0.5),
        ("degrees", -10),
        ("blur_kernel", 4),
        ("blur_sigma", [2.0, 1.0]),
        ("blur_sigma", [0.1]),
        ("elastic_sigma", 0),
    ],
)
def test_settings_out_of_range_are_named(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=rf"data\.module\.augmentation\s.*{name}"):
        ReferenceAugmentation(**{name: value})
