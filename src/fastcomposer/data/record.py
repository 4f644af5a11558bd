"""The parts of a record, and the error of a defect."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Segment:
    """One segment of a record.

    Attributes:
        id: Value of its pixels in the segment map.
        bbox: x1, y1, x2, y2 in pixels, the second corner exclusive; may reach beyond the image.
        end: Character offset in the caption just after the segment's word, where the marker goes.
        label: Class name (``coco_label`` on disk).
        identity: Name shared by the segments, in any record, that show the same individual.
        face: x1, y1, x2, y2 of their face in pixels.
    """

    id: int
    bbox: tuple[int, int, int, int]
    end: int
    label: str
    identity: str | None = None
    face: tuple[float, float, float, float] | None = None


@dataclass(frozen=True)
class Record:
    """The content of a record's JSON.

    Attributes:
        record_id: Name of the record.
        caption: Text without markers.
        segments: Segments that the caption names.
        extra: Further top-level JSON fields, kept as they are.
    """

    record_id: str
    caption: str
    segments: tuple[Segment, ...]
    extra: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class LoadedRecord:
    """A record with its pixels.

    Attributes:
        record: The JSON part.
        image: (ceil(H / r), ceil(W / r), 3) uint8 RGB.
        segment_map: (H, W) integers, pixel = segment id.
        image_file: Content of the image's file.
        reduction: The factor r by which the image was shrunk when it was decoded: 1, 2, 4 or 8.
    """

    record: Record
    image: np.ndarray
    segment_map: np.ndarray
    image_file: bytes
    reduction: int = 1


@dataclass(frozen=True)
class RecordFiles:
    """The content of a record's three files."""

    json: bytes
    jpg: bytes
    npy: bytes


class RecordError(ValueError):
    """A defect of the data on disk; the message names the file and the field."""


def record_error(path: Path, field_name: str, problem: str) -> RecordError:
    """Name file, field and problem."""
    # One plain string, so that the error can be raised again from a data worker.
    return RecordError(f"{path}: {field_name}: {problem}")
