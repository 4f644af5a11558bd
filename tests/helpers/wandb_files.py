"""Read back what an offline run of Weights & Biases has written, to the byte as ``wandb sync`` sends it."""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from wandb.proto.wandb_internal_pb2 import Record

_BLOCK, _HEADER = 1 << 15, 7  # as in the logs of LevelDB


@dataclass
class RunFile:
    """Contents of a run: values by key in order, artifacts (kind, name, description), files of each table."""

    run: Any = None
    config: dict[str, Any] = field(default_factory=dict)
    history: dict[str, list[Any]] = field(default_factory=dict)
    used: list[tuple[str, str, dict[str, Any]]] = field(default_factory=list)
    made: list[tuple[str, str, dict[str, Any]]] = field(default_factory=list)
    tables: list[dict[str, Path]] = field(default_factory=list)


def read_run(file: Path) -> RunFile:
    """Read a ``.wandb`` file."""
    found = RunFile()
    for data in _messages(file.read_bytes()):
        record = Record.FromString(data)
        kind = record.WhichOneof("record_type")
        if kind == "run":
            found.run = record.run
            _update(found.config, record.run.config)
        elif kind == "config":
            _update(found.config, record.config)
        elif kind == "history":
            for key, value in _row(record.history).items():
                found.history.setdefault(key, []).append(value)
        elif kind == "artifact":
            artifact = record.artifact
            listed = found.used if artifact.use_after_commit else found.made
            listed.append((artifact.type, artifact.name, json.loads(artifact.metadata or "{}")))
            if artifact.type == "run_table":
                found.tables.append({f.path: Path(f.local_path) for f in artifact.manifest.contents})
    return found


def _update(config: dict[str, Any], record: Any) -> None:
    for item in record.update:
        config[item.key or ".".join(item.nested_key)] = json.loads(item.value_json)


def _row(history: Any) -> dict[str, Any]:
    """What was logged at once; what is no number comes in pieces."""
    row: dict[str, Any] = {}
    for item in history.item:
        *outer, last = item.nested_key or [item.key]
        place = row
        for key in outer:
            place = place.setdefault(key, {})
        place[last] = json.loads(item.value_json)
    return row


def _messages(data: bytes) -> Iterator[bytes]:
    """Messages of the file, put together from the pieces that blocks divide them into."""
    assert data[:4] == b":W&B"
    place, pieces = _HEADER, b""
    while place + _HEADER <= len(data):
        left = _BLOCK - place % _BLOCK
        if left < _HEADER:
            place += left
            continue
        checksum, length, kind = struct.unpack_from("<IHB", data, place)
        piece = data[place + _HEADER : place + _HEADER + length]
        assert zlib.crc32(bytes([kind]) + piece) == checksum
        pieces += piece
        place += _HEADER + length
        if kind in (1, 4):  # whole, or the last of several
            yield pieces
            pieces = b""
