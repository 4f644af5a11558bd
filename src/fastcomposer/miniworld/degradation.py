"""Degradations of renders: blur, noise, shifted colours and occlusion, as in generated images.

The metric models see no generated image in training; degradations keep them from relying on crisp edges and
exact colours. All random numbers come from a given generator, on the device of the images.
"""

from __future__ import annotations

import torch
from torch import Generator, Tensor
from torch.nn import functional as F

_BLUR = (0.0545, 0.2442, 0.4026, 0.2442, 0.0545)  # Gaussian of standard deviation 1 pixel


def soften(images: Tensor, generator: Generator, max_noise: float = 0.04) -> Tensor:
    """Blur a third of the images, halve the resolution of another third, and add noise to all.

    Blurred and halved images are blended with the sharp ones at random, so that softness varies. Images are
    (B, 3, H, W) float in [0, 1], H and W at least 4; ``max_noise`` is the largest standard deviation.
    """
    size, device = len(images), images.device
    line = images.new_tensor(_BLUR)
    kernel = (line[:, None] * line).expand(3, 1, 5, 5)
    blurred = F.conv2d(F.pad(images, (2, 2, 2, 2), mode="reflect"), kernel, groups=3)
    small = F.interpolate(images, scale_factor=0.5, mode="area")
    halved = F.interpolate(small, size=images.shape[-2:], mode="bilinear", align_corners=False)
    kind = torch.randint(3, (size, 1, 1, 1), generator=generator, device=device)
    share = torch.rand(size, 1, 1, 1, generator=generator, device=device) * (kind > 0)
    soft = images.lerp(torch.where(kind == 1, blurred, halved), share)
    strength = max_noise * torch.rand(size, 1, 1, 1, generator=generator, device=device)
    noise = torch.randn(images.shape, generator=generator, device=device)
    return (soft + strength * noise).clamp(0, 1)


def blur(images: Tensor, largest: float, generator: Generator) -> Tensor:
    """Blur each image by its own Gaussian, and lose some of its contrast with it.

    Predictions of the clean image at high noise levels are means over what it may be: soft and pale.

    Args:
        images: (B, 3, H, W) float in [0, 1].
        largest: Largest standard deviation in pixels; half of the images stay nearly as they are.
        generator: Decides how much.

    Returns:
        (B, 3, H, W) float in [0, 1].
    """
    size, device = len(images), images.device
    draws = torch.rand(2, size, generator=generator, device=device)
    sigma = (largest * (2 * draws[0] - 1).clamp(min=0)).clamp(min=0.05)
    radius = max(1, int(2.5 * largest))
    offsets = torch.arange(-radius, radius + 1, device=device)
    kernel = torch.exp(-0.5 * (offsets / sigma[:, None]).square())
    kernel = (kernel / kernel.sum(1, keepdim=True)).repeat_interleave(3, dim=0)[:, None]
    flat = F.pad(images.flatten(0, 1)[None], [radius] * 4, mode="replicate")
    flat = F.conv2d(flat, kernel[:, :, None], groups=3 * size)
    soft = F.conv2d(flat, kernel[..., None], groups=3 * size)[0].unflatten(0, (size, 3))
    pale = (0.5 * draws[1] * sigma / largest)[:, None, None, None]
    return soft.lerp(soft.mean((2, 3), keepdim=True), pale)


def jitter_colors(images: Tensor, strength: float, generator: Generator, grey: float = 0.0) -> Tensor:
    """Change contrast and the brightness of each colour, and turn a fraction of the images grey.

    Images are (B, 3, H, W) float in [0, 1]; ``strength`` is the range of both, relative to 1.
    """
    size, device = len(images), images.device
    draws = torch.rand(size, 5, 1, 1, generator=generator, device=device)
    factors = 1 + strength * (2 * draws[:, :4] - 1)
    mean = images.mean((1, 2, 3), keepdim=True)
    changed = ((images - mean) * factors[:, 3:] + mean) * factors[:, :3]
    return torch.where(draws[:, 4:] < grey, changed.mean(1, keepdim=True), changed).clamp(0, 1)


def jitter_boxes(boxes: Tensor, strength: float, generator: Generator) -> Tensor:
    """Move each side of (N, 4) boxes by up to ``strength`` of the box's width or height, either way."""
    size = (boxes[:, 2:] - boxes[:, :2]).repeat(1, 2)
    draws = torch.rand(boxes.shape, generator=generator, device=boxes.device)
    return boxes + strength * size * (2 * draws - 1)


def occlusion_masks(
    boxes: Tensor, fractions: Tensor, height: int, width: int, generator: Generator
) -> Tensor:
    """A random rectangle inside each box that covers a given fraction of it, or at most one row more.

    Boxes are (N, 4) x1, y1, x2, y2 in pixels inside the image, rounded to integers; fractions (N,) in [0, 1].
    The masks are (N, height, width) bool, true where hidden.
    """
    boxes = boxes.round().long()
    box_w, box_h = (boxes[:, 2:] - boxes[:, :2]).clamp(min=1).T
    draws = torch.rand(3, len(boxes), generator=generator, device=boxes.device)
    narrowest = (fractions * box_w).ceil().clamp(min=1)
    w = (narrowest + draws[0] * (box_w - narrowest + 1)).floor().minimum(box_w)
    h = (fractions * box_w * box_h / w).ceil().minimum(box_h)
    x1 = boxes[:, 0] + (draws[1] * (box_w - w + 1)).floor()
    y1 = boxes[:, 1] + (draws[2] * (box_h - h + 1)).floor()
    x, y = torch.arange(width, device=boxes.device), torch.arange(height, device=boxes.device)
    across = (x >= x1[:, None]) & (x < (x1 + w)[:, None])
    down = (y >= y1[:, None]) & (y < (y1 + h)[:, None])
    return across[:, None, :] & down[:, :, None]


def occlude(images: Tensor, boxes: Tensor, fractions: Tensor, generator: Generator) -> Tensor:
    """Hide a fraction of one head per image behind a rectangle of one random colour.

    Images are (N, 3, H, W) float in [0, 1]; for boxes and fractions see :func:`occlusion_masks`.
    """
    height, width = images.shape[-2:]
    hidden = occlusion_masks(boxes, fractions, height, width, generator)
    color = torch.rand(len(images), 3, 1, 1, generator=generator, device=images.device)
    return torch.where(hidden.unsqueeze(1), color, images)
