"""The published on-disk format: reading and writing records.

A data folder holds id lists and one triple of files per record (docs/method.md, Files)::

    <root>/image_ids_train.txt, image_ids_test.txt, image_ids.txt      one id a line
    <root>/<first five characters of id>/<id>.jpg                      the image
    <root>/<first five characters of id>/<id>.npy                      2-D integer map, pixel = segment id
    <root>/<first five characters of id>/<id>.json                     caption and segments

Segments may carry two fields more than the published format, ``"identity"`` and ``"face"``, a box like
``bbox``. Rendered scenes list the boxes of all their segments as ``"heads"`` beside ``"segments"``.
"""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from fastcomposer.data.pixels import NeededSize, check_pixels, decode_image, decode_map

# What records are made of is reached through this module too.
from fastcomposer.data.record import LoadedRecord as LoadedRecord
from fastcomposer.data.record import Record as Record
from fastcomposer.data.record import RecordError as RecordError
from fastcomposer.data.record import RecordFiles as RecordFiles
from fastcomposer.data.record import Segment as Segment
from fastcomposer.data.record import record_error
from fastcomposer.prompt import MARKER, divided_word, ends_in_word
from fastcomposer.utils.files import existing_file, write_atomically

ID_LISTS = {"train": "image_ids_train.txt", "test": "image_ids_test.txt", "all": "image_ids.txt"}
"""Name of the id list of each split."""


def record_path(root: str | Path, record_id: str, suffix: str) -> Path:
    """Return where a file of a record lies; ``suffix`` is ``.jpg``, ``.npy`` or ``.json``."""
    return Path(root) / record_id[:5] / f"{record_id}{suffix}"


# --- id lists ----------------------------------------------------------------------------------------------


def read_ids(root: str | Path, split: str) -> list[str]:
    """Read the id list of a split: ``train``, ``test`` or ``all``.

    Raises:
        ValueError: If the split is unknown.
        RecordError: If the list is missing, empty or holds an id that is no file name.
    """
    path = _id_list(root, split)
    try:
        # Some editors begin a file with a mark of its encoding.
        text = existing_file(path, "id list").read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise record_error(path, "id list", f"file is missing; split {split!r} needs it") from None
    except (OSError, UnicodeDecodeError) as error:
        raise record_error(path, "id list", f"unreadable: {error}") from None
    lines = {number: line.strip() for number, line in enumerate(text.splitlines(), start=1) if line.strip()}
    if not lines:
        raise record_error(path, "id list", "holds no ids")
    for number, record_id in lines.items():
        _check_id(path, record_id, f"line {number}")
    return list(lines.values())


def write_ids(root: str | Path, split: str, record_ids: Iterable[str]) -> None:
    """Write the id list of a split, one id a line, in the order given."""
    path, ids = _id_list(root, split), list(record_ids)
    for record_id in ids:
        _check_id(path, record_id, "id")
    content = "".join(f"{record_id}\n" for record_id in ids).encode()
    write_atomically(path, lambda file: file.write(content))


def _id_list(root: str | Path, split: str) -> Path:
    if split not in ID_LISTS:
        raise ValueError(f"split must be one of {', '.join(ID_LISTS)}, not {split!r}")
    return Path(root) / ID_LISTS[split]


def _check_id(path: Path, record_id: str, field_name: str) -> None:
    if not record_id or record_id.startswith(".") or not {"/", "\\", "\0"}.isdisjoint(record_id):
        raise record_error(path, field_name, f"{record_id!r:.80} cannot be the name of a record")


# --- writing -----------------------------------------------------------------------------------------------


