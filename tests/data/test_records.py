from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from toy_records import CAPTION, LEFT, SIZE, add_record, photo, segment_map

from fastcomposer.data import index
from fastcomposer.data.index import RecordIndex
from fastcomposer.data.records import (
    Record,
    RecordError,
    Segment,
    read_ids,
    read_json,
    read_record,
    record_path,
    write_ids,
    write_record,
)

NAME = "0000003"
Change = Callable[[dict[str, Any]], Any]


def change_json(root: Path, change: Change, record_id: str = NAME) -> None:
    path = record_path(root, record_id, ".json")
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


# --- writing and reading back ------------------------------------------------------------------------------


def test_a_record_reads_back_as_it_was_written(tmp_path: Path) -> None:
    record = Record("ab", "zwei Männer", (Segment(300, (-1, 2, 5, 9), 11, "person"),), {"style": ["ink", 2]})
    pixels = segment_map(record.segments[0])
    write_record(tmp_path, record, photo(1), pixels, quality=100)
    loaded = read_record(tmp_path, "ab")
    assert loaded.record == record
    assert loaded.segment_map.dtype == np.uint16  # 300 does not fit eight bits
    assert np.array_equal(loaded.segment_map, pixels)
    assert loaded.image.shape == (SIZE, SIZE, 3)
    assert np.abs(loaded.image.astype(int) - photo(1)).max() <= 6
    assert sorted(p.name for p in (tmp_path / "ab").iterdir()) == ["ab.jpg", "ab.json", "ab.npy"]


def test_files_lie_where_the_published_format_puts_them(folder: Path) -> None:
    content = json.loads((folder / "00000" / "0000003.json").read_text())
    assert content == {
        "caption": "a man and a woman",
        "segments": [
            {"id": 1, "bbox": [2, 4, 10, 20], "end": 5, "coco_label": "person", "identity": "ann"},
            {"id": 7, "bbox": [14, 4, 22, 20], "end": 17, "coco_label": "person", "identity": "bob"},
        ],
    }
    assert np.load(folder / "00000" / "0000003.npy").dtype == np.uint8
    with Image.open(folder / "00000" / "0000003.jpg") as image:
        assert [layer[1:3] for layer in image.layer] == [(1, 1)] * 3  # full colour resolution
    assert (folder / "image_ids_test.txt").read_text() == "0000008\n0000009\n"


