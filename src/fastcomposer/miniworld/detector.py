"""Head detector: boxes of the heads in a scene whose sides the stride divides."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import box_iou, clip_boxes_to_image, nms

STRIDE = 4
"""Pixels per cell of the maps."""
_SCALE = 32.0  # pixels; sizes are predicted relative to it
_MAX_OVERLAP = 0.6  # two heads in a scene never overlap as much; two peaks on one head do


@dataclass(frozen=True)
class Detections:
    """Heads found in one image, the highest score first."""

    boxes: Tensor  # (N, 4) float, x1, y1, x2, y2 in pixels, inside the image
    scores: Tensor  # (N,) float in [0, 1]

    def __len__(self) -> int:
        return len(self.scores)


@dataclass(frozen=True)
class CenterMaps:
    """Heads as maps with one cell for 4×4 pixels (Zhou et al. 2019, "Objects as Points", section 3).

    Size and offset are read at centres only.
    """

    heat: Tensor  # (B, h, w) in [0, 1], 1 at the centre of a head; logits as the output of the network
    log_size: Tensor  # (B, 2, h, w) logarithm of width and height relative to 32 pixels
    offset: Tensor  # (B, 2, h, w) position of the centre inside its cell, x and y, 0 to 1


class HeadDetector(ModelMixin, ConfigMixin):  # type: ignore[misc]
    """A small fully convolutional centre-point detector.

    Features of strides 2 to 16 are summed level by level up to stride 4 (Lin et al. 2017), so that the
    receptive field of a cell covers a head and its surroundings.

    Args:
        channels: Widths at strides 2, 4, 8 and 16, multiples of 8.
        head_channels: Width of the layer before the maps, a multiple of 8.

    Raises:
        ValueError: If a width is not a positive multiple of 8.
    """

    config: Any

    @register_to_config
    def __init__(
        self, channels: tuple[int, int, int, int] = (16, 32, 64, 96), head_channels: int = 48
    ) -> None:
        super().__init__()
        if len(channels) != 4 or any(c < 8 or c % 8 for c in (*channels, head_channels)):
            raise ValueError(
                f"channels={list(channels)}, head_channels={head_channels}: four widths and one, "
                "each a multiple of 8"
            )
        widths = [3, *channels]
        self.down = nn.ModuleList(_block(a, b, stride=2) for a, b in pairwise(widths))
        self.deep = _block(channels[3], channels[3])
        self.lateral = nn.ModuleList(nn.Conv2d(c, head_channels, 1) for c in channels[1:])
        self.merge = _block(head_channels, head_channels)
        self.maps = nn.Conv2d(head_channels, 5, 1)
        # Heads are rare: a heat of 0.1 everywhere at first (Lin et al. 2018, section 3.3).
        assert self.maps.bias is not None
        nn.init.zeros_(self.maps.bias)
        nn.init.constant_(self.maps.bias[:1], -2.19)

    def forward(self, images: Tensor) -> CenterMaps:
        """Predict maps, the heat as logits, of (B, 3, H, W) float in [0, 1], H and W multiples of 4."""
        height, width = images.shape[-2:]
        if height % STRIDE or width % STRIDE:
            raise ValueError(f"images of {width} by {height} pixels: both sides are multiples of {STRIDE}")
        features, levels = images * 2 - 1, []
        for block in self.down:
            features = block(features)
            levels.append(features)
        levels[3] = self.deep(levels[3])
        up = self.lateral[2](levels[3])
        for lateral, level in ((self.lateral[1], levels[2]), (self.lateral[0], levels[1])):
            up = F.interpolate(up, size=level.shape[-2:], mode="nearest") + lateral(level)
        maps = self.maps(self.merge(up))
        return CenterMaps(maps[:, 0], maps[:, 1:3], maps[:, 3:5])

    @torch.no_grad()
    def detect(self, images: Tensor, threshold: float = 0.4) -> list[Detections]:
        """Find the heads of each image, scored by the threshold or more; images as for :meth:`forward`."""
        found = self(images)
        maps = CenterMaps(found.heat.float().sigmoid(), found.log_size.float(), found.offset.float())
        return decode(maps, threshold)


def encode(heads: Tensor, present: Tensor, height: int, width: int) -> CenterMaps:
    """Make the maps that a detector should predict.

    Around each centre the heat falls as a Gaussian whose standard deviation is a sixth of the head, so that
    near misses cost little (Law and Deng 2018, section 3.2). Heads are (B, K, 4) float, x1, y1, x2, y2 in
    pixels, of slots that are ``present`` (B, K).
    """
    rows, columns = height // STRIDE, width // STRIDE
    center = (heads[..., :2] + heads[..., 2:]) / (2 * STRIDE)  # in cells
    size = (heads[..., 2:] - heads[..., :2]).clamp(min=1e-3)
    limit = torch.tensor([columns - 1, rows - 1], device=heads.device)
    cell = torch.minimum(center.floor().long().clamp(min=0), limit)
    spread = size / (6 * STRIDE)
    x = torch.arange(columns, device=heads.device) - cell[..., 0, None]
    y = torch.arange(rows, device=heads.device) - cell[..., 1, None]
    across, down = (x / spread[..., 0, None]).square(), (y / spread[..., 1, None]).square()
    falls = across[:, :, None, :] + down[..., None]
    heat = ((-falls / 2).exp() * present[..., None, None]).amax(1)
    maps = heads.new_zeros(len(heads), 4, rows, columns)
    sample, slot = torch.nonzero(present, as_tuple=True)
    at = cell[sample, slot]
    values = torch.cat([(size / _SCALE).log(), center - cell], dim=-1)[sample, slot]
    maps[sample, :, at[:, 1], at[:, 0]] = values
    return CenterMaps(heat, maps[:, :2], maps[:, 2:])


def decode(maps: CenterMaps, threshold: float) -> list[Detections]:
    """Read boxes off the peaks of maps with the heat in [0, 1]; the inverse of :func:`encode`."""
    heat = maps.heat
    rows, columns = heat.shape[-2:]
    peaks = (heat == F.max_pool2d(heat, 3, stride=1, padding=1)) & (heat >= threshold)
    found = []
    for sample in range(len(heat)):
        y, x = torch.nonzero(peaks[sample], as_tuple=True)
        center = torch.stack([x, y], dim=1) + maps.offset[sample, :, y, x].T
        half = maps.log_size[sample, :, y, x].T.exp() * _SCALE / 2
        boxes = torch.cat([center * STRIDE - half, center * STRIDE + half], dim=1)
        boxes = clip_boxes_to_image(boxes, (rows * STRIDE, columns * STRIDE))
        scores = heat[sample, y, x]
        kept = nms(boxes, scores, _MAX_OVERLAP)  # comes sorted by score
        found.append(Detections(boxes[kept], scores[kept]))
    return found


def count_detections(found: Sequence[Detections], truth: Sequence[Tensor]) -> tuple[int, int, int]:
    """Count heads, detections and matches of the two over images.

    A detection matches at an intersection over union of one half or more; in the order of their scores, each
    takes the free head that it overlaps most. The truth is (n_i, 4) boxes of each image.
    """
    matches = 0
    for detections, heads in zip(found, truth, strict=True):
        overlap = box_iou(detections.boxes, heads)
        for row in overlap if len(heads) else ():
            best = int(row.argmax())
            if row[best] >= 0.5:
                matches += 1
                overlap[:, best] = -1.0  # taken; the rows are views
    return sum(map(len, truth)), sum(map(len, found)), matches


def _block(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False),
        nn.GroupNorm(8, outputs),
        nn.SiLU(),
    )
