"""Image grids and attention overlays."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

_MARGIN = 6
_LINE = 20  # height of a line of a title
_OWNERS = ((230, 90, 40), (40, 120, 220), (20, 160, 110), (200, 150, 0))  # of subjects


def grid(rows: Sequence[Sequence[Image.Image]], side: int = 192, titles: Sequence[str] = ()) -> Image.Image:
    """Put images into rows on white, each resized to a square of ``side`` pixels.

    Rows may differ in length. Transparent images are shown on light grey. Titles of columns may have several
    lines.
    """
    columns = max(len(row) for row in rows)
    step, head = side + _MARGIN, max((1 + title.count("\n") for title in titles), default=0) * _LINE
    sheet = Image.new("RGB", (columns * step + _MARGIN, head + len(rows) * step + _MARGIN), "white")
    for x, title in enumerate(titles):
        middle, font = (x * step + _MARGIN + side / 2, head), ImageFont.load_default(_LINE * 0.7)
        ImageDraw.Draw(sheet).multiline_text(middle, title, "black", font, anchor="md", align="center")
    for y, row in enumerate(rows):
        for x, image in enumerate(row):
            # Nearest pixels for small images: what the model made, not what interpolation adds.
            how = Image.Resampling.NEAREST if max(image.size) <= side // 2 else Image.Resampling.LANCZOS
            tile = image.convert("RGBA").resize((side, side), how)
            corner = (x * step + _MARGIN, head + y * step + _MARGIN)
            sheet.paste(Image.new("RGB", (side, side), (238, 238, 238)), corner)
            sheet.paste(tile, corner, tile)
    return sheet


def attention_overlay(image: Image.Image, attention: Tensor, strength: float = 0.75) -> Image.Image:
    """Show where a word attends: bright where it does, dark where not, by a strength of 0 to 1.

    ``attention`` is (h, w), not negative; it is scaled by its own maximum.
    """
    weight = _scaled(attention[None], image)[0].numpy()[..., None]
    pixels = np.asarray(image.convert("RGB"), dtype=np.float32)
    tint = np.array([255.0, 220.0, 60.0]) * 0.25
    mixed = pixels * (1 - strength + strength * weight) + tint * weight * strength
    return Image.fromarray(np.clip(mixed, 0, 255).astype(np.uint8))


def owner_overlay(image: Image.Image, attention: Tensor, strength: float = 0.7) -> Image.Image:
    """Colour every pixel by the subject whose word attends to it most, by a strength of 0 to 1.

    ``attention`` is (K, h, w), not negative; each subject's is scaled by its own maximum.
    """
    most, owner = _scaled(attention, image).max(0)
    colours = np.array(_OWNERS, np.float32)[owner.numpy() % len(_OWNERS)]
    weight = most.numpy()[..., None] * strength
    # Grey below the colours, so that they are read as colours of subjects, not of things.
    grey = np.asarray(image.convert("L").convert("RGB"), np.float32)
    return Image.fromarray((grey * (1 - weight) + colours * weight).round().astype(np.uint8))


def _scaled(attention: Tensor, image: Image.Image) -> Tensor:
    """(K, h, w) maps at the size of an image, each divided by its maximum."""
    size = (image.height, image.width)
    smooth = F.interpolate(attention[None].float(), size=size, mode="bicubic", align_corners=False)[0]
    return (smooth / smooth.amax((1, 2), keepdim=True).clamp(min=1e-8)).clamp(0, 1)