def write_record(
    root: str | Path,
    record: Record,
    image: np.ndarray | Image.Image,
    segment_map: np.ndarray,
    *,
    quality: int = 95,
) -> None:
    """Write one record; the same input gives the same bytes.

    Files are written atomically, the JSON last, so that a record whose JSON exists is complete.

    Args:
        root: Data folder, made when missing.
        record: Caption and segments.
        image: (H, W, 3) uint8 RGB, or a Pillow image.
        segment_map: (H, W) integers; stored in the smallest integer type that holds them.
        quality: JPEG quality, 1 to 100, with full colour resolution (4:4:4).

    Raises:
        RecordError: If what was given would not read back.
    """
    photo = image.convert("RGB") if isinstance(image, Image.Image) else Image.fromarray(np.asarray(image))
    json_path = record_path(root, record.record_id, ".json")
    _check_id(json_path, record.record_id, "id")
    content = _to_json(record)
    parse_record(json.loads(content), json_path, record.record_id)
    npy_path = json_path.with_suffix(".npy")
    segment_map = np.asarray(segment_map)
    check_pixels(record.segments, (photo.height, photo.width), segment_map, json_path, None)
    low, high = int(segment_map.min(initial=0)), int(segment_map.max(initial=0))
    dtype = np.result_type(np.min_scalar_type(low), np.min_scalar_type(high))

    json_path.parent.mkdir(parents=True, exist_ok=True)
    json_path.unlink(missing_ok=True)  # an older record of this name is incomplete from here on
    write_atomically(
        json_path.with_suffix(".jpg"),
        lambda file: photo.save(file, format="JPEG", quality=quality, subsampling=0),
    )
    write_atomically(npy_path, lambda file: np.save(file, segment_map.astype(dtype), allow_pickle=False))
    write_atomically(json_path, lambda file: file.write(content))


def _to_json(record: Record) -> bytes:
    segments = []
    for segment in record.segments:
        box, identity = [int(value) for value in segment.bbox], segment.identity
        entry = {"id": int(segment.id), "bbox": box, "end": int(segment.end), "coco_label": segment.label}
        if identity is not None:
            entry["identity"] = identity
        if segment.face is not None and "heads" not in record.extra:
            entry["face"] = list(segment.face)
        segments.append(entry)
    content = {"caption": record.caption, "segments": segments, **record.extra}
    return (json.dumps(content, ensure_ascii=False) + "\n").encode()


# --- reading -----------------------------------------------------------------------------------------------


def read_json(root: str | Path, record_id: str) -> Record:
    """Read and validate the JSON of a record; see :func:`read_record`."""
    path = record_path(root, record_id, ".json")
    return _decode_json(_content(path, "record"), path, record_id)


def _content(path: Path, field_name: str) -> bytes:
    try:
        return existing_file(path, field_name).read_bytes()
    except FileNotFoundError:
        raise record_error(path, field_name, "file is missing") from None
    except OSError as error:
        raise record_error(path, field_name, f"unreadable: {error}") from None


def _decode_json(content: bytes, path: Path, record_id: str) -> Record:
    try:
        found = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise record_error(path, "record", f"malformed JSON: {error}") from None
    return parse_record(found, path, record_id)


def parse_record(content: Any, path: Path, record_id: str) -> Record:
    """Turn the content of a record's JSON into a :class:`Record`; ``path`` is for messages."""
    if not isinstance(content, dict):
        raise record_error(path, "record", f"must be an object, not {type(content).__name__}")
    caption = _field(content, "caption", str, path, "caption")
    if MARKER in caption:
        problem = f"holds a marker {MARKER}; markers are placed from segments[].end"
        raise record_error(path, "caption", problem)
    entries = _field(content, "segments", list, path, "segments")
    segments: list[Segment] = []
    seen: dict[int, int] = {}
    faces = content.get("heads")
    if faces is not None and not (isinstance(faces, list) and len(faces) == len(entries)):
        raise record_error(path, "heads", f"must be a list of {len(entries)} boxes, as there are segments")
    for number, entry in enumerate(entries):
        segment = _parse_segment(entry, caption, path, f"segments[{number}]")
        if faces is not None:
            segment = replace(segment, face=_parse_box(faces[number], path, f"heads[{number}]"))
        if segment.id in seen:
            problem = f"{segment.id} is used by segments[{seen[segment.id]}] too"
            raise record_error(path, f"segments[{number}].id", problem)
        seen[segment.id] = number
        segments.append(segment)
    extra = {key: value for key, value in content.items() if key not in ("caption", "segments")}
    return Record(record_id, caption, tuple(segments), extra)


