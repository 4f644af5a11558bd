"""Boxes of faces in records that lack them, for the losses of faces."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from fastcomposer.data.index import RecordIndex
from fastcomposer.data.records import read_record, record_path
from fastcomposer.utils.files import write_atomically
from fastcomposer.utils.progress import tracked
from fastcomposer.utils.ranges import Fraction

Detect = Callable[[Image.Image], Sequence[Sequence[float]]]
"""From an image to boxes x1, y1, x2, y2 in pixels."""


def annotate_faces(
    root: str | Path,
    splits: Sequence[str] = ("train", "test"),
    threshold: Fraction = 0.9,
    restart: bool = False,
    detect: Detect | None = None,
) -> int:
    """Add to each segment of a data folder the box of the face in it, ``null`` where none is found.

    A face belongs to the segment that most of its box shows, at least a quarter of it, and a segment gets the
    face that it shows most of. Records that have them, rendered scenes too, are left as they are: an
    interrupted call continues where it stopped.

    Args:
        root: Data folder in the published format.
        splits: Its splits.
        threshold: Least probability of a face.
        restart: Look at all records again.
        detect: Finds the faces of an image; MTCNN, whose weights come with facenet-pytorch, by default.

    Returns:
        How many records were annotated by this call.
    """
    names = {name: None for split in splits for name in RecordIndex(root, split, "skip").record_ids}
    missing = [name for name in names if restart or not _annotated(record_path(root, name, ".json"))]
    if missing and detect is None:
        detect = mtcnn_faces(threshold)
    count = 0
    for name in tracked(missing, f"faces in {root}"):
        assert detect is not None
        loaded = read_record(root, name)
        path = record_path(root, name, ".json")
        content = json.loads(path.read_bytes())
        if "heads" in content:
            continue
        ids = [segment.id for segment in loaded.record.segments]
        faces = match_faces(detect(Image.fromarray(loaded.image)), loaded.segment_map, ids)
        for entry, face in zip(content["segments"], faces, strict=True):
            entry["face"] = face
        text = (json.dumps(content, ensure_ascii=False) + "\n").encode()
        write_atomically(path, lambda file, text=text: file.write(text))  # type: ignore[misc]
        count += 1
    return count


def match_faces(
    boxes: Sequence[Sequence[float]], segment_map: np.ndarray, segment_ids: Sequence[int]
) -> list[tuple[float, float, float, float] | None]:
    """Give each segment the face that it shows most of.

    Args:
        boxes: x1, y1, x2, y2 of faces in pixels.
        segment_map: (H, W) integers.
        segment_ids: Of the segments.

    Returns:
        For each segment its box, cut off at the image's sides, or ``None``.
    """
    height, width = segment_map.shape
    found: dict[int, tuple[float, tuple[float, float, float, float]]] = {}
    for box in boxes:
        x1, x2 = (min(max(round(float(value), 1), 0.0), width) for value in (box[0], box[2]))
        y1, y2 = (min(max(round(float(value), 1), 0.0), height) for value in (box[1], box[3]))
        shown = segment_map[int(y1) : int(np.ceil(y2)), int(x1) : int(np.ceil(x2))]
        if not shown.size or x2 <= x1 or y2 <= y1:
            continue
        shares = {number: float((shown == number).mean()) for number in segment_ids}
        best = max(shares, key=shares.__getitem__, default=None)
        if best is not None and shares[best] >= 0.25 and (best not in found or shares[best] > found[best][0]):
            found[best] = shares[best], (x1, y1, x2, y2)
    return [found[number][1] if number in found else None for number in segment_ids]


def _annotated(path: Path) -> bool:
    content: Any = json.loads(path.read_bytes())
    return "heads" in content or all("face" in entry for entry in content["segments"])


def mtcnn_faces(threshold: float = 0.9) -> Detect:
    """Find faces of at least some probability by MTCNN, whose weights come with facenet-pytorch."""
    import torch
    from facenet_pytorch import MTCNN

    detector = MTCNN(keep_all=True, device="cuda" if torch.cuda.is_available() else "cpu").eval()

    def detect(image: Image.Image) -> Sequence[Sequence[float]]:
        boxes, scores = detector.detect(image)
        return [] if boxes is None else [b for b, s in zip(boxes, scores, strict=True) if s >= threshold]

    return detect
