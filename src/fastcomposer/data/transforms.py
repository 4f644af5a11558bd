"""From the pixels of a record to the target image, the subjects' masks and their reference images.

Images are uint8 tensors of shape (3, h, w) until the last step. The global random state is neither read nor
changed: whatever is random takes a seed or a generator.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Annotated, Any

import numpy as np
import torch
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass
from torch import Tensor
from torch.nn import functional
from torchvision.transforms import v2
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as tvf

from fastcomposer.utils.ranges import Amount, Count, Positive


def sample_rng(seed: int, epoch: int, index: int) -> np.random.Generator:
    """Return the random numbers of one sample, whatever process reads it."""
    return np.random.Generator(np.random.Philox(np.random.SeedSequence((seed, epoch, index))))


@contextmanager
def isolated_rng(seed: int) -> Iterator[None]:
    """Seed torch's CPU generator inside a block and put its state back afterwards."""
    generator = torch.default_generator  # torch.manual_seed would seed accelerators too
    state = generator.get_state()
    generator.manual_seed(seed)
    try:
        yield
    finally:
        generator.set_state(state)


# --- references --------------------------------------------------------------------------------------------

_SQUARE_PIXELS = 4096**2
_SQUARE_RATIO = 3  # of pixels of a square to those of the image in it


