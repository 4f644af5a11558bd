from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from toy_records import photo

from fastcomposer.data.pixels import NeededSize, decode_image
from fastcomposer.data.record import Segment


def needed(factor: int) -> NeededSize:
    """What images of 90 pixels of height need to be shrunk by a factor."""
    return NeededSize(90 // factor, 0, False)


@pytest.mark.parametrize(
    ("height", "least", "factor"),
    [(1024, 512, 2), (1023, 512, 1), (1025, 512, 2), (4096, 512, 8), (9000, 8, 8), (2047, 512, 2), (5, 9, 1)],
)
def test_the_largest_factor_that_leaves_enough(height: int, least: int, factor: int) -> None:
    assert NeededSize(least, 0, False).reduction([], height, 99) == factor


def test_references_keep_their_pixels() -> None:
    segment = Segment(4, (10, 0, 460, 960), 1, "person")
    size = (1024, 1024)
    assert NeededSize(1, 224, False).reduction([segment], *size) == 4  # of its height, 960
    assert NeededSize(1, 224, True).reduction([segment], *size) == 2  # zoomed, a square of its width, 450
    assert NeededSize(1, 224, True, segment_id=3).reduction([segment], *size) == 8  # of another segment
    assert NeededSize(512, 0, False).reduction([segment], *size) == 2
    assert NeededSize(1, 224, True).reduction([replace(segment, bbox=(-900, 0, 300, 300))], *size) == 1


@pytest.mark.parametrize("factor", [1, 2, 4, 8])
def test_a_jpeg_is_decoded_at_a_fraction_of_its_size(tmp_path: Path, factor: int) -> None:
    pixels = photo(3, 90, 117)
    file = tmp_path / "a.jpg"
    Image.fromarray(pixels).save(file, quality=95, subsampling=0)
    image, size, used = decode_image(file.read_bytes(), file, needed=needed(factor))
    assert (size, used) == ((90, 117), factor)
    assert image.shape == (-(-90 // factor), -(-117 // factor), 3)
    full, _, _ = decode_image(file.read_bytes(), file)
    rows, columns = 90 // factor, 117 // factor
    blocks = full[: rows * factor, : columns * factor].reshape(rows, factor, columns, factor, 3)
    assert np.abs(image[:rows, :columns] - blocks.mean(axis=(1, 3))).max() < 3


def test_other_formats_and_tiny_images_are_decoded_at_full_size(tmp_path: Path) -> None:
    Image.fromarray(photo(0, 90, 40)).save(tmp_path / "a.jpg", format="PNG")
    image, _, factor = decode_image((tmp_path / "a.jpg").read_bytes(), tmp_path, needed=needed(4))
    assert (image.shape, factor) == ((90, 40, 3), 1)
    Image.fromarray(photo(0, 90, 3)).save(tmp_path / "b.jpg")
    assert decode_image((tmp_path / "b.jpg").read_bytes(), tmp_path, needed=needed(8))[2] == 1
