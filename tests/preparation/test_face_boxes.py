from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fastcomposer.data.records import Record, Segment, read_json, record_path, write_ids, write_record
from fastcomposer.preparation.face_boxes import annotate_faces, match_faces


def left_and_right() -> np.ndarray:
    segment_map = np.zeros((10, 20), np.uint8)
    segment_map[2:, :8], segment_map[2:, 12:] = 1, 2
    return segment_map


def test_each_segment_gets_the_face_that_it_shows_most_of() -> None:
    boxes = [(1, 3, 5, 7), (6, 3, 10, 7), (13, -2, 25, 8), (8, 2, 12, 8)]
    assert match_faces(boxes, left_and_right(), [1, 2]) == [(1, 3, 5, 7), (13, 0, 20, 8)]
    assert match_faces([], left_and_right(), [1, 2]) == [None, None]
    assert match_faces([(19.97, 3, 25, 8)], left_and_right(), [1, 2]) == [None, None]  # no width when rounded


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for number in range(3):
        segments = tuple(Segment(i, (0, 0, 20, 10), end, "person") for i, end in ((1, 5), (2, 17)))
        record = Record(f"{number:08d}", "a man and a woman", segments)
        write_record(tmp_path, record, Image.new("RGB", (20, 10)), left_and_right())
    write_ids(tmp_path, "train", [f"{number:08d}" for number in range(3)])
    return tmp_path


def test_records_get_faces_once(folder: Path) -> None:
    calls: list[Any] = []

    def detect(image: Image.Image) -> list[tuple[float, ...]]:
        if len(calls) == 2:
            calls.append(None)
            raise KeyboardInterrupt
        calls.append(image.size)
        return [(13, 2, 18, 8)]

    with pytest.raises(KeyboardInterrupt):
        annotate_faces(folder, ["train"], detect=detect)
    assert annotate_faces(folder, ["train"], detect=detect) == 1
    assert annotate_faces(folder, ["train"], detect=detect) == 0
    assert [size for size in calls if size] == [(20, 10)] * 3
    for number in range(3):
        segments = read_json(folder, f"{number:08d}").segments
        assert [segment.face for segment in segments] == [None, (13.0, 2.0, 18.0, 8.0)]


def test_rendered_scenes_have_theirs(world: Path) -> None:
    name = (world / "image_ids_train.txt").read_text().split()[0]
    before = record_path(world, name, ".json").read_bytes()
    for restart in (False, True):
        assert annotate_faces(world, ["train"], detect=lambda image: [], restart=restart) == 0
    assert record_path(world, name, ".json").read_bytes() == before
    assert "heads" in json.loads(before)
