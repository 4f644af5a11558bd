from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from fastcomposer.data.dataset import SubjectDataset
from fastcomposer.data.records import RecordError, parse_record, record_path
from fastcomposer.data.sample_settings import SampleSettings
from fastcomposer.data.transforms import TargetTransform
from fastcomposer.models.loading import load_tokenizer


@pytest.mark.parametrize(
    ("height", "width", "expected"),
    [
        (100, 100, [6.4, 12.8, 25.6, 38.4]),
        (100, 200, [0.0, 0.0, 0.0, 0.0]),  # left of the centre crop
        (200, 100, [19.2, 6.4, 28.8, 19.2]),  # 50 pixels of padding left and right
    ],
)
def test_boxes_take_the_way_of_the_pixels(height: int, width: int, expected: list[float]) -> None:
    transform = TargetTransform(64)
    found = transform.boxes([(10, 20, 40, 60), None], height, width, flip=False)
    torch.testing.assert_close(found, torch.tensor([expected, [0.0] * 4]))
    mirrored = transform.boxes([(10, 20, 40, 60)], height, width, flip=True)[0]
    if found.any():
        torch.testing.assert_close(mirrored[[2, 0]], 64 - found[0, [0, 2]])


def test_boxes_are_cut_off_where_the_target_ends() -> None:
    found = TargetTransform(64).boxes([(-4, 40, 30, 68)], 64, 64, flip=False)
    assert found.tolist() == [[0.0, 40.0, 30.0, 64.0]]
    assert not TargetTransform(64).boxes([(-60, 40, 30, 60)], 64, 64, flip=False).any()


def test_samples_carry_the_heads_of_scenes(world: Path, small_base: Path) -> None:
    settings = SampleSettings(resolution=64, reference_size=56, flip=0.0, max_subjects=3)
    dataset = SubjectDataset(world, "train", load_tokenizer(small_base), settings)
    for place in range(4):
        sample = dataset[place]
        heads = json.loads(record_path(world, dataset.record_ids[place], ".json").read_text())["heads"]
        assert sample.subject_face_boxes is not None
        found = sample.subject_face_boxes[sample.subject_present]
        torch.testing.assert_close(found, torch.tensor(heads).float())
        assert not sample.subject_face_boxes[~sample.subject_present].any()


SEGMENT: dict[str, Any] = {"id": 1, "bbox": [0, 0, 8, 8], "end": 5, "coco_label": "person"}


def test_a_segment_may_have_a_face(tmp_path: Path) -> None:
    entry = {**SEGMENT, "face": [1.5, 2, 6, 7]}
    record = parse_record({"caption": "a man", "segments": [entry]}, tmp_path / "r.json", "r")
    assert record.segments[0].face == (1.5, 2.0, 6.0, 7.0)


@pytest.mark.parametrize("face", [[1, 2, 3], [3, 0, 1, 2], "box", [1, 2, 3, float("nan")]])
def test_bad_faces_are_refused(face: Any, tmp_path: Path) -> None:
    content = {"caption": "a man", "segments": [{**SEGMENT, "face": face}]}
    with pytest.raises(RecordError, match=r"segments\[0\]\.face"):
        parse_record(content, tmp_path / "r.json", "r")
    with pytest.raises(RecordError, match="heads"):
        parse_record({"caption": "a man", "segments": [SEGMENT], "heads": []}, tmp_path / "r.json", "r")
