"""Images of records: the photo with its subjects' masks, and the caption in their colours."""

from __future__ import annotations

import base64
from io import BytesIO
from itertools import cycle
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw

from fastcomposer.data.records import read_record

COLORS = ((230, 75, 60), (40, 110, 200), (20, 150, 110), (200, 140, 0), (150, 80, 180), (0, 150, 170))
_OPACITY = 115  # of the masks, of 255
_SIDE = 320  # pixels of the longer side on the page


class Piece(NamedTuple):
    """A part of a caption; ``color`` is ``#rrggbb`` of the subject that its last word names."""

    text: str
    color: str | None


class Sample(NamedTuple):
    """A record on the page: its id, its image as a ``data:`` address, and its caption."""

    name: str
    source: str
    caption: tuple[Piece, ...]


def draw_sample(root: Path, record_id: str) -> Sample:
    """Draw the masks and boxes of a record's subjects on its image."""
    loaded = read_record(root, record_id)
    subjects = sorted(loaded.record.segments, key=lambda segment: segment.end)
    image = Image.fromarray(loaded.image)
    pen, width = ImageDraw.Draw(image), max(1, max(image.size) // _SIDE)
    for segment, color in zip(subjects, cycle(COLORS)):
        mask = Image.fromarray((loaded.segment_map == segment.id) * np.uint8(_OPACITY))
        image.paste(color, mask=mask)
        x1, y1, x2, y2 = segment.bbox
        pen.rectangle((x1, y1, x2 - 1, y2 - 1), outline=color, width=width)
    image.thumbnail((_SIDE, _SIDE), Image.Resampling.LANCZOS)
    data = BytesIO()
    image.save(data, "JPEG", quality=85)
    source = f"data:image/jpeg;base64,{base64.b64encode(data.getvalue()).decode()}"
    ends = [segment.end for segment in subjects]
    return Sample(record_id, source, color_words(loaded.record.caption, ends))


def color_words(caption: str, ends: list[int]) -> tuple[Piece, ...]:
    """Divide a caption so that the word before each of the ascending offsets has its subject's colour."""
    pieces, done = [], 0
    for end, color in zip(ends, cycle(COLORS)):
        start = max(caption.rfind(" ", 0, end) + 1, done)
        pieces.append(Piece(caption[done:start], None))
        pieces.append(Piece(caption[start:end], "#{:02x}{:02x}{:02x}".format(*color)))
        done = end
    pieces.append(Piece(caption[done:], None))
    return tuple(piece for piece in pieces if piece.text)
