"""The full preparation: every photo becomes a record or is listed, also after interruptions."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
from PIL import Image

from fastcomposer.data.records import read_ids, read_record
from fastcomposer.preparation.captioners import GivenCaptions
from fastcomposer.preparation.interfaces import Match, Matcher, Photo, Segmentation, SegmentedPhoto
from fastcomposer.preparation.phrases import WordPhrases
from fastcomposer.preparation.preparation_stage import PhotoLimits, prepare_photos
from fastcomposer.preparation.segmenters import SegmentMaps

WORDS = {"person": ["man", "woman"]}
LIMITS = PhotoLimits(min_side=16, max_side=None, min_area=0.02, test_share=0.25)


@dataclass
class InOrder(Matcher):
    """Matches phrases and regions in their order."""

    choice = "in order"

    def match(self, photos: Sequence[SegmentedPhoto]) -> list[tuple[Match, ...]]:
        pairs = (range(min(len(photo.phrases), len(photo.regions))) for photo in photos)
        return [tuple(Match(n, n, 0.5) for n in numbers) for numbers in pairs]


class Noted(SegmentMaps):
    """Records which photos it sees, and interrupts after some."""

    def __init__(self, enough: int | None = None) -> None:
        super().__init__()
        self.seen: list[str] = []
        self.loaded, self.enough = 0, enough

    def load(self) -> None:
        self.loaded += 1

    def segment(self, photos: Sequence[Photo]) -> list[Segmentation]:
        if self.enough is not None and len(self.seen) >= self.enough:
            raise KeyboardInterrupt
        self.seen += [photo.photo_id for photo in photos]
        return super().segment(photos)


def add_photo(folder: Path, name: str, caption: str, boxes: Sequence[tuple[int, int, int, int]]) -> None:
    """A photo of 40 × 30 pixels with a map and a caption beside it."""
    seed = sum(name.encode())
    pixels = np.random.default_rng(seed).integers(0, 255, (3, 4, 3), np.uint8)
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).resize((40, 30)).save(path)
    segment_map = np.zeros((30, 40), np.uint8)
    for number, (x1, y1, x2, y2) in enumerate(boxes, start=1):
        segment_map[y1:y2, x1:x2] = number
    np.save(path.with_suffix(".npy"), segment_map)
    if caption:
        path.with_suffix(".txt").write_text(caption)


LEFT, RIGHT, DOT = (2, 4, 15, 28), (22, 4, 38, 28), (18, 0, 20, 2)


@pytest.fixture
def album(tmp_path: Path) -> Path:
    """Ten good photos, and one for each reason to leave one out."""
    folder = tmp_path / "album"
    for number in range(8):
        add_photo(folder, f"day/{number}.png", "a man and a woman", [LEFT, RIGHT])
    add_photo(folder, "alone.png", "a man and a woman", [LEFT, DOT])
    add_photo(folder, "crowd.png", "a man", [LEFT, RIGHT])
    captions = {"silent": "", "nobody": "a beach", "marked": "a man <|image|>"}
    captions["wordy"] = "a man " * 200_000
    for name in ("silent", "nobody", "empty", "tiny", "marked", "wordy", "nomap"):
        add_photo(folder, f"x_{name}.png", captions.get(name, "a man"), [LEFT] * (name != "empty"))
    Image.new("RGB", (15, 40)).save(folder / "x_tiny.png")
    (folder / "x_nomap.npy").unlink()
    (folder / "x_broken.jpg").write_bytes(b"\xff\xd8\xff nothing")
    os.mkfifo(folder / "x_pipe.jpg")
    Image.new("RGB", (40, 30)).save(folder / "alone.webp")
    return folder


REASONS = {
    "alone.webp": "same name as another photo",
    "x_silent.png": "no caption",
    "x_nobody.png": "no subject named in the caption",
    "x_empty.png": "no segment of a subject",
    "x_tiny.png": "too small",
    "x_marked.png": "marker in the caption",
    "x_nomap.png": "no segment map",
    "x_wordy.png": "caption too long",
    "x_broken.jpg": "unreadable",
    "x_pipe.jpg": "unreadable",
}

Prepare = Callable[..., int]


@pytest.fixture
def prepare(album: Path, tmp_path: Path) -> Prepare:
    quiet: dict[str, Any] = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar"), False)

    def call(segmenter: Any = None, root: str = "data", **changes: Any) -> int:
        trainer = L.Trainer(accelerator="cpu", **quiet)
        parts = (GivenCaptions(), segmenter or SegmentMaps(), WordPhrases(WORDS), InOrder())
        options = {"limits": LIMITS, "batch_size": 3, "quality": 100, **changes}
        return prepare_photos(tmp_path / root, options.pop("source", album), *parts, trainer, **options)

    return call


def test_every_photo_is_a_record_or_listed(prepare: Prepare, tmp_path: Path) -> None:
    assert prepare() == 10
    root = tmp_path / "data"
    names = ["alone", "crowd", *(f"day-{number}" for number in range(8))]
    assert read_ids(root, "all") == names
    train, test = read_ids(root, "train"), read_ids(root, "test")
    assert len(test) == 2 and sorted(train + test) == names
    loaded = read_record(root, "day-3")
    assert loaded.record.caption == "a man and a woman"
    assert [(s.id, s.bbox, s.end, s.label) for s in loaded.record.segments] == [
        (1, LEFT, 5, "person"),
        (2, RIGHT, 17, "person"),
    ]
    original = np.asarray(Image.open(tmp_path / "album" / "day" / "3.png")).astype(int)
    assert np.abs(loaded.image[10, 10] - original[10, 10]).max() < 12
    with (root / "preparation" / "left_out.csv").open() as file:
        listed = {row["file"]: row["reason"] for row in csv.DictReader(file)}
    assert listed == REASONS
    assert (root / ".index_train.json").exists()

    numbers = json.loads((root / "preparation" / "statistics.json").read_text())
    assert (numbers["photos"], numbers["records"], numbers["subjects"]) == (20, 10, 18)
    assert numbers["subjects_per_record"] == {"1": 2, "2": 8}
    assert numbers["words"] == {"man": 10, "woman": 8}
    assert sum(numbers["areas"].values()) == 18
    assert numbers["left_out"] == {
        "phrase: no segment": 2,  # the woman beside the dot; and of the empty one
        "segment: no phrase": 1,
        "segment: not named in the caption": 1,
        "segment: too small": 1,
    }
    page = (root / "preparation" / "report.html").read_text()
    assert "10 of 20 photos became records, with 18 subjects" in page
    assert "x_tiny.png: 15 x 40 pixels" in page


def test_subjects_get_the_boxes_of_their_faces(
    prepare: Prepare, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    detect = "fastcomposer.preparation.preparation_stage.mtcnn_faces"
    monkeypatch.setattr(detect, lambda: lambda image: [(25, 5, 33, 12.04), (17, 2, 20, 4)])
    assert prepare(faces=True) == 10
    segments = read_record(tmp_path / "data", "day-3").record.segments
    assert [segment.face for segment in segments] == [None, (25.0, 5.0, 33.0, 12.0)]
    with pytest.raises(ValueError, match="faces"):
        prepare()


def test_only_new_and_changed_photos_are_processed(prepare: Prepare, album: Path, tmp_path: Path) -> None:
    prepare()
    files = {file: file.stat().st_mtime_ns for file in (tmp_path / "data").glob("*/*.jpg")}
    again = Noted()
    assert prepare(again) == 0
    assert (again.seen, again.loaded) == ([], 0)
    assert {file: file.stat().st_mtime_ns for file in files} == files
    # A photo mended, a caption changed, a record damaged, a photo more: these and no others.
    add_photo(album, "x_tiny.png", "a man", [LEFT])
    (album / "day" / "1.txt").write_text("a woman and a man")
    (tmp_path / "data" / "day-2" / "day-2.npy").unlink()
    add_photo(album, "new.png", "a woman", [RIGHT])
    some = Noted()
    assert prepare(some) == 4
    assert sorted(some.seen) == ["day-1", "day-2", "new", "x_tiny"]
    assert read_record(tmp_path / "data", "day-1").record.segments[0].end == 7
    assert len(read_ids(tmp_path / "data", "all")) == 12
    # And a photo that is spoilt is a record no more.
    (album / "new.txt").write_text("a tree")
    prepare()
    assert "new" not in read_ids(tmp_path / "data", "all")
    assert not list((tmp_path / "data").glob("new*/*"))


def test_it_resumes_where_it_stopped(prepare: Prepare, tmp_path: Path) -> None:
    prepare(root="full")
    seen: list[str] = []
    for _ in range(20):
        segmenter = Noted(enough=4)
        try:
            prepare(segmenter, root="parts")
            break
        except SystemExit:  # Lightning's way to end after Ctrl-C
            pass
        finally:
            seen += segmenter.seen
    assert len(set(seen)) == 13
    full, parts = tmp_path / "full", tmp_path / "parts"
    names = sorted(str(file.relative_to(full)) for file in full.rglob("*") if file.is_file())
    assert names == sorted(str(file.relative_to(parts)) for file in parts.rglob("*") if file.is_file())
    for name in names:
        if not name.startswith(".index"):  # holds times of change
            assert (full / name).read_bytes() == (parts / name).read_bytes(), name


def test_other_settings_are_refused(prepare: Prepare, tmp_path: Path) -> None:
    prepare()
    with pytest.raises(ValueError, match=r"with other settings \(min_area: 0\.02, not 0\.4\)") as caught:
        prepare(limits=PhotoLimits(min_side=16, max_side=None, min_area=0.4))
    assert "data.prepare.restart=true" in str(caught.value)
    (tmp_path / "data" / "mine.txt").write_text("kept")
    assert prepare(limits=PhotoLimits(min_side=16, max_side=None, min_area=0.4), restart=True) == 0
    assert (tmp_path / "data" / "mine.txt").read_text() == "kept"
    assert not list((tmp_path / "data").glob("*/*.jpg"))
    assert not (tmp_path / "data" / "image_ids.txt").exists()
    # The shares of the splits and the page decide no record.
    prepare(root="other")
    assert prepare(root="other", limits=PhotoLimits(16, None, 0.02, test_share=0.0, samples=1)) == 0
    assert not (tmp_path / "other" / "image_ids_test.txt").exists()


def test_other_data_is_not_touched(prepare: Prepare, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "image_ids_train.txt").write_text("x\n")
    for restart in (False, True):
        with pytest.raises(ValueError, match="not prepared from photos"):
            prepare(restart=restart)
    assert (tmp_path / "data" / "image_ids_train.txt").read_text() == "x\n"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"source": None}, "source: name the folder of the photos"),
        ({"source": "nowhere"}, "source=nowhere: no such folder"),
        ({"quality": 0}, r"data\.prepare\.quality=0"),
        ({"batch_size": 0}, r"data\.prepare\.batch_size=0"),
    ],
)
def test_invalid_settings_are_refused_first(
    prepare: Prepare, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        prepare(**changes)
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize(
    ("name", "value"), [("min_side", 0), ("max_side", 32), ("min_area", 1.0), ("samples", -1)]
)
def test_limits(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=rf"data\.prepare\.limits.*{name}={value}"):
        PhotoLimits(**{name: value})
