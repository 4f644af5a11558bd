"""Photos of a folder: their ids, captions and pixels."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fastcomposer.preparation.photos import PhotoFile, UnusablePhotoError, list_photos, open_photo


@pytest.fixture
def album(tmp_path: Path) -> Path:
    folder = tmp_path / "album"
    for name in ("b.jpg", "a/one two.png", "a/b.JPEG", "b.png", ".hidden/c.jpg", "out/d.jpg"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 6), "red").save(folder / name, "PNG")
    (folder / "notes.txt").write_text("not of a photo")
    (folder / "a" / "b.txt").write_text("a man\n  and a dog \n")
    return folder


def test_photos_are_listed_in_order_with_their_captions(album: Path) -> None:
    photos = list_photos(album, leave_out=album / "out")
    assert [(photo.photo_id, photo.name, photo.caption, photo.twin) for photo in photos] == [
        ("a-b", "a/b.JPEG", "a man and a dog", None),
        ("a-one_two", "a/one two.png", None, None),
        ("b", "b.jpg", None, None),
        ("b", "b.png", None, "b.jpg"),  # two photos, one name
    ]
    before = photos[0].fingerprint
    (album / "a" / "b.txt").write_text("a woman")
    again = list_photos(album, leave_out=album / "out")
    assert again[0].fingerprint != before
    assert again[1].fingerprint == photos[1].fingerprint


@pytest.mark.parametrize("kind", ["captions.json", "captions.csv"])
def test_captions_in_a_file_come_first(album: Path, kind: str) -> None:
    file = album.parent / kind
    given = {"a/b.JPEG": "a girl,  smiling", "b.jpg": ""}
    rows = "\n".join(f'"{name}","{caption}"' for name, caption in given.items())
    file.write_text(json.dumps(given) if kind.endswith("json") else f"file,caption\n{rows}\n")
    captions = {photo.name: photo.caption for photo in list_photos(album, file)}
    assert captions["a/b.JPEG"] == "a girl, smiling"
    assert captions["b.jpg"] is None  # an empty caption is none
    assert captions["out/d.jpg"] is None


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("c.csv", "name,text\n", "needs the columns file and caption"),
        ("c.json", "[1]", "must be a .csv file, or a JSON object"),
        ("c.json", "{", "must be a .csv file, or a JSON object"),
        ("c.json", '{"other.jpg": "a man"}', r"names none of the photos .*other\.jpg"),
        (None, "", "cannot be read"),
    ],
)
def test_invalid_captions_are_refused(album: Path, name: str | None, content: str, message: str) -> None:
    file = album.parent / (name or "missing.json")
    if name:
        file.write_text(content)
    with pytest.raises((ValueError, FileNotFoundError), match=rf"data\.prepare\.captions=.*{message}"):
        list_photos(album, file)


def test_folders_without_photos(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"holds no photo \(\.jpg"):
        list_photos(tmp_path)


def photo_of(path: Path) -> PhotoFile:
    return PhotoFile(path.stem, path, path.name)


def test_photos_are_turned_upright(tmp_path: Path) -> None:
    upright = np.full((20, 30, 3), 40, np.uint8)
    upright[:8, :12] = (250, 20, 20)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(np.rot90(upright)).save(tmp_path / "p.png", exif=exif)
    assert np.array_equal(np.asarray(open_photo(photo_of(tmp_path / "p.png"), 1, None)), upright)


def test_sizes(tmp_path: Path) -> None:
    Image.new("RGB", (90, 60)).save(tmp_path / "p.png")
    photo = photo_of(tmp_path / "p.png")
    assert open_photo(photo, 60, 60).size == (90, 60)
    assert open_photo(photo, 20, 40).size == (60, 40)
    with pytest.raises(UnusablePhotoError, match="too small: 90 x 60 pixels"):
        open_photo(photo, 61, None)


def test_transparent_pixels_become_white(tmp_path: Path) -> None:
    pixels = np.zeros((4, 4, 4), np.uint8)
    pixels[:2] = (10, 20, 30, 255)
    Image.fromarray(pixels).save(tmp_path / "p.png")
    image = np.asarray(open_photo(photo_of(tmp_path / "p.png"), 1, None))
    assert image[0, 0].tolist() == [10, 20, 30]
    assert image[3, 3].tolist() == [255, 255, 255]
