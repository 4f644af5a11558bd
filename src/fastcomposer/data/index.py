"""The index of a data folder: its good records, their labels and identities."""

from __future__ import annotations

import contextlib
import hashlib
import json
import warnings
from collections import Counter
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any

from fastcomposer.data.records import (
    ID_LISTS,
    RecordError,
    RecordFiles,
    parse_record,
    read_files,
    read_ids,
    read_json,
    record_path,
    write_atomically,
)
from fastcomposer.utils.settings import digest

ON_BAD_RECORD = ("raise", "skip")
_INDEX_VERSION = 2
Segments = dict[str, tuple[tuple[int, str, str | None], ...]]
"""(id, label, identity) of each segment, by record."""


class RecordTable:
    """The good records of a split, with the labels and identities of their segments."""

    location: str | Path  # for messages
    record_ids: tuple[str, ...]  # good records in the order of the id list
    bad_records: dict[str, str]  # reason for each bad record; empty unless they are skipped
    segments: Segments

    def files(self, record_id: str) -> RecordFiles:
        """Read the files of a record."""
        raise NotImplementedError

    def image_and_caption(self, record_id: str) -> tuple[bytes, str]:
        """Read the content of a record's image file, and its caption."""
        files = self.files(record_id)
        return files.jpg, str(json.loads(files.json)["caption"])

    def num_subjects(self, record_id: str, labels: Collection[str] | None = None) -> int:
        """Count the segments of a record that carry one of the labels (any label when ``None``)."""
        return sum(labels is None or label in labels for _, label, _ in self.segments[record_id])

    def has_faces(self, most: int = 64) -> bool:
        """Whether a record has an annotated face, of up to ``most`` that are spread over the split."""
        names = self.record_ids[:: max(1, -(-len(self.record_ids) // most))]
        records = (parse_record(json.loads(self.files(name).json), Path(name), name) for name in names)
        return any(segment.face for record in records for segment in record.segments)

    def by_identity(self, labels: Collection[str] | None = None) -> dict[str, list[tuple[str, int]]]:
        """Return the (record, segment) ids that show each identity, in the order of the id list."""
        found: dict[str, list[tuple[str, int]]] = {}
        for record_id in dict.fromkeys(self.record_ids):
            for segment_id, label, identity in self.segments[record_id]:
                if identity is not None and (labels is None or label in labels):
                    found.setdefault(identity, []).append((record_id, segment_id))
        return found


class RecordIndex(RecordTable):
    """The good records of a data folder.

    The JSON of every record is read once; the result is kept in ``<root>/.index_<split>.json``, which is
    rebuilt when the id list or a record's folder changes and is left out where the folder is read-only.
    Pixels are not read.

    Args:
        root: Data folder.
        split: ``train``, ``test`` or ``all``.
        on_bad_record: ``raise`` at the first, or ``skip`` them with one warning.

    Raises:
        RecordError: If the id list is missing or empty, no record is good, or a record is bad under
            ``raise``.
    """

    def __init__(self, root: str | Path, split: str, on_bad_record: str = "raise") -> None:
        if on_bad_record not in ON_BAD_RECORD:
            raise ValueError(
                f"on_bad_record must be one of {', '.join(ON_BAD_RECORD)}, not {on_bad_record!r}"
            )
        self.root = self.location = Path(root)
        ids = read_ids(root, split)
        path = self.root / f".index_{split}.json"
        key = _fingerprint(self.root / ID_LISTS[split], ids)
        self.segments = _load_index(path, key)
        # A record that was bad is not in the file and is read again: it may have been repaired.
        missing = [record_id for record_id in dict.fromkeys(ids) if record_id not in self.segments]
        self.bad_records = {}
        for record_id in missing:
            try:
                found = read_json(root, record_id).segments
            except RecordError as error:
                if on_bad_record == "raise":
                    raise
                self.bad_records[record_id] = str(error)
            else:
                self.segments[record_id] = tuple((s.id, s.label, s.identity) for s in found)
        if len(self.bad_records) < len(missing):
            _save_index(path, key, self.segments)
        self.record_ids = tuple(record_id for record_id in ids if record_id in self.segments)
        if reasons := list(self.bad_records.values()):
            shown = "; ".join(reasons[:3]) + ("; …" if len(reasons) > 3 else "")
            if not self.record_ids:
                raise RecordError(f"{self.root / ID_LISTS[split]}: no record is good: {shown}")
            summary = f"{len(reasons)} of {len(ids)} records in {root} are bad and skipped: {shown}"
            warnings.warn(summary, stacklevel=2)

    def files(self, record_id: str) -> RecordFiles:
        """See :class:`RecordTable`."""
        return read_files(self.root, record_id)

    def image_and_caption(self, record_id: str) -> tuple[bytes, str]:
        """See :class:`RecordTable`; the segment map is not read."""
        caption = read_json(self.root, record_id).caption
        return record_path(self.root, record_id, ".jpg").read_bytes(), caption


def _fingerprint(id_list: Path, ids: Iterable[str]) -> str:
    """Hash what changes when records are added, rewritten or removed, without opening them."""
    status = id_list.stat()
    found = hashlib.sha256(id_list.read_bytes())
    found.update(repr((_INDEX_VERSION, status.st_mtime_ns, status.st_size)).encode())
    for folder in sorted({record_id[:5] for record_id in ids}):
        path = id_list.parent / folder
        found.update(repr((folder, path.stat().st_mtime_ns if path.is_dir() else None)).encode())
    return found.hexdigest()


def _load_index(path: Path, key: str) -> Segments:
    try:
        content = json.loads(path.read_bytes())
        if content["key"] != key:
            return {}
        return {name: tuple((s[0], s[1], s[2]) for s in found) for name, found in content["records"].items()}
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return {}  # missing, or not ours: built anew


def _save_index(path: Path, key: str, segments: Segments) -> None:
    content = json.dumps({"key": key, "records": segments}, ensure_ascii=False).encode()
    with contextlib.suppress(OSError):  # a read-only data folder: the index lives in memory
        write_atomically(path, lambda file: file.write(content))


def describe_records(table: RecordTable, labels: Collection[str] | None) -> dict[str, Any]:
    """Describe the records of a split in a few lines; pixels are not read.

    Returns:
        Plain values: how many ``records`` and ``bad_records``, ``subjects`` and ``identities`` there are,
        ``records_by_subjects`` and ``subjects_by_label``, and the ``digest`` of ids, labels and identities.
    """
    names = tuple(dict.fromkeys(table.record_ids))
    segments = {name: table.segments[name] for name in names}
    counts = [table.num_subjects(name, labels) for name in names]
    by_label = Counter(
        label for found in segments.values() for _, label, _ in found if labels is None or label in labels
    )
    return {
        "records": len(names),
        "bad_records": len(table.bad_records),
        "subjects": sum(counts),
        "identities": len(table.by_identity(labels)),
        "records_by_subjects": {str(k): n for k, n in sorted(Counter(counts).items())},
        "subjects_by_label": dict(sorted(by_label.items())),
        "digest": digest([list(table.record_ids), segments]),
    }
