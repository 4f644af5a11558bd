"""The pixels of a record: decoding, and checks against its JSON."""

from __future__ import annotations

import io
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from fastcomposer.data.record import Segment, record_error
from fastcomposer.utils.files import existing_file


def clamp_box(bbox: Sequence[int], height: int, width: int) -> tuple[int, int, int, int]:
    """Return the part of an x1, y1, x2, y2 box that lies inside an image."""
    x1, y1, x2, y2 = bbox
    return max(x1, 0), max(y1, 0), min(x2, width), min(y2, height)


def check_pixels(
    segments: Iterable[Segment],
    size: tuple[int, ...],
    segment_map: np.ndarray,
    path: Path,
    labels: Collection[str] | None,
) -> None:
    """Check the segment map against the image's height and width and against the segments."""
    map_path = path.with_suffix(".npy")
    if segment_map.ndim != 2 or segment_map.dtype.kind not in "iu":
        found = f"{segment_map.dtype} of shape {segment_map.shape}"
        raise record_error(map_path, "segment map", f"must be 2-D and of integers, not {found}")
    if segment_map.shape != size:
        problem = f"height and width {segment_map.shape}, but those of the image are {tuple(size)}"
        raise record_error(map_path, "segment map", problem)
    for number, segment in enumerate(segments):
        if labels is not None and segment.label not in labels:
            continue
        x1, y1, x2, y2 = clamp_box(segment.bbox, *segment_map.shape)
        # Row by row: a box begins where its segment does, as a rule.
        if x1 < x2 and any((row == segment.id).any() for row in segment_map[y1:y2, x1:x2]):
            continue
        if not (segment_map == segment.id).any():
            raise record_error(
                path, f"segments[{number}].id", f"{segment.id} does not occur in {map_path.name}"
            )
        where = f"x1, y1, x2, y2 = {list(segment.bbox)} in {size[1]} x {size[0]} pixels (width x height)"
        raise record_error(path, f"segments[{number}].bbox", f"{where} holds no pixel of the segment")


_MOST_RATIO = 32
_SMALL = 1024  # pixels of a side
_REDUCTIONS = (8, 4, 2)  # factors by which a JPEG decoder leaves out pixels before they are computed


def is_narrow(size: tuple[int, int]) -> bool:
    """Whether an image is too narrow for a record: scaled to a square target it would take gigabytes."""
    return max(size) > max(_SMALL, _MOST_RATIO * min(size))


@dataclass(frozen=True)
class NeededSize:
    """The pixels that a sample needs of an image; a JPEG with more is decoded at a fraction of its size."""

    height: int  # of the image, in pixels
    reference: int  # side in pixels of the references cut out of the image; 0 for none
    zoom: bool  # whether a reference may be enlarged, which then shows a square as wide as the segment
    segment_id: int | None = None  # the only segment that becomes a reference; None for all

    def reduction(self, segments: Iterable[Segment], height: int, width: int) -> int:
        """Return the largest factor by which an image may shrink: 8, 4, 2 or 1."""
        sides = [height // max(self.height, 1)]
        for segment in segments:
            if self.reference and self.segment_id in (None, segment.id):
                x1, y1, x2, y2 = clamp_box(segment.bbox, height, width)
                sides.append((x2 - x1 if self.zoom else max(x2 - x1, y2 - y1)) // self.reference)
        return next((factor for factor in _REDUCTIONS if min(sides) >= factor), 1)


def decode_image(
    content: bytes, path: Path, segments: Iterable[Segment] = (), needed: NeededSize | None = None
) -> tuple[np.ndarray, tuple[int, int], int]:
    """Decode a JPEG at the size that is needed of it (``None``: at full size); other formats at full size.

    Returns:
        (ceil(H / r), ceil(W / r), 3) uint8 RGB, height and width in the file, and the factor r.

    Raises:
        RecordError: If it cannot be read, has more than 179 million pixels, or is narrow.
    """
    try:
        with Image.open(io.BytesIO(content)) as image:
            width, height = image.size
            if is_narrow(image.size):
                raise ValueError(f"{width} x {height} pixels (width x height) are too narrow for a record")
            factor = 1 if needed is None else needed.reduction(segments, height, width)
            possible = 1 < factor <= min(height, width)
            if not possible or image.draft("RGB", (width // factor, height // factor)) is None:
                factor = 1
            photo = image if image.mode == "RGB" else eight_bit(image).convert("RGB")
            return np.array(photo), (height, width), factor
    except Exception as error:  # damaged bytes may raise anything in a decoder
        raise record_error(path, "image", f"unreadable: {error}") from None


def eight_bit(image: Image.Image) -> Image.Image:
    """Bring an image of 16 bits a channel to 8, where Pillow clips; refuse floats, whose range is unknown."""
    if image.mode == "F":
        raise ValueError("pixels are floating-point numbers")
    if not image.mode.startswith("I"):
        return image
    values = np.asarray(image).astype(np.int64)
    if image.mode.startswith("I;16") or values.max(initial=0) > 255:
        values = (values + 128) // 257
    return Image.fromarray(values.clip(0, 255).astype(np.uint8))


def open_image(path: Path) -> Image.Image:
    """Read an image file; of an animation, the first image.

    Raises:
        ValueError: If it cannot be read or has more than 179 million pixels (twice
            ``PIL.Image.MAX_IMAGE_PIXELS``), naming the file.
    """
    try:
        with Image.open(existing_file(path, "image")) as opened:
            opened.load()
        return eight_bit(opened)
    except Exception as error:  # damaged bytes may raise anything in a decoder
        raise ValueError(f"{path} cannot be read as an image: {error}") from error


def decode_map(content: bytes, path: Path) -> np.ndarray:
    """Decode a segment map, of whatever shape and type."""
    try:
        segment_map = np.load(io.BytesIO(content), allow_pickle=False)
    except Exception as error:  # a damaged header may raise anything, errors of tokenize and zipfile included
        raise record_error(path, "segment map", f"unreadable: {error}") from None
    if not isinstance(segment_map, np.ndarray):
        raise record_error(path, "segment map", "is an archive of arrays, not one array")
    return segment_map
