"""Which files are accepted as reference images."""

from __future__ import annotations

import base64
import io
from pathlib import Path

import pytest
from PIL import Image

from fastcomposer.demo.uploads import (
    PageLimits,
    Reference,
    RefusedImageError,
    divided,
    joined,
    moved,
    read_reference,
)
from fastcomposer.utils.settings import file_digest

LIMITS = PageLimits(megabytes=0.01, megapixels=0.02)


def test_an_image_is_taken_upright(tmp_path: Path) -> None:
    file = tmp_path / "lying.jpg"
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    image = Image.new("RGB", (120, 60), "red")
    image.paste("blue", (0, 0, 30, 60))
    image.save(file, exif=exif)
    taken = read_reference(file, LIMITS)
    assert (taken.file, taken.name, taken.digest) == (file, "lying.jpg", file_digest(file))
    thumbnail = base64.b64decode(taken.thumbnail.partition("base64,")[2])
    upright = Image.open(io.BytesIO(thumbnail)).convert("RGB")
    assert upright.size == (60, 120)
    red, _, blue = upright.getpixel((30, 10))  # type: ignore[misc]
    assert blue > 200 > red


def test_files_beyond_the_limit_are_refused_unread(tmp_path: Path) -> None:
    (tmp_path / "big.png").write_bytes(b"x" * 25_000)
    with pytest.raises(RefusedImageError, match=r"big\.png is too large: 0 MB\. .* up to 0\.01 MB"):
        read_reference(tmp_path / "big.png", LIMITS)


def test_too_many_pixels_are_refused_by_the_header(tmp_path: Path) -> None:
    Image.new("1", (2000, 1500)).save(tmp_path / "wide.png", optimize=True)
    with pytest.raises(RefusedImageError, match=r"has too many pixels \(2000 × 1500\)"):
        read_reference(tmp_path / "wide.png", LIMITS)
    Image.new("1", (20_000, 20_000)).save(tmp_path / "bomb.png")  # Pillow itself refuses these
    with pytest.raises(RefusedImageError, match="has too many pixels"):
        read_reference(tmp_path / "bomb.png", PageLimits())


@pytest.mark.parametrize("content", [b"", b"hello", b"\x89PNG\r\n\x1a\nbroken", b"<svg/>", "cut"])
def test_unreadable_images_are_refused(tmp_path: Path, content: bytes | str) -> None:
    data = io.BytesIO()
    Image.effect_noise((64, 64), 50).save(data, "PNG")
    (tmp_path / "a.png").write_bytes(content if isinstance(content, bytes) else data.getvalue()[:1500])
    with pytest.raises(RefusedImageError, match=r"^a\.png cannot be read as an image"):
        read_reference(tmp_path / "a.png", LIMITS)


def test_transparent_images_are_refused(tmp_path: Path) -> None:
    Image.new("RGBA", (8, 8)).save(tmp_path / "clear.png")
    with pytest.raises(RefusedImageError, match="fully transparent"):
        read_reference(tmp_path / "clear.png", LIMITS)


def test_moving_keeps_everybody() -> None:
    assert moved([1, 2, 3], 2, -1) == [1, 3, 2]
    assert moved([1, 2, 3], 0, 1) == [2, 1, 3]
    assert moved([1, 2, 3], 0, -1) == [1, 2, 3]
    assert moved([1, 2, 3], 2, 1) == [1, 2, 3]
    assert moved([1, 2, 3], 7, 1) == [1, 2, 3]


def test_images_of_the_same_person_are_joined_and_divided() -> None:
    a, b, c = (Reference(Path(name), name, "", "") for name in "abc")
    people = [(a,), (b,), (c,)]
    assert joined(people, 1) == [(a, b), (c,)]
    assert joined(joined(people, 2), 1) == [(a, b, c)]
    assert divided([(c,), (a, b)], 1) == [(c,), (a,), (b,)]
    for index in (-1, 0, 3):
        assert joined(people, index) == people
    assert divided(people, 3) == people == [(a,), (b,), (c,)]
