"""Long and narrow images: their padded squares are bounded, those of other images are as ever."""

from __future__ import annotations

import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch.nn import functional
from toy_records import LEFT, add_record

from fastcomposer.data.portraits import read_square
from fastcomposer.data.records import RecordError, read_record
from fastcomposer.data.reference import prepare_reference
from fastcomposer.data.transforms import bounded_square, pad_to_square
from fastcomposer.demo.uploads import PageLimits
from fastcomposer.demo.uploads import read_reference as take
from fastcomposer.evaluation.scoring import read_reference
from fastcomposer.preparation.photos import PhotoFile, UnusablePhotoError, open_photo

LONG = 16_000
READERS: dict[str, Callable[[Path], Any]] = {
    "generate": lambda file: prepare_reference(file, 32),
    "evaluate": lambda file: read_reference(file, 32),
    "fine-tune": lambda file: read_square(file, 32),
    "demo": lambda file: prepare_reference(take(file, PageLimits()).file, 32),
}


@pytest.mark.parametrize("reader", READERS)
def test_reading_a_narrow_image_takes_little_memory(reader: str, tmp_path: Path) -> None:
    file = tmp_path / "narrow.png"
    Image.new("LA", (LONG, 1), (9, 128)).save(file)
    prepare_reference(Image.new("RGB", (8, 4)), 32)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    READERS[reader](file)
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown * 1024 < 600e6  # the square of 16 000² pixels alone has 768 MB


@pytest.mark.parametrize("shape", [(1, 60_000), (833, 60_000), (40_000, 7)])
def test_the_square_of_a_narrow_image_is_bounded(shape: tuple[int, int]) -> None:
    bounded = bounded_square(torch.ones(1, *shape, dtype=torch.uint8))
    side = max(bounded.shape)
    assert side**2 <= max(4096**2, 3 * shape[0] * shape[1]) < (side + 1) ** 2
    assert bounded.shape.index(side) - 1 == shape.index(max(shape))
    assert min(bounded.shape[1:]) == max(1, min(shape) * side // max(shape))
    if side <= 4096:
        square = pad_to_square(torch.ones(1, *shape, dtype=torch.uint8))
        assert square.shape == (1, side, side)
        assert int(square.sum()) == bounded.numel()


@pytest.mark.parametrize("shape", [(4096, 1), (3, 4095), (1700, 5100), (640, 480), (5, 5)])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_other_images_are_padded_as_they_are(shape: tuple[int, int], dtype: torch.dtype) -> None:
    height, width = shape
    image = torch.randint(0, 256, (1, *shape), generator=torch.Generator().manual_seed(0)).to(dtype)
    assert bounded_square(image) is image
    down, right = max(width - height, 0), max(height - width, 0)
    sides = (right // 2, right - right // 2, down // 2, down - down // 2)
    assert torch.equal(pad_to_square(image), functional.pad(image, sides))


def test_narrow_records_are_named(tmp_path: Path) -> None:
    add_record(tmp_path, "a", LEFT)
    read_record(tmp_path, "a")
    file = next(tmp_path.rglob("a.jpg"))
    Image.new("L", (1025, 32)).save(file)
    with pytest.raises(RecordError, match=rf"{file}: image: .*1025 x 32 pixels .*too narrow"):
        read_record(tmp_path, "a")


def test_narrow_photos_are_left_out(tmp_path: Path) -> None:
    file = tmp_path / "x.png"
    Image.new("L", (3300, 100)).save(file)
    with pytest.raises(UnusablePhotoError, match="too narrow: 3300 x 100 pixels"):
        open_photo(PhotoFile("x", file, file.name), 1, None)
    Image.new("L", (3200, 100)).save(file)
    assert open_photo(PhotoFile("x", file, file.name), 1, None).size == (3200, 100)
