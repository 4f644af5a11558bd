"""Small records to test with: two people, a box each, on an image of smooth colours."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import numpy as np
import torch

from fastcomposer.batch import SubjectBatch
from fastcomposer.data.records import Record, Segment, write_record

SIZE = 24
CAPTION = "a man and a woman"
LEFT = Segment(1, (2, 4, 10, 20), 5, "person", "ann")
RIGHT = Segment(7, (14, 4, 22, 20), 17, "person", "bob")


def photo(seed: int, height: int = SIZE, width: int = SIZE) -> np.ndarray:
    """An image of smooth random colours, which JPEG keeps well."""
    corners = np.random.default_rng(seed).integers(0, 256, (2, 2, 3)).astype(float)
    down, right = np.linspace(0, 1, height)[:, None, None], np.linspace(0, 1, width)[None, :, None]
    top = corners[0, 0] * (1 - right) + corners[0, 1] * right
    bottom = corners[1, 0] * (1 - right) + corners[1, 1] * right
    return (top * (1 - down) + bottom * down).astype(np.uint8)


def segment_map(*segments: Segment, height: int = SIZE, width: int = SIZE) -> np.ndarray:
    """A map in which each segment fills its box."""
    pixels = np.zeros((height, width), dtype=np.int64)
    for segment in segments:
        x1, y1, x2, y2 = segment.bbox
        pixels[max(y1, 0) : y2, max(x1, 0) : x2] = segment.id
    return pixels


def add_record(
    root: Path, record_id: str, *segments: Segment, caption: str = CAPTION, seed: int = 0
) -> np.ndarray:
    """Write one record; return its image."""
    pixels = photo(seed)
    write_record(root, Record(record_id, caption, segments), pixels, segment_map(*segments), quality=100)
    return pixels


def equal(one: SubjectBatch, other: SubjectBatch) -> bool:
    """Whether two batches are equal bit for bit."""
    pairs = [(getattr(one, f.name), getattr(other, f.name)) for f in fields(SubjectBatch)]
    return all(torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b for a, b in pairs)
