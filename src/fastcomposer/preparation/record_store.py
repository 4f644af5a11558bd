"""The data folder under preparation: the outcome of each photo.

``<root>/preparation/`` holds ``settings.json``, ``left_out/<first five characters of id>/<id>.json`` for each
photo that is left out, and the files of :mod:`fastcomposer.preparation.preparation_page`. The outcome of a
photo that became a record is in the record's JSON, under ``"preparation"``.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from pydantic import TypeAdapter
from pydantic.dataclasses import dataclass

from fastcomposer.data.index import RecordIndex
from fastcomposer.data.records import (
    ID_LISTS,
    Record,
    RecordError,
    read_json,
    record_path,
    write_ids,
    write_record,
)
from fastcomposer.preparation.photos import PhotoFile
from fastcomposer.utils.files import remove_leftovers, write_atomically
from fastcomposer.utils.settings import differences, digest

FOLDER = "preparation"
FIELD = "preparation"
_HINT = "set data.root to another folder, or data.prepare.restart=true to prepare this one anew"


@dataclass(frozen=True)
class LeftOut:
    """A segment or phrase that is not a subject of its record."""

    what: str  # segment or phrase
    name: str  # its label or its text
    reason: str


@dataclass(frozen=True)
class Outcome:
    """The outcome of a photo."""

    file: str  # path inside the source
    fingerprint: str  # of the file and its caption
    size: tuple[int, int] = (0, 0)  # width and height in pixels; zeros where it could not be read
    reason: str | None = None  # why it is left out; None where it is a record
    detail: str = ""
    words: tuple[str, ...] = ()  # of each subject, as the next two
    areas: tuple[float, ...] = ()  # fraction of the image
    similarities: tuple[float, ...] = ()  # of subject and phrase
    left_out: tuple[LeftOut, ...] = ()


class PreparedFolder:
    """A data folder; ``settings`` are everything besides the photos that determines its records."""

    def __init__(self, root: str | Path, settings: Mapping[str, Any], quality: int) -> None:
        self.root, self.quality = Path(root).expanduser(), quality
        self.folder = self.root / FOLDER
        self.settings = json.loads(json.dumps({**settings, "quality": quality}))
        self._key = digest(self.settings)

    def open(self, restart: bool = False) -> None:
        """Create the folder, or resume a preparation; ``restart`` deletes its records.

        A ValueError refuses a folder of other data, and names settings that have changed.
        """
        file = self.folder / "settings.json"
        if not file.exists():
            if any((self.root / name).exists() for name in ID_LISTS.values()):
                raise ValueError(
                    f"data.root={self.root}: holds a data folder that was not prepared from photos; "
                    "set data.root to another folder"
                )
        elif restart:
            self._delete()
        else:
            try:
                changed = "; ".join(differences(json.loads(file.read_text()), self.settings))
            except ValueError:
                raise ValueError(f"{file}: damaged; {_HINT}") from None
            if changed:
                raise ValueError(f"{self.root} was prepared with other settings ({changed}): {_HINT}")
        remove_leftovers(self.root)
        write_json(file, self.settings)

    def outcome(self, photo: PhotoFile) -> Outcome | None:
        """Outcome of a photo; ``None`` where there is none yet, or the file has changed since."""
        if photo.twin is None:
            try:
                found = self._parse(read_json(self.root, photo.photo_id).extra.get(FIELD), photo)
            except RecordError:
                found = None
            beside = (record_path(self.root, photo.photo_id, suffix) for suffix in (".jpg", ".npy"))
            if found and all(file.exists() for file in beside):
                return found
        try:
            return self._parse(json.loads(self._left_out_file(photo).read_bytes()), photo)
        except (OSError, ValueError):
            return None

    def write_subjects(
        self, photo: PhotoFile, record: Record, image: Image.Image, segment_map: np.ndarray, outcome: Outcome
    ) -> None:
        """Write a record with its outcome; RecordError if it would not read back."""
        record = replace(record, extra={FIELD: {**asdict(outcome), "settings": self._key}})
        write_record(self.root, record, image, segment_map, quality=self.quality)
        self._left_out_file(photo).unlink(missing_ok=True)

    def write_left_out(self, photo: PhotoFile, outcome: Outcome) -> None:
        """List a photo as left out, and delete the record of its earlier version."""
        if photo.twin is None:
            _delete_record(self.root, photo.photo_id)
        write_json(self._left_out_file(photo), {**asdict(outcome), "settings": self._key})

    def write_lists(self, photos: Sequence[PhotoFile], outcomes: Sequence[Outcome], test_share: float) -> int:
        """Write the id lists and the index; returns the number of records.

        Of the records ``test_share`` is held out; unless 0, at least one where there are two. These have the
        smallest digest of their id: with more photos, few change their split.
        """
        names = [p.photo_id for p, outcome in zip(photos, outcomes, strict=True) if outcome.reason is None]
        held_out = round(test_share * len(names))
        if test_share > 0 and len(names) > 1:
            held_out = min(max(held_out, 1), len(names) - 1)
        test = set(sorted(names, key=digest)[:held_out])
        lists = {"all": names, "test": [n for n in names if n in test]}
        lists["train"] = [name for name in names if name not in test]
        for split, ids in lists.items():
            if ids:
                write_ids(self.root, split, ids)
                RecordIndex(self.root, split)
            else:
                (self.root / ID_LISTS[split]).unlink(missing_ok=True)
        return len(names)

    def _left_out_file(self, photo: PhotoFile) -> Path:
        name = photo.photo_id if photo.twin is None else f"{photo.photo_id}.{digest(photo.name)}"
        return self.folder / "left_out" / photo.photo_id[:5] / f"{name}.json"

    def _parse(self, stored: Any, photo: PhotoFile) -> Outcome | None:
        """Validate a stored outcome; ``None`` if it has other settings or another version of the photo."""
        own = {"settings": self._key, "file": photo.name, "fingerprint": photo.fingerprint}
        if not isinstance(stored, dict) or any(stored.get(key) != value for key, value in own.items()):
            return None
        try:
            return _OUTCOME.validate_python(stored)
        except ValueError:
            return None

    def _delete(self) -> None:
        """Delete what an earlier preparation made, and nothing else."""
        for file in self.root.glob("*/*.json"):
            try:
                ours = FIELD in json.loads(file.read_bytes())
            except (OSError, ValueError, TypeError):
                continue
            if ours:
                _delete_record(self.root, file.stem)
        for split, name in ID_LISTS.items():
            (self.root / name).unlink(missing_ok=True)
            (self.root / f".index_{split}.json").unlink(missing_ok=True)
        shutil.rmtree(self.folder, ignore_errors=True)


_OUTCOME = TypeAdapter(Outcome)


def write_text(file: Path, text: str) -> None:
    """Write a file in UTF-8."""
    write_atomically(file, lambda stream: stream.write(text.encode()))


def write_json(file: Path, content: Any) -> None:
    """Write indented JSON."""
    write_text(file, json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def _delete_record(root: Path, photo_id: str) -> None:
    for suffix in (".json", ".jpg", ".npy"):  # without its JSON it is no record
        record_path(root, photo_id, suffix).unlink(missing_ok=True)
