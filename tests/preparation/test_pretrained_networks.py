"""Captioner and segmenter of transformers: the real classes, tiny and random."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny_networks import write_blip, write_blip2, write_mask2former

from fastcomposer.preparation.captioners import GivenCaptions, PretrainedCaptioner, RecordCaptions
from fastcomposer.preparation.interfaces import Photo
from fastcomposer.preparation.photos import UnusablePhotoError
from fastcomposer.preparation.segmenters import PretrainedSegmenter, SegmentMaps


def noise(number: int, width: int = 60, height: int = 40) -> Photo:
    pixels = np.random.default_rng(number).integers(0, 255, (height, width, 3), np.uint8)
    return Photo(str(number), Path(f"{number}.png"), Image.fromarray(pixels))


@pytest.mark.parametrize("kind", ["blip", "blip2"])
def test_captions_do_not_depend_on_their_neighbours(tmp_path: Path, kind: str) -> None:
    {"blip": write_blip, "blip2": write_blip2}[kind](tmp_path / kind)
    captioner = PretrainedCaptioner(str(tmp_path / kind), max_new_tokens=6, num_beams=2)
    captioner.load()
    photos = [noise(0), noise(1, 30, 50), noise(2)]
    captions = captioner.caption(photos)
    assert len(captions) == 3
    for photo, caption in zip(photos, captions, strict=True):
        assert caption is not None
        assert 1 <= len(caption.split()) <= 6
        assert set(caption.split()) <= {"a", "man", "woman", "and"}
        assert captioner.caption([photo]) == [caption]


def test_settings_are_checked_before_anything_is_read(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"data\.captioner: max_new_tokens"):
        PretrainedCaptioner("x", max_new_tokens=0)
    with pytest.raises(ValueError, match=r"data\.segmenter\.overlap=2"):
        PretrainedSegmenter("x", overlap=2)
    captioner = PretrainedCaptioner(str(tmp_path / "nothing"))
    with pytest.raises(FileNotFoundError, match=r"data\.captioner\.model=.*nothing"):
        captioner.load()
    write_mask2former(tmp_path)
    before = dict(PretrainedSegmenter(str(tmp_path)).settings)
    weights = tmp_path / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    assert dict(PretrainedSegmenter(str(tmp_path)).settings) != before


def test_maps_beside_the_photos(tmp_path: Path) -> None:
    photo = Photo("p", tmp_path / "p.png", Image.new("RGB", (6, 4)))
    maps = SegmentMaps("dog")
    with pytest.raises(UnusablePhotoError, match=r"no segment map: p\.npy"):
        maps.segment([photo])
    pixels = np.zeros((4, 6), np.uint8)
    pixels[1:3, 2:5], pixels[0, 0] = 7, 3
    np.save(tmp_path / "p.npy", pixels)
    (found,) = maps.segment([photo])
    assert [(region.id, region.label) for region in found.regions] == [(3, "dog"), (7, "dog")]
    assert found.box(7) == (2, 1, 5, 3)
    assert found.areas == {3: 1 / 24, 7: 6 / 24}
    np.save(tmp_path / "p.npy", pixels.T)
    with pytest.raises(UnusablePhotoError, match=r"shape \(6, 4\) for \(6, 4\) pixels"):
        maps.segment([photo])


def test_captions_of_records(tmp_path: Path) -> None:
    photo = Photo("p", tmp_path / "p.jpg", Image.new("RGB", (6, 4)))
    assert GivenCaptions().caption([photo, photo]) == [None, None]
    records = RecordCaptions("rich_caption")
    assert records.caption([photo]) == [None]
    (tmp_path / "p.json").write_text(json.dumps({"caption": "a man", "rich_caption": "a tall man"}))
    assert records.caption([photo]) == ["a tall man"]
    assert RecordCaptions().caption([photo]) == ["a man"]
