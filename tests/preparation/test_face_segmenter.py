"""People around real faces, in a photograph that a package ships."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from skimage.data import astronaut

from fastcomposer.preparation.face_segmenter import FaceSegmenter
from fastcomposer.preparation.interfaces import Photo


def segmenter() -> FaceSegmenter:
    made = FaceSegmenter()
    made.load()
    return made


def photo(pixels: np.ndarray) -> Photo:
    return Photo("photo", Path("photo.png"), Image.fromarray(pixels))


def test_a_person_is_outlined_from_hair_to_sleeves() -> None:
    (found,) = segmenter().segment([photo(astronaut())])
    assert found.segment_map.shape == (512, 512)
    assert [(region.id, region.label) for region in found.regions] == [(1, "person")]
    person = found.segment_map == 1
    # Pixels (x, y) that are hair, forehead, collar, badge and sleeve; and sky, shuttle, flag and backdrop.
    assert all(person[y, x] for x, y in ((225, 45), (225, 80), (225, 210), (170, 380), (110, 330)))
    assert not any(person[y, x] for x, y in ((100, 60), (420, 60), (20, 200), (480, 20), (330, 150)))
    assert 0.3 < found.areas[1] < 0.55


def test_people_are_separate_and_numbered_from_the_left() -> None:
    half = astronaut()[:, :400]
    pixels = np.concatenate([half, half[:, ::-1]], axis=1)
    (found,) = segmenter().segment([photo(pixels)])
    assert [region.id for region in found.regions] == [1, 2]
    assert (found.segment_map[:, :300] != 2).all() and (found.segment_map[:, 500:] != 1).all()
    mirrored = np.where(found.segment_map == 0, 0, 3 - found.segment_map)[:, ::-1]
    assert (mirrored == found.segment_map).mean() > 0.95


def test_without_a_face_there_is_no_segment() -> None:
    strict = FaceSegmenter(min_face=0.5)
    strict.load()
    backdrop = photo(astronaut()[:200, 300:500])
    assert [found.regions for found in segmenter().segment([backdrop])] == [()]
    (found,) = strict.segment([photo(astronaut())])
    assert found.regions == () and not found.segment_map.any()


def test_settings_are_checked() -> None:
    with pytest.raises(ValueError, match=r"data\.segmenter\.threshold=1\.5: must lie between 0 and 1"):
        FaceSegmenter(threshold=1.5)
    with pytest.raises(ValueError, match=r"data\.segmenter\.side=8: must be at least 32"):
        FaceSegmenter(side=8)
    assert FaceSegmenter(side=64).settings["side"] == 64
