"""A subject cut out of an image, on another background."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from fastcomposer.data.pixels import clamp_box


def cut_out(
    image: np.ndarray,
    segment_map: np.ndarray,
    segment_id: int,
    bbox: Sequence[int],
    rng: np.random.Generator,
    reduction: int = 1,
    background: str = "noise",
) -> Tensor:
    """Cut a segment out of its image, pixels outside it replaced by uniform noise (docs/method.md).

    Out of an image that was shrunk by r when decoded, the noise is what averaging r × r pixels of it leaves.

    Args:
        image: (ceil(H / r), ceil(W / r), 3) uint8.
        segment_map: (H, W) integers.
        segment_id: Value of the segment's pixels.
        bbox: x1, y1, x2, y2 in pixels of the segment map; the part inside it is used.
        rng: Where the noise comes from.
        reduction: The factor r.
        background: ``noise``, ``black``, or ``kept`` for the pixels of the image.

    Returns:
        (3, h, w) uint8, colours last in memory, which later steps take fastest.
    """
    x1, y1, x2, y2 = clamp_box(bbox, *segment_map.shape)
    seen = segment_map[y1:y2, x1:x2]
    if reduction > 1:
        y1, x1 = y1 // reduction, x1 // reduction
        middle = slice(reduction // 2, None, reduction)  # of the pixels that became one
        seen = segment_map[middle, middle][y1 : -(-y2 // reduction), x1 : -(-x2 // reduction)]
    height, width = seen.shape
    pixels = image[y1 : y1 + height, x1 : x1 + width]
    if background == "kept":
        return torch.from_numpy(pixels.copy()).permute(2, 0, 1)
    noise = np.uint8(0) if background == "black" else _noise(height, width, reduction, rng)
    # Bits instead of np.where, which is ten times slower with a mask that repeats over the last axis.
    inside = np.repeat(np.where(seen == segment_id, np.uint8(255), np.uint8(0)), 3).reshape(pixels.shape)
    return torch.from_numpy((pixels & inside) | (noise & ~inside)).permute(2, 0, 1)


def _noise(height: int, width: int, reduction: int, rng: np.random.Generator) -> np.ndarray:
    """Draw (h, w, 3) means of r × r uniform values of 0 to 255, rounded to uint8."""
    if reduction == 1:
        noise = rng.integers(0, 256, size=(3, height, width), dtype=np.uint8)
        return np.ascontiguousarray(noise.transpose(1, 2, 0))
    count = height * width * 3
    raw = rng.integers(0, 1 << 64, size=-(-count // 4), dtype=np.uint64).view(np.uint16)[:count]
    return _mean_quantiles(reduction**2).take(raw, mode="clip").reshape(height, width, 3)


@lru_cache(maxsize=3)
def _mean_quantiles(count: int) -> np.ndarray:
    """Return the rounded mean of ``count`` uniform values of 0 to 255 at 65536 even quantiles."""
    odds = np.ones(1)
    for _ in range(count):
        odds = np.convolve(odds, np.full(256, 1 / 256))
    quantiles = (np.arange(1 << 16) + 0.5) / (1 << 16)
    return np.round(np.searchsorted(np.cumsum(odds), quantiles) / count).astype(np.uint8)