def _parse_segment(entry: Any, caption: str, path: Path, name: str) -> Segment:
    if not isinstance(entry, dict):
        raise record_error(path, name, f"must be an object, not {type(entry).__name__}")
    segment_id = _field(entry, "id", int, path, f"{name}.id")
    end = _field(entry, "end", int, path, f"{name}.end")
    if not 0 < end <= len(caption):
        problem = f"{end} lies outside the caption of {len(caption)} characters"
        raise record_error(path, f"{name}.end", problem)
    if not ends_in_word(caption[:end]):
        raise record_error(path, f"{name}.end", f"no word before character {end} of caption {caption!r}")
    if (word := divided_word(caption, end)) is not None:
        raise record_error(path, f"{name}.end", f"{end} lies inside the word {word!r:.80} of the caption")
    box = _field(entry, "bbox", list, path, f"{name}.bbox")
    if len(box) != 4 or not all(_is_integer(value) for value in box):
        raise record_error(path, f"{name}.bbox", f"must be four whole numbers x1, y1, x2, y2, not {box}")
    x1, y1, x2, y2 = (int(value) for value in box)
    if x1 >= x2 or y1 >= y2:
        raise record_error(path, f"{name}.bbox", f"x1, y1, x2, y2 = {box} encloses nothing")
    label = _field(entry, "coco_label", str, path, f"{name}.coco_label")
    identity = entry.get("identity")
    if identity is not None:
        if not isinstance(identity, str):
            raise record_error(path, f"{name}.identity", f"must be a string, not {identity!r}")
        _check_text(identity, path, f"{name}.identity")
    face = entry.get("face")
    if face is not None:
        face = _parse_box(face, path, f"{name}.face")
    return Segment(segment_id, (x1, y1, x2, y2), end, label, identity, face)


def _parse_box(box: Any, path: Path, name: str) -> tuple[float, float, float, float]:
    numbers = isinstance(box, list) and all(
        isinstance(v, int | float) and not isinstance(v, bool) and math.isfinite(v) for v in box
    )
    if not numbers or len(box) != 4:
        raise record_error(path, name, f"must be four numbers x1, y1, x2, y2, not {box!r:.80}")
    x1, y1, x2, y2 = map(float, box)
    if x1 >= x2 or y1 >= y2:
        raise record_error(path, name, f"x1, y1, x2, y2 = {box} encloses nothing")
    return x1, y1, x2, y2


def _field(content: dict[str, Any], key: str, kind: type, path: Path, name: str) -> Any:
    if key not in content:
        raise record_error(path, name, "field is missing")
    value = content[key]
    if not isinstance(value, kind) or isinstance(value, bool):
        raise record_error(path, name, f"must be {kind.__name__}, not {value!r:.80}")
    if isinstance(value, str):
        _check_text(value, path, name)
    return value


def _check_text(value: str, path: Path, name: str) -> None:
    """Refuse lone surrogates, which JSON can hold and no tokenizer or file takes."""
    try:
        value.encode()
    except UnicodeEncodeError as error:
        half = value[error.start]
        raise record_error(path, name, f"character {error.start} is {half!r}, half of one") from None


def _is_integer(value: Any) -> bool:
    return not isinstance(value, bool) and (
        isinstance(value, int) or (isinstance(value, float) and value.is_integer())
    )


def read_record(
    root: str | Path,
    record_id: str,
    labels: Collection[str] | None = None,
    needed: NeededSize | None = None,
) -> LoadedRecord:
    """Read and validate one record with its pixels.

    Args:
        root: Data folder.
        record_id: Name of the record.
        labels: Check the pixels of segments with these labels only.
        needed: What is needed of the image; ``None`` for all pixels.

    Raises:
        RecordError: For every defect, naming file and field.
    """
    return decode_record(record_id, read_files(root, record_id), root, labels, needed)


def read_files(root: str | Path, record_id: str) -> RecordFiles:
    """Read the files of a record as they are."""
    path = record_path(root, record_id, ".json")
    return RecordFiles(
        _content(path, "record"),
        _content(path.with_suffix(".jpg"), "image"),
        _content(path.with_suffix(".npy"), "segment map"),
    )


def decode_record(
    record_id: str,
    files: RecordFiles,
    root: str | Path,
    labels: Collection[str] | None = None,
    needed: NeededSize | None = None,
) -> LoadedRecord:
    """Validate and decode one record from the content of its files; see :func:`read_record`."""
    path = record_path(root, record_id, ".json")
    record = _decode_json(files.json, path, record_id)
    chosen = [segment for segment in record.segments if labels is None or segment.label in labels]
    image, size, factor = decode_image(files.jpg, path.with_suffix(".jpg"), chosen, needed)
    segment_map = decode_map(files.npy, path.with_suffix(".npy"))
    check_pixels(record.segments, size, segment_map, path, labels)
    return LoadedRecord(record, image, segment_map, files.jpg, factor)
