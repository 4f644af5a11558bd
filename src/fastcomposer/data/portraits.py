"""A handful of images of one person, or of each of several: what fine-tuning methods learn from."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path
from typing import Any, Literal

import lightning as L
import numpy as np
import torch
from PIL import ImageOps
from pydantic import ConfigDict
from pydantic.dataclasses import dataclass as pydantic_dataclass
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader, IterableDataset
from torchvision.transforms.v2 import functional as tvf

from fastcomposer.data.pixels import open_image
from fastcomposer.data.transforms import Probability, Resolution, pad_to_square
from fastcomposer.utils.ranges import Count, Positive

View = Literal["far", "whole", "close"]
"""How large the person is in an image; captions say so."""
_FAR, _CLOSE = 0.6, 1.0
_NAME = re.compile(r"\w[\w-]*")
_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
_EXAMPLE = "data.people={adam:{word:man,images:photos/adam}}"


@dataclass(frozen=True)
class ReferenceSet:
    """Images of one person.

    Attributes:
        name: Stands in the person's token and in file names: letters, digits, ``_`` and ``-``.
        word: Class word, such as ``man``.
        images: Files. What is transparent in them is background.

    Raises:
        FileNotFoundError: If a file does not exist.
        ValueError: If the name or the class word is none, or there is no image.
    """

    name: str
    word: str
    images: tuple[Path, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "images", tuple(Path(file) for file in self.images))
        if not _NAME.fullmatch(self.name):
            raise ValueError(f"data.people: {self.name!r} is no name of letters, digits, _ and -")
        if not isinstance(self.word, str) or not re.fullmatch(r"\w[\w '-]*", self.word):
            raise ValueError(
                f"data.people.{self.name}.word={self.word!r}: the class word is wanted, such as man"
            )
        if not self.images:
            raise ValueError(f"data.people.{self.name}.images: no image")
        missing = [str(file) for file in self.images if not file.is_file()]
        if missing:
            raise FileNotFoundError(f"data.people.{self.name}.images: no such file: {', '.join(missing)}")


@pydantic_dataclass(frozen=True, config=ConfigDict(title="method.images", extra="forbid"))
class PortraitSettings:
    """How images are sampled in a step.

    Attributes:
        resolution: Height and width in pixels.
        batch_size: Images in a batch; all of one person.
        flip: Probability of mirroring.
        scales: Smallest and largest enlargement, drawn uniformly; ``None`` leaves all images as they are
            (Kumari et al. 2023, appendix: 0.4 to 1.4).

    Raises:
        ValueError: If a value is out of its range.
    """

    resolution: Resolution
    batch_size: Count = 1
    flip: Probability = 0.5
    scales: tuple[Positive, Positive] | None = None

    def __post_init__(self) -> None:
        if self.scales is not None and self.scales[0] > self.scales[1]:
            raise ValueError(f"scales={list(self.scales)}: the smallest and the largest, or null")


@dataclass(frozen=True)
class PortraitBatch:
    """Images of one person."""

    pixel_values: Tensor  # (B, 3, R, R) float in [-1, 1]
    masks: Tensor  # (B, 1, R, R) float; 1 where the image is, 0 around one that was made smaller
    views: tuple[View, ...]  # B sizes of the person
    person: int  # which of the reference sets, from 0

    def __len__(self) -> int:
        return len(self.pixel_values)

    def to(self, device: torch.device | str, **how: Any) -> PortraitBatch:
        """Move the images to a device."""
        return replace(
            self, pixel_values=self.pixel_values.to(device, **how), masks=self.masks.to(device, **how)
        )


def reference_sets(people: Mapping[str, Mapping[str, Any]] | None) -> tuple[ReferenceSet, ...]:
    """Read the people to learn from a configuration.

    Args:
        people: Name to ``word`` and ``images``: files, or a folder, whose images are sorted by name.

    Raises:
        FileNotFoundError: If a file or folder does not exist.
        ValueError: If nobody is named, or a person is not described in full.
    """
    if not people:
        raise ValueError(f"data.people: nobody; such as {_EXAMPLE}")
    sets = []
    for name, person in people.items():
        if not isinstance(person, Mapping) or set(person) != {"word", "images"}:
            raise ValueError(f"data.people.{name}: word and images are wanted, such as {_EXAMPLE}")
        files = person["images"]
        if isinstance(files, str | Path):
            folder = Path(files).expanduser()
            if not folder.is_dir():
                raise FileNotFoundError(f"data.people.{name}.images={files}: there is no such folder")
            files = sorted(file for file in folder.iterdir() if file.suffix.lower() in _SUFFIXES)
        sets.append(ReferenceSet(str(name), person["word"], tuple(files)))
    return tuple(sets)


def read_square(file: Path, size: int) -> Tensor:
    """Read an image as a square: transparent ones padded, so that nobody is cut; others cut at the centre.

    Returns:
        (4, size, size) float in [0, 1]: colours multiplied by opacity, and opacity.

    Raises:
        ValueError: If the file is no image, or transparent everywhere.
    """
    upright = ImageOps.exif_transpose(open_image(file)).convert("RGBA")
    pixels = torch.from_numpy(np.array(upright)).permute(2, 0, 1).float() / 255
    opacity = pixels[3:]
    if not opacity.any():
        raise ValueError(f"{file} is transparent everywhere")
    square = torch.cat([pixels[:3] * opacity, opacity])
    whole = opacity.min() == 1
    square = tvf.center_crop(square, [min(square.shape[-2:])]) if whole else pad_to_square(square)
    return tvf.resize(square, [size, size], antialias=True).clamp(0, 1)


class Portraits:
    """Samples people's images; the same seed and step always give the same batch.

    The person changes from step to step. Transparent pixels become a plain colour, drawn anew each time.
    """

    def __init__(self, people: Sequence[ReferenceSet], settings: PortraitSettings, seed: int) -> None:
        self.settings, self.seed = settings, seed
        # Large enough for the largest enlargement.
        largest = max(1.0, settings.scales[1]) if settings.scales else 1.0
        size = round(settings.resolution * largest)
        self.squares = [torch.stack([read_square(file, size) for file in p.images]) for p in people]

    def sample(self, step: int, rank: int = 0) -> PortraitBatch:
        """Return the batch of a step for one process."""
        rng = np.random.default_rng([self.seed, rank, step])
        person = step % len(self.squares)
        sampled = [self._sample_one(person, rng) for _ in range(self.settings.batch_size)]
        pixels, masks, views = zip(*sampled, strict=True)
        return PortraitBatch(torch.stack(pixels) * 2 - 1, torch.stack(masks), views, person)

    def _sample_one(self, person: int, rng: np.random.Generator) -> tuple[Tensor, Tensor, View]:
        squares, side = self.squares[person], self.settings.resolution
        square = squares[rng.integers(len(squares))]
        if rng.random() < self.settings.flip:
            square = square.flip(-1)
        scale = 1.0 if self.settings.scales is None else rng.uniform(*self.settings.scales)
        size = max(8, round(scale * side))
        if square.shape[-1] != size:
            square = tvf.resize(square, [size, size], antialias=True)
        if size >= side:
            y, x = rng.integers(size - side + 1, size=2)
            square, mask = square[:, y : y + side, x : x + side], torch.ones(1, side, side)
        else:
            y, x = rng.integers(side - size + 1, size=2)
            around = (x, side - size - x, y, side - size - y)
            square, mask = F.pad(square, around), F.pad(torch.ones(1, size, size), around)
        color = torch.from_numpy(rng.random((3, 1, 1), dtype=np.float32))
        view: View = "far" if scale < _FAR else "close" if scale > _CLOSE else "whole"
        return square[:3] + (1 - square[3:]) * color, mask, view


class _Endless(IterableDataset[PortraitBatch]):
    def __init__(self, portraits: Portraits, first: int, rank: int) -> None:
        self.portraits, self.first, self.rank = portraits, first, rank

    def __iter__(self) -> Iterator[PortraitBatch]:
        return (self.portraits.sample(step, self.rank) for step in count(self.first))


class PortraitDataModule(L.LightningDataModule):
    """Endless seeded batches of people's images; ``settings`` is a setting of the method.

    Raises:
        ValueError: If two people have one name, or the method does not learn from a few images.
    """

    def __init__(
        self, people: Sequence[ReferenceSet], settings: PortraitSettings | None, seed: int = 0
    ) -> None:
        super().__init__()
        if settings is None:
            raise ValueError(
                "data: a few images of a person are for method=textual_inversion, dreambooth or "
                "custom_diffusion (or mini_...)"
            )
        names = [person.name for person in people]
        if not names or len(set(names)) < len(names):
            raise ValueError(f"data.people: each person once, not {names}")
        self.people, self.settings, self.seed = tuple(people), settings, seed

    def train_dataloader(self) -> DataLoader[PortraitBatch]:
        """Return a loader that continues where a checkpoint left off."""
        trainer, first, rank = self.trainer, 0, 0
        if trainer is not None:
            first, rank = trainer.global_step * trainer.accumulate_grad_batches, trainer.global_rank
        portraits = Portraits(self.people, self.settings, self.seed)
        return DataLoader(_Endless(portraits, first, rank), batch_size=None)
