"""The loader against its plain twin, which does every step on the whole image."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from toy_records import CAPTION, LEFT, RIGHT, photo, segment_map

from fastcomposer.bench.plain_loading import plain_augmentation, plain_sample
from fastcomposer.data.dataset import SubjectDataset
from fastcomposer.data.records import Record, read_record, write_ids, write_record
from fastcomposer.data.sample_settings import SampleSettings
from fastcomposer.data.transforms import PUBLISHED

LARGE = (320, 352)


@pytest.fixture
def large(tmp_path: Path) -> Path:
    """One large image of two people, who fill their boxes, whose edges a quarter of the size keeps."""
    left, right = replace(LEFT, bbox=(20, 32, 152, 300)), replace(RIGHT, bbox=(180, 40, 332, 312))
    pixels = segment_map(left, right, height=LARGE[0], width=LARGE[1])
    write_record(tmp_path, Record("0000000", CAPTION, (left, right)), photo(4, *LARGE), pixels)
    write_ids(tmp_path, "train", ["0000000"])
    return tmp_path


@pytest.fixture
def build(tokenizer: Any) -> Callable[..., SubjectDataset]:
    def make(root: Path, **changes: Any) -> SubjectDataset:
        settings: dict[str, Any] = {"flip": 0.0, "augmentation": None, "max_subjects": 2} | changes
        return SubjectDataset(root, "train", tokenizer, SampleSettings(64, 56, **settings))

    return make


def test_where_nothing_is_random_both_are_equal(large: Path, build: Callable[..., SubjectDataset]) -> None:
    dataset = build(large, scaled_decoding=False)
    fast, plain = dataset[0], plain_sample(dataset, 0, plain_augmentation(None, 56))
    for name in ("pixel_values", "input_ids", "subject_pixel_values", "subject_token_idx", "subject_masks"):
        assert torch.equal(getattr(fast, name), getattr(plain, name)), name


def test_scaled_decoding_changes_pixels_by_a_level(large: Path, build: Callable[..., SubjectDataset]) -> None:
    dataset = build(large)
    assert read_record(large, "0000000", None, dataset._target_needs).reduction == 4
    fast, plain = dataset[0], plain_sample(dataset, 0, plain_augmentation(None, 56))
    assert torch.equal(fast.subject_masks, plain.subject_masks)
    assert (fast.pixel_values - plain.pixel_values).abs().mean() < 1.5 / 127.5
    difference = (fast.subject_pixel_values - plain.subject_pixel_values).abs()
    assert difference.mean() < 1.5 / 255


def statistics(samples: list[torch.Tensor]) -> torch.Tensor:
    """Mean and deviation of each colour in the middle and at the border, then of neighbours' differences."""
    pixels = torch.cat(samples).flatten(0, 1)  # (N, 3, 56, 56)
    middle, border = pixels[:, :, 16:40, 16:40], pixels[:, :, :6]
    steps = pixels.diff(dim=-1).abs()
    parts = [part.transpose(0, 1).flatten(1) for part in (middle, border, steps)]
    return torch.stack([value for part in parts for value in (part.mean(dim=1), part.std(dim=1))])


@pytest.mark.parametrize("scaled_decoding", [True, False])
def test_augmented_references_are_of_one_distribution(
    large: Path, build: Callable[..., SubjectDataset], scaled_decoding: bool
) -> None:
    record = read_record(large, "0000000")
    heights, widths = np.mgrid[: LARGE[0], : LARGE[1]]
    rounded = record.segment_map * ((heights - 165) ** 2 / 130**2 + (widths % 176 - 85) ** 2 / 70**2 <= 1)
    write_record(large, record.record, record.image, rounded)  # with noise in the corners of the boxes
    dataset = build(large, augmentation=PUBLISHED, scaled_decoding=scaled_decoding)
    plain = plain_augmentation(PUBLISHED, 56)
    torch.manual_seed(0)
    draws = 60
    fast = [dataset[(epoch, 0)].subject_pixel_values for epoch in range(draws)]
    twin = [plain_sample(dataset, 0, plain).subject_pixel_values for _ in range(draws)]
    difference = (statistics(fast) - statistics(twin)).abs()
    assert difference[:4].max() < 0.05  # of colours
    assert difference[4:].max() < 0.01  # of noise and detail
