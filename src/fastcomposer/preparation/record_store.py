"""The data folder under preparation: what is done, what was left out and why.

``<root>/preparation/`` holds ``settings.json``, ``left_out/<first five characters of id>/<id>.json`` for each
photo that is no record, and what :mod:`fastcomposer.preparation.preparation_page` makes of it all. A record
says in its JSON, under ``"preparation"``, which file it was made from.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from fastcomposer.data.index import RecordIndex
from fastcomposer.data.records import (
    ID_LISTS,
    Record,
    RecordError,
    read_json,
    record_path,
    write_atomically,
    write_ids,
    write_record,
)
from fastcomposer.preparation.photos import PhotoFile
from fastcomposer.utils.files import remove_leftovers
from fastcomposer.utils.settings import differences, digest

FOLDER = "preparation"
FIELD = "preparation"
_GO_ON = "data.root=<other> prepares beside it, data.prepare.restart=true forgets it"


@dataclass(frozen=True)
class LeftOut:
    """Something found in a photo that is no subject of its record.

    Attributes:
        what: ``segment`` or ``phrase``.
        name: Its label or its text.
        reason: Why.
    """

    what: str
    name: str
    reason: str


@dataclass(frozen=True)
class Outcome:
    """What became of a photo.

    Attributes:
        file: Its path inside the source.
        fingerprint: Of the file and its caption.
        size: Width and height in pixels; zeros where it could not be read.
        reason: Why it is no record; ``None`` where it is one.
        detail: More on the reason.
        words: Word of each subject.
        areas: Share of the image of each subject.
        similarities: Of each subject with its phrase.
        left_out: What else was found.
    """

    file: str
    fingerprint: str
    size: tuple[int, int] = (0, 0)
    reason: str | None = None
    detail: str = ""
    words: tuple[str, ...] = ()
    areas: tuple[float, ...] = ()
    similarities: tuple[float, ...] = ()
    left_out: tuple[LeftOut, ...] = field(default=())


class PreparedFolder:
    """A data folder and its ``preparation/``.

    Args:
        root: The data folder.
        decides: All that decides the records beside the photos themselves; plain values.
        quality: JPEG quality of the records.
    """

    def __init__(self, root: str | Path, decides: Mapping[str, Any], quality: int) -> None:
        self.root, self.quality = Path(root).expanduser(), quality
        self.folder = self.root / FOLDER
        self.decides = json.loads(json.dumps({**decides, "quality": quality}))
        self._key = digest(self.decides)

    def open(self, restart: bool = False) -> None:
        """Make the folder, or go on with what was made under the same settings.

        Args:
            restart: Whether to remove what an earlier preparation made.

        Raises:
            ValueError: If the folder holds other data, or was prepared under other settings, with what
                differs and how to go on.
        """
        file = self.folder / "settings.json"
        stored = None
        if file.exists():
            try:
                stored = json.loads(file.read_text())
            except ValueError:
                raise ValueError(f"{file}: damaged; {_GO_ON}") from None
        elif any((self.root / name).exists() for name in ID_LISTS.values()):
            raise ValueError(
                f"data.root={self.root}: holds a data folder that was not prepared from photos; "
                "give data.root another folder"
            )
        if restart and file.exists():
            self._forget()
        elif stored is not None and (changed := differences(stored, self.decides)):
            raise ValueError(
                f"{self.root} was prepared under other settings ({'; '.join(changed)}): {_GO_ON}"
            )
        remove_leftovers(self.root)
        self._write(file, self.decides)

    def outcome(self, photo: PhotoFile) -> Outcome | None:
        """What became of a photo; ``None`` where nothing yet, or where the file has changed since."""
        if photo.twin is None:
            try:
                stored = read_json(self.root, photo.photo_id).extra.get(FIELD)
                pixels = [record_path(self.root, photo.photo_id, end) for end in (".jpg", ".npy")]
            except RecordError:
                stored, pixels = None, []
            found = self._parse(stored, photo)
            if found is not None and all(path.exists() for path in pixels):
                return found
        try:
            return self._parse(json.loads(self._left_out_file(photo).read_bytes()), photo)
        except (OSError, ValueError):
            return None

    def write_subjects(
        self, photo: PhotoFile, record: Record, image: Image.Image, segment_map: np.ndarray, outcome: Outcome
    ) -> None:
        """Write a record with its outcome.

        Raises:
            RecordError: If it would not read back.
        """
        told = {FIELD: {**asdict(outcome), "settings": self._key}}
        record = Record(record.record_id, record.caption, record.segments, told)
        write_record(self.root, record, image, segment_map, quality=self.quality)
        self._left_out_file(photo).unlink(missing_ok=True)

    def write_left_out(self, photo: PhotoFile, outcome: Outcome) -> None:
        """List a photo that is no record, with its reason."""
        if photo.twin is None:  # of the file before it was changed
            _remove_record(self.root, photo.photo_id)
        self._write(self._left_out_file(photo), {**asdict(outcome), "settings": self._key})

    def write_lists(self, photos: Sequence[PhotoFile], outcomes: Sequence[Outcome], test_share: float) -> int:
        """Write the id lists and the index.

        Those with the smallest digest of their id are held out, so that more photos move hardly any.

        Args:
            photos: All photos.
            outcomes: What became of each.
            test_share: Share of the records to hold out; at least one where there are two, unless it is 0.

        Returns:
            Number of records.
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
        if not isinstance(stored, dict) or stored.get("settings") != self._key:
            return None
        if (stored.get("file"), stored.get("fingerprint")) != (photo.name, photo.fingerprint):
            return None
        try:
            values: dict[str, Any] = {name: stored[name] for name in Outcome.__dataclass_fields__}
            values = {name: tuple(v) if isinstance(v, list) else v for name, v in values.items()}
            values["left_out"] = tuple(LeftOut(**entry) for entry in values["left_out"])
            return Outcome(**values)
        except (LookupError, TypeError):
            return None

    def _forget(self) -> None:
        """Remove what an earlier preparation made, and nothing else."""
        for file in self.root.glob("*/*.json"):
            try:
                ours = FIELD in json.loads(file.read_bytes())
            except (OSError, ValueError, TypeError):
                ours = False
            if ours:
                _remove_record(self.root, file.stem)
        for split, name in ID_LISTS.items():
            (self.root / name).unlink(missing_ok=True)
            (self.root / f".index_{split}.json").unlink(missing_ok=True)
        shutil.rmtree(self.folder, ignore_errors=True)

    def _write(self, file: Path, content: Mapping[str, Any]) -> None:
        data = (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode()
        write_atomically(file, lambda stream: stream.write(data))


def _remove_record(root: Path, photo_id: str) -> None:
    for suffix in (".json", ".jpg", ".npy"):  # without its JSON it is no record
        record_path(root, photo_id, suffix).unlink(missing_ok=True)
