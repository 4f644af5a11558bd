from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from toy_records import photo

from fastcomposer.data.pixels import decode_image, reduction_for


@pytest.mark.parametrize(
    ("size", "needed", "factor"),
    [(1024, 512, 2), (1023, 512, 1), (1025, 512, 2), (4096, 512, 8), (9000, 8, 8), (2047, 512, 2), (5, 9, 1)],
)
def test_the_largest_factor_that_leaves_enough(size: int, needed: int, factor: int) -> None:
    assert reduction_for(size, needed) == factor


@pytest.mark.parametrize("factor", [1, 2, 4, 8])
def test_a_jpeg_is_decoded_at_a_part_of_its_size(tmp_path: Path, factor: int) -> None:
    pixels = photo(3, 90, 117)
    file = tmp_path / "a.jpg"
    Image.fromarray(pixels).save(file, quality=95, subsampling=0)
    image, size, used = decode_image(file.read_bytes(), file, lambda height, width: factor)
    assert (size, used) == ((90, 117), factor)
    assert image.shape == (-(-90 // factor), -(-117 // factor), 3)
    whole, _, _ = decode_image(file.read_bytes(), file)
    rows, columns = 90 // factor, 117 // factor
    blocks = whole[: rows * factor, : columns * factor].reshape(rows, factor, columns, factor, 3)
    assert np.abs(image[:rows, :columns] - blocks.mean(axis=(1, 3))).max() < 3


def test_what_cannot_be_shrunk_is_decoded_whole(tmp_path: Path) -> None:
    Image.fromarray(photo(0, 40, 40)).save(tmp_path / "a.jpg", format="PNG")
    image, _, factor = decode_image((tmp_path / "a.jpg").read_bytes(), tmp_path, lambda height, width: 4)
    assert (image.shape, factor) == ((40, 40, 3), 1)
    Image.fromarray(photo(0, 40, 3)).save(tmp_path / "b.jpg")
    assert decode_image((tmp_path / "b.jpg").read_bytes(), tmp_path, lambda height, width: 8)[2] == 1


def test_other_colours_become_rgb(tmp_path: Path) -> None:
    Image.fromarray(photo(0)).convert("L").save(tmp_path / "a.jpg")
    image, _, _ = decode_image((tmp_path / "a.jpg").read_bytes(), tmp_path)
    assert image.shape == (24, 24, 3)
    assert (image[..., 0] == image[..., 2]).all()
