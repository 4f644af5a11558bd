"""Transforms of torchvision with the same random numbers and the same result, in a fraction of the time.

They work on one (3, h, w) uint8 image. Sums of other order round otherwise now and then, by one of 255
levels.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as tvf


class SeparableElastic(v2.ElasticTransform):
    """torchvision's elastic deformation, its displacements smoothed by rows and then by columns."""

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        """Draw the displacements, (1, h, w, 2) in the units of ``grid_sample``."""
        height, width = tvf.get_size(flat_inputs[0])
        noise = torch.empty(2, height, width)
        for direction in noise:
            direction.uniform_(-1, 1)
        sigma = float(self.sigma[0])
        smooth = _smooth(_smooth(noise, sigma).transpose(1, 2), sigma).transpose(1, 2)
        scale = torch.tensor([self.alpha[0] / width, self.alpha[1] / height])
        return {"displacement": smooth.permute(1, 2, 0)[None] * scale}


class SeparableBlur(v2.GaussianBlur):
    """torchvision's Gaussian blur, by rows and then by columns."""

    def transform(self, inpt: Tensor, params: dict[str, Any]) -> Tensor:
        """Blur a (3, h, w) uint8 image."""
        radius = self.kernel_size[0] // 2
        weights = torch.exp(-0.5 * (torch.arange(-radius, radius + 1) / params["sigma"][0]) ** 2)
        kernel = (weights / weights.sum()).tolist()
        padded = functional.pad(inpt[None].float(), [radius] * 4, mode="reflect")[0]
        height, width = inpt.shape[-2:]
        rows = padded[:, :height] * kernel[0]
        for offset, weight in enumerate(kernel[1:], start=1):
            rows.add_(padded[:, offset : offset + height], alpha=weight)
        blurred = rows[..., :width] * kernel[0]
        for offset, weight in enumerate(kernel[1:], start=1):
            blurred.add_(rows[..., offset : offset + width], alpha=weight)
        return blurred.round_().to(torch.uint8)


def _smooth(values: Tensor, sigma: float) -> Tensor:
    """Smooth (C, h, w) along h. Each half needs little more than itself: the matrix is zero elsewhere."""
    size, radius = values.shape[1], smoothing_radius(sigma)
    matrix, half = _smoothing(size, sigma), size // 2
    upper, lower = min(half + radius, size), max(half - radius, 0)
    parts = [matrix[:half, :upper] @ values[:, :upper], matrix[half:, lower:] @ values[:, lower:]]
    return torch.cat(parts, dim=1)


@lru_cache(maxsize=4)
def _smoothing(size: int, sigma: float) -> Tensor:
    """Return Gaussian smoothing of ``size`` values with mirrored borders as a (size, size) matrix."""
    radius = smoothing_radius(sigma)
    offsets = torch.arange(-radius, radius + 1, dtype=torch.float32)
    kernel = torch.exp(-0.5 * (offsets / sigma) ** 2)
    padded = functional.pad(torch.eye(size)[:, None], (radius, radius), mode="reflect")
    return functional.conv1d(padded, (kernel / kernel.sum()).view(1, 1, -1))[:, 0].T.contiguous()


def smoothing_radius(sigma: float) -> int:
    """Return how many pixels torchvision's elastic deformation smooths over to each side."""
    return int(8 * sigma + 1) // 2


class QuickColorJitter(v2.ColorJitter):
    """torchvision's change of brightness, contrast, saturation and hue, the hue without a table of cases."""

    def transform(self, inpt: Tensor, params: dict[str, Any]) -> Tensor:
        """Change an image's colours in the order drawn."""
        for step in params["fn_idx"].tolist():
            if step == 3 and params["hue_factor"] is not None:
                inpt = shift_hue(inpt, params["hue_factor"])
            else:
                inpt = super().transform(inpt, {**params, "fn_idx": [step]})
        return inpt


def shift_hue(image: Tensor, factor: float) -> Tensor:
    """Turn the hues of a (3, h, w) uint8 image by ``factor`` of the circle, in [-0.5, 0.5]."""
    colours = image.float()
    low, high = torch.aminmax(colours, dim=0)
    span = high - low
    red, green, blue = colours
    # Sixths of the circle, from the channel that is highest; any will do where all are equal.
    hue = torch.where(high == green, blue - red + 2 * span, red - green + 4 * span)
    hue = torch.where(high == red, green - blue, hue).div_(span.clamp(min=1)).add_(6 * factor)
    shifted = hue + torch.tensor([5.0, 3.0, 1.0])[:, None, None]
    shifted.remainder_(6)
    fall = torch.minimum(shifted, 4 - shifted).clamp_(0, 1)
    return torch.sub(high, fall.mul_(span)).mul_(255.999 / 255).to(torch.uint8)