def bounded_square(image: Tensor) -> Tensor:
    """Shrink (..., h, w) in proportion where a square around it would take memory out of proportion.

    The square may have 4096² pixels, or three times those of the image where that is more. So images up to
    three times as long as wide, and all up to 4096 pixels long, are returned as they are.
    """
    height, width = image.shape[-2:]
    longer = max(height, width)
    most = math.isqrt(max(_SQUARE_PIXELS, _SQUARE_RATIO * height * width))
    if longer <= most:
        return image
    return tvf.resize(image, [max(1, side * most // longer) for side in (height, width)], antialias=True)


def pad_to_square(image: Tensor) -> Tensor:
    """Pad the shorter side of (..., h, w) with zeros, evenly; an odd pixel goes right or below.

    Long and narrow images are shrunk before, see :func:`bounded_square`.
    """
    image = bounded_square(image)
    height, width = image.shape[-2:]
    missing = abs(height - width)
    if not missing:
        return image
    before, after = missing // 2, missing - missing // 2
    return functional.pad(image, (before, after, 0, 0) if height > width else (0, 0, before, after))


Probability = Annotated[float, Field(ge=0, le=1)]
Resolution = Annotated[int, Field(ge=8, multiple_of=8)]


@dataclass(frozen=True, config=ConfigDict(title="data.module.augmentation", extra="forbid"))
class ReferenceAugmentation:
    """Settings of the augmentation of reference images (docs/method.md).

    The names without a unit are probabilities in [0, 1].

    Attributes:
        zoom: Enlarge 1 to ``max_zoom`` times and keep the top square of an image taller than wide.
        max_zoom: Largest enlargement.
        rotate: Rotation by up to ``degrees`` either way.
        degrees: Largest angle.
        jitter: Change of brightness, contrast, saturation and hue.
        jitter_strength: Range of each; that of the hue at most 0.5.
        blur: Gaussian blur of ``blur_kernel`` pixels.
        blur_kernel: Width of the kernel in pixels, odd.
        blur_sigma: Smallest and largest standard deviation in pixels.
        grey: Loss of colour.
        flip: Mirroring left to right.
        elastic: Elastic deformation.
        elastic_alpha: Magnitude of its displacements before smoothing.
        elastic_sigma: Standard deviation of the smoothing in pixels.

    Raises:
        ValueError: If one is out of range, with its name.
    """

    zoom: Probability = 0.5
    max_zoom: Annotated[float, Field(ge=1, le=100)] = 2.0
    rotate: Probability = 0.75
    degrees: Amount = 30.0
    jitter: Probability = 0.5
    jitter_strength: Amount = 0.5
    blur: Probability = 0.5
    blur_kernel: Count = 5
    blur_sigma: tuple[Positive, Positive] = (0.1, 2.0)
    grey: Probability = 0.1
    flip: Probability = 0.5
    elastic: Probability = 0.5
    elastic_alpha: Amount = 50.0
    elastic_sigma: Positive = 5.0

    def __post_init__(self) -> None:
        if self.blur_kernel % 2 != 1:
            raise ValueError(f"blur_kernel must be odd, not {self.blur_kernel}")
        if self.blur_sigma[0] > self.blur_sigma[1]:
            raise ValueError(f"blur_sigma must be a smallest and a largest number, not {self.blur_sigma}")


PUBLISHED = ReferenceAugmentation()
"""The augmentation of the published training recipe (docs/method.md)."""


class ReferenceTransform:
    """From a cut-out subject to the reference image the vision encoder sees.

    Args:
        size: Height and width R of the reference in pixels.
        augmentation: Its augmentation; ``None`` for none, as in evaluation.
    """

    def __init__(self, size: int, augmentation: ReferenceAugmentation | None) -> None:
        self.size, self.augmentation = size, augmentation
        self._steps: list[tuple[float, v2.Transform]] = []  # after the resize, each with its probability
        if (by := augmentation) is not None:
            strength = by.jitter_strength
            steps: list[tuple[float, v2.Transform]] = [
                (by.rotate, v2.RandomRotation(by.degrees, InterpolationMode.BILINEAR)),
                (by.jitter, v2.ColorJitter(strength, strength, strength, min(strength, 0.5))),
                (by.blur, SeparableBlur(by.blur_kernel, by.blur_sigma)),
                (by.grey, v2.Grayscale(num_output_channels=3)),
                (by.flip, v2.RandomHorizontalFlip(1.0)),
                (by.elastic, SeparableElastic(by.elastic_alpha, by.elastic_sigma)),
            ]
            self._steps = [pair for pair in steps if pair[0] > 0]

    def __call__(self, crop: Tensor, seed: int) -> Tensor:
        """Turn a (3, h, w) uint8 crop into (3, R, R) float in [0, 1]; the seed is the augmentation's."""
        if self.augmentation is None:
            return tvf.to_dtype(self._resize(crop), torch.float32, scale=True)
        with isolated_rng(seed):
            image = self._resize(self._zoom(crop, self.augmentation))
            for probability, step in self._steps:
                if torch.rand(()) < probability:
                    image = step(image)
        return tvf.to_dtype(image, torch.float32, scale=True)

    def _zoom(self, crop: Tensor, settings: ReferenceAugmentation) -> Tensor:
        if torch.rand(()) >= settings.zoom:
            return crop
        factor = 1 + float(torch.rand(())) * (settings.max_zoom - 1)
        # The width is kept, so cutting before enlarging shows the same pixels at less cost.
        top = crop[:, : min(crop.shape[-2:]) if crop.shape[-2] > crop.shape[-1] else None]
        size = [int(factor * side) for side in top.shape[-2:]]
        return tvf.resize(top, size, antialias=True)

    def _resize(self, image: Tensor) -> Tensor:
        return tvf.resize(pad_to_square(image), [self.size, self.size], antialias=True)


class SeparableBlur(v2.GaussianBlur):
    """torchvision's Gaussian blur, by rows and then by columns, which differs by at most a level of 255."""

    def transform(self, inpt: Tensor, params: dict[str, Any]) -> Tensor:
        """Blur a (3, h, w) uint8 image."""
        radius = self.kernel_size[0] // 2
        weights = torch.exp(-0.5 * (torch.arange(-radius, radius + 1) / params["sigma"][0]) ** 2)
        kernel = (weights / weights.sum()).tolist()
        image = functional.pad(inpt[None].float(), [radius] * 4, mode="reflect")[0]
        for dim in (1, 2):
            size = inpt.shape[dim]
            blurred = image.narrow(dim, 0, size) * kernel[0]
            for offset, weight in enumerate(kernel[1:], start=1):
                blurred.add_(image.narrow(dim, offset, size), alpha=weight)
            image = blurred
        return image.round_().to(torch.uint8)


class SeparableElastic(v2.ElasticTransform):
    """torchvision's elastic deformation, smoothed by rows and then by columns in a fifth of the time."""

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        """Draw the displacements, (1, h, w, 2) in the units of ``grid_sample``."""
        height, width = tvf.get_size(flat_inputs[0])
        noise = torch.rand(2, 1, height, width) * 2 - 1
        sigma, kernel = float(self.sigma[0]), elastic_kernel(float(self.sigma[0]))
        rows = tvf.gaussian_blur(noise, [1, kernel], [sigma, sigma])
        smooth = tvf.gaussian_blur(rows, [kernel, 1], [sigma, sigma])[:, 0]
        scale = torch.tensor([self.alpha[0] / width, self.alpha[1] / height])
        return {"displacement": smooth.permute(1, 2, 0)[None] * scale}


def elastic_kernel(sigma: float) -> int:
    """Return the pixels of the kernel of torchvision's elastic deformation, an odd number."""
    return int(8 * sigma + 1) | 1


# --- targets -----------------------------------------------------------------------------------------------


class TargetTransform:
    """From the image and masks of a record to the square target.

    The shorter side is resized to the resolution and the centre kept; an image taller than wide is padded
    at its sides instead, so that no head is cut off (docs/method.md). Masks take the same way with
    nearest pixels and stay 0 or 1.

    Args:
        resolution: Height and width of the target in pixels.
    """

    def __init__(self, resolution: int) -> None:
        self.resolution = resolution

    def sizes(self, height: int, width: int) -> tuple[int, ...]:
        """Return ``size_conditions``: the image's size, top and left of the crop, the target's size."""
        return (height, width, 0, self._left(height, width), self.resolution, self.resolution)

    def _left(self, height: int, width: int) -> int:
        return 0 if height > width else (self.resolution * width // height - self.resolution) // 2

    def boxes(
        self, boxes: Sequence[Sequence[float] | None], height: int, width: int, *, flip: bool
    ) -> Tensor:
        """Where boxes in an image come to lie in its target.

        Args:
            boxes: K of x1, y1, x2, y2 in pixels of the image, or ``None``.
            height: Of the image, in pixels.
            width: As height.
            flip: Whether the target is mirrored.

        Returns:
            (K, 4) in pixels of the target, cut off at its sides; zeros for ``None``, and for a box of which
            the target shows less than half.
        """
        scale = self.resolution / height
        left = max(0, height - width) / 2 * scale - self._left(height, width)
        found = torch.zeros(len(boxes), 4)
        for number, box in enumerate(boxes):
            if box is None:
                continue
            x1, y1, x2, y2 = (value * scale for value in box)
            x1, x2 = x1 + left, x2 + left
            if flip:
                x1, x2 = self.resolution - x2, self.resolution - x1
            area = (x2 - x1) * (y2 - y1)
            x1, y1, x2, y2 = (min(max(value, 0), self.resolution) for value in (x1, y1, x2, y2))
            if 2 * (x2 - x1) * (y2 - y1) >= area:
                found[number] = torch.tensor([x1, y1, x2, y2])
        return found

    def __call__(
        self, image: Tensor, segment_map: np.ndarray, segment_ids: Sequence[int], *, flip: bool
    ) -> tuple[Tensor, Tensor]:
        """Transform a (3, h, w) uint8 image, or a shrunken one, with the masks of K segments.

        Returns:
            The target, (3, H, W) float in [-1, 1], and the masks, (K, H, W) bool; mirrored with ``flip``.
        """
        height, width = segment_map.shape
        side = self.resolution
        scaled = side if height > width else side * width // height
        left = self._left(height, width)
        photo = pad_to_square(image) if height > width else image
        photo = tvf.resize(photo, [side, scaled], antialias=True)[..., left : left + side]
        masks = self._masks(segment_map, segment_ids, scaled)[..., left : left + side]
        if flip:
            photo, masks = photo.flip(-1), masks.flip(-1)
        photo = photo.to(torch.float32, memory_format=torch.contiguous_format)
        return photo.div_(127.5).sub_(1), masks

    def _masks(self, segment_map: np.ndarray, segment_ids: Sequence[int], scaled: int) -> Tensor:
        """(K, H, scaled) bool: the map is resized once, and only then compared."""
        height, width = segment_map.shape
        before = (height - width) // 2 if height > width else 0
        rows = _nearest(height, self.resolution)
        columns = _nearest(max(height, width), scaled) - before
        inside = (columns >= 0) & (columns < width)
        small = segment_map.take(rows, axis=0).take(columns.clip(0, width - 1), axis=1, mode="clip")
        masks = np.zeros((len(segment_ids), *small.shape), dtype=bool)
        for number, segment_id in enumerate(segment_ids):
            masks[number] = (small == segment_id) & inside
        return torch.from_numpy(masks)


def _nearest(size: int, resized: int) -> np.ndarray:
    """Return the source indices of torch's ``nearest-exact``, in float32 as it computes them."""
    scale = np.float32(size) / np.float32(resized)
    centres = ((np.arange(resized) + 0.5) * float(scale)).astype(np.float32)
    return np.minimum(np.floor(centres).astype(np.int64), size - 1)