def test_a_record_interrupted_while_written_has_no_json(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: Any, **kwargs: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(np, "save", fail)
    with pytest.raises(KeyboardInterrupt):
        add_record(folder, NAME, LEFT, seed=5)
    names = sorted(p.name for p in (folder / "00000").glob("*0000003*"))
    assert names == ["0000003.jpg", "0000003.npy"]


def test_what_would_not_read_back_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(RecordError, match=r"0000003\.json: segments\[0\]\.end: 99 lies outside the caption"):
        add_record(tmp_path, NAME, Segment(1, (0, 0, 2, 2), 99, "person"))
    with pytest.raises(RecordError, match=r"segments\[0\]\.id: 1 does not occur in 0000003\.npy"):
        write_record(tmp_path, Record(NAME, CAPTION, (LEFT,)), photo(0), segment_map())
    with pytest.raises(RecordError, match=r"'\.\./x' cannot be the name of a record"):
        write_record(tmp_path, Record("../x", "", ()), photo(0), segment_map())
    assert not list(tmp_path.iterdir())


# --- defects -----------------------------------------------------------------------------------------------


def having(number: int | None = None, **fields: Any) -> Change:
    """Change fields of a segment, or of the record."""
    return lambda content: (content if number is None else content["segments"][number]).update(fields)


def without(key: str, number: int | None = None) -> Change:
    """Remove a field of a segment, or of the record."""
    return lambda content: (content if number is None else content["segments"][number]).pop(key)


JSON_DEFECTS: list[tuple[Change, str]] = [
    (without("caption"), "caption: field is missing"),
    (having(caption=3), "caption: must be str, not 3"),
    (having(caption="a man <|image|> and a woman"), "caption: holds a marker <|image|>"),
    (having(segments={}), "segments: must be list, not {}"),
    (having(segments=[5]), "segments[0]: must be an object, not int"),
    (having(1, id="7"), "segments[1].id: must be int, not '7'"),
    (having(1, id=1), "segments[1].id: 1 is used by segments[0] too"),
    (without("end", 1), "segments[1].end: field is missing"),
    (having(1, end=18), "segments[1].end: 18 lies outside the caption of 17 characters"),
    (having(0, end=4), "segments[0].end: 4 lies inside the word 'man' of the caption"),
    (having(caption="a man, and a woman", segments=[{"id": 1, "end": 6}]), "segments[0].end: no word before"),
    (having(0, bbox=[1, 2, 3]), "segments[0].bbox: must be four whole numbers x1, y1, x2, y2, not [1, 2, 3]"),
    (having(0, bbox=[1, 2, 3, 4.5]), "segments[0].bbox: must be four whole numbers"),
    (having(0, bbox=[10, 4, 2, 20]), "segments[0].bbox: x1, y1, x2, y2 = [10, 4, 2, 20] encloses nothing"),
    (having(0, coco_label=None), "segments[0].coco_label: must be str, not None"),
    (having(0, identity=3), "segments[0].identity: must be a string, not 3"),
    (having(caption="a \ud83d man"), "caption: character 2 is '\\ud83d', half of one"),
    (having(0, identity="\ud83d"), "segments[0].identity: character 0 is '\\ud83d', half of one"),
]


@pytest.mark.parametrize(("change", "message"), JSON_DEFECTS, ids=[message for _, message in JSON_DEFECTS])
def test_defects_of_the_json(folder: Path, change: Change, message: str) -> None:
    change_json(folder, change)
    with pytest.raises(RecordError) as caught:
        read_json(folder, NAME)
    assert str(caught.value).startswith(f"{folder}/00000/0000003.json: {message}")


@pytest.mark.parametrize(
    "change",
    [
        having(caption="a man and a woman."),
        having(caption="a me\u0301 and a woman"),  # the accent is a character of its own
        having(0, bbox=[2.0, 4.0, 10, 20]),
        having(0, identity=None),
    ],
)
def test_harmless_variants_of_the_json(folder: Path, change: Change) -> None:
    change_json(folder, change)
    first, second = read_record(folder, NAME).record.segments
    assert (first.bbox, second.identity) == ((2, 4, 10, 20), "bob")


@pytest.mark.parametrize(
    ("suffix", "field"), [(".json", "record"), (".jpg", "image"), (".npy", "segment map")]
)
def test_missing_files(folder: Path, suffix: str, field: str) -> None:
    record_path(folder, NAME, suffix).unlink()
    with pytest.raises(RecordError, match=rf"0000003\{suffix}: {field}: file is missing"):
        read_record(folder, NAME)


@pytest.mark.parametrize(
    ("shape", "dtype", "message"),
    [
        ((24, 24, 1), "uint8", "must be 2-D and of integers, not uint8 of shape (24, 24, 1)"),
        ((24, 24), "float64", "must be 2-D and of integers, not float64 of shape (24, 24)"),
        ((24, 24), "bool", "must be 2-D and of integers, not bool of shape (24, 24)"),
        ((24, 25), "int32", "height and width (24, 25), but those of the image are (24, 24)"),
    ],
)
def test_defects_of_the_map(folder: Path, shape: tuple[int, ...], dtype: str, message: str) -> None:
    path = record_path(folder, NAME, ".npy")
    np.save(path, np.zeros(shape, dtype))
    with pytest.raises(RecordError) as caught:
        read_record(folder, NAME)
    assert str(caught.value) == f"{path}: segment map: {message}"


def test_segments_must_occur_in_the_map_and_in_their_box(folder: Path) -> None:
    change_json(folder, lambda c: c["segments"][1].update(id=8, coco_label="dog"))
    with pytest.raises(
        RecordError, match=r"0000003\.json: segments\[1\]\.id: 8 does not occur in 0000003\.npy"
    ):
        read_record(folder, NAME)
    assert len(read_record(folder, NAME, labels=["person"]).record.segments) == 2

    change_json(folder, lambda c: c["segments"][1].update(id=7, bbox=[4, 14, 20, 22]))
    np.save(record_path(folder, NAME, ".npy"), segment_map(LEFT, Segment(7, (14, 0, 22, 4), 17, "person")))
    message = r"segments\[1\]\.bbox: x1, y1, x2, y2 = \[4, 14, 20, 22\] in 24 x 24 pixels .* holds no pixel"
    with pytest.raises(RecordError, match=message):
        read_record(folder, NAME)
    change_json(folder, lambda c: c["segments"][1].update(bbox=[30, 0, 40, 9]))
    with pytest.raises(RecordError, match=r"segments\[1\]\.bbox: .* holds no pixel of the segment"):
        read_record(folder, NAME)


# --- id lists ----------------------------------------------------------------------------------------------


def test_id_lists(tmp_path: Path) -> None:
    write_ids(tmp_path, "all", ["b", "a"])
    (tmp_path / "image_ids_train.txt").write_text("\ufeff\n b \r\n\na\n")  # an editor's byte order mark
    assert read_ids(tmp_path, "all") == read_ids(tmp_path, "train") == ["b", "a"]
    with pytest.raises(RecordError, match=r"image_ids_test\.txt: id list: file is missing; split 'test'"):
        read_ids(tmp_path, "test")
    (tmp_path / "image_ids_train.txt").write_text("\n")
    with pytest.raises(RecordError, match=r"image_ids_train\.txt: id list: holds no ids"):
        read_ids(tmp_path, "train")
    (tmp_path / "image_ids_train.txt").write_text("a\n\n../b\n")
    with pytest.raises(RecordError, match=r"image_ids_train\.txt: line 3: '\.\./b' cannot be the name"):
        read_ids(tmp_path, "train")
    (tmp_path / "image_ids_train.txt").write_bytes(b"a\n" + bytes(40))  # of a lost disk
    with pytest.raises(RecordError, match=r"image_ids_train\.txt: line 2: .* cannot be the name"):
        read_ids(tmp_path, "train")
    with pytest.raises(ValueError, match="split must be one of train, test, all, not 'val'"):
        read_ids(tmp_path, "val")


# --- index -------------------------------------------------------------------------------------------------


def test_the_index_is_read_from_disk_until_the_data_changes(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    built = RecordIndex(folder, "train")
    read: list[str] = []

    def count(root: Path, record_id: str) -> Record:
        read.append(record_id)
        return read_json(root, record_id)

    monkeypatch.setattr(index, "read_json", count)
    again = RecordIndex(folder, "train")
    assert (again.segments, again.record_ids, read) == (built.segments, built.record_ids, [])

    add_record(folder, "0000002", LEFT)
    assert RecordIndex(folder, "train").num_subjects("0000002") == 1
    assert len(read) == 8
    write_ids(folder, "train", ["0000002", "0000001"])
    assert RecordIndex(folder, "train").record_ids == ("0000002", "0000001")
    assert len(read) == 10
    (folder / ".index_train.json").write_text('{"key": ')
    assert RecordIndex(folder, "train").record_ids == ("0000002", "0000001")
    assert len(read) == 12


def test_the_index_works_where_it_cannot_be_kept(folder: Path) -> None:
    (folder / ".index_train.json").mkdir()  # as good as a read-only folder
    assert len(RecordIndex(folder, "train").record_ids) == 8
    assert not list(folder.glob(".*.tmp"))


def test_bad_records_are_raised_or_skipped_with_one_summary(folder: Path) -> None:
    change_json(folder, lambda c: c.pop("caption"), "0000001")
    record_path(folder, "0000004", ".json").unlink()
    with pytest.raises(RecordError, match=r"0000001\.json: caption: field is missing"):
        RecordIndex(folder, "train")
    with pytest.warns(
        UserWarning, match="2 of 8 records in .* are bad and skipped: .*0000001.*0000004"
    ) as caught:
        index = RecordIndex(folder, "train", on_bad_record="skip")
    assert len(caught) == 1
    assert index.record_ids == ("0000000", "0000002", "0000003", "0000005", "0000006", "0000007")
    assert sorted(index.bad_records) == ["0000001", "0000004"]
    assert index.bad_records["0000004"].endswith("0000004.json: record: file is missing")

    change_json(folder, lambda c: c.update(caption=CAPTION), "0000001")  # mended in place
    with pytest.warns(UserWarning, match="1 of 8 records"):
        assert len(RecordIndex(folder, "train", on_bad_record="skip").record_ids) == 7
    with pytest.raises(ValueError, match="on_bad_record must be one of raise, skip, not 'ignore'"):
        RecordIndex(folder, "train", on_bad_record="ignore")
    write_ids(folder, "train", ["nowhere"])
    with pytest.raises(RecordError, match=r"no record is good: .*nowhere\.json: record: file is missing"):
        RecordIndex(folder, "train", on_bad_record="skip")
