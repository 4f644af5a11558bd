"""Images of a class, drawn by the base itself: what it knew before, for a method not to forget."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Generator, Tensor

from fastcomposer.utils.files import write_atomically
from fastcomposer.utils.progress import tracked


@dataclass(frozen=True)
class ClassImages:
    """How many images of a class word, and how the base draws them.

    Image i is drawn from the noise of seed + i, once for each class word, base and choice of these
    settings, and kept on disk; an interrupted drawing goes on where it stopped.

    Attributes:
        folder: Where they are kept, one folder each.
        count: Images of each class word.
        prompt: What is drawn, and what they are trained with; ``{}`` is the class word.
        num_inference_steps: Steps of the base's own scheduler.
        guidance_scale: Guidance against the empty prompt.
        batch_size: Images drawn at once.
        seed: Of the first image.

    Raises:
        ValueError: If a value is out of its range.
    """

    folder: str | Path = field(compare=False)  # where they are changes nothing
    count: int = 200
    prompt: str = "a photo of a {}"
    num_inference_steps: int = 50
    guidance_scale: float = 5.0
    batch_size: int = field(default=8, compare=False)
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("count", "num_inference_steps", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"method.class_images.{name}={getattr(self, name)}: at least 1")
        if self.prompt.count("{}") != 1:
            raise ValueError(
                f"method.class_images.prompt={self.prompt!r}: {{}} is wanted where the class word goes"
            )

    def place(self, word: str, base: str, resolution: int) -> Path:
        """Folder of one class word's images.

        Args:
            word: The class word.
            base: What tells the base from others (:func:`~fastcomposer.models.loading.source_fingerprint`).
            resolution: Height and width in pixels.
        """
        parts = (
            word,
            base,
            resolution,
            self.prompt,
            self.num_inference_steps,
            self.guidance_scale,
            self.seed,
        )
        digest = hashlib.sha256(repr(parts).encode()).hexdigest()[:12]
        return Path(self.folder) / f"{re.sub(r'[^a-z0-9]+', '_', word.lower())}-{digest}"

    def missing(self, folder: Path) -> list[int]:
        """Numbers of the images that are not there yet."""
        return [i for i in range(self.count) if not _image(folder, i).is_file()]

    def draw(self, pipeline: Any, word: str, folder: Path, resolution: int) -> None:
        """Draw what is missing.

        Args:
            pipeline: Stable Diffusion pipeline of the untrained base.
            word: The class word.
            folder: See :meth:`place`.
            resolution: Height and width in pixels.
        """
        folder.mkdir(parents=True, exist_ok=True)
        missing = self.missing(folder)
        starts = range(0, len(missing), self.batch_size)
        for start in tracked(starts, f"images of a {word}", transient=True):
            numbers = missing[start : start + self.batch_size]
            images = pipeline(
                [self.prompt.format(word)] * len(numbers),
                height=resolution,
                width=resolution,
                num_inference_steps=self.num_inference_steps,
                guidance_scale=self.guidance_scale,
                generator=[Generator().manual_seed(self.seed + number) for number in numbers],
            ).images
            for number, image in zip(numbers, images, strict=True):
                _save(image, _image(folder, number))

    def read(self, folder: Path) -> Tensor:
        """Read the images: (N, 3, H, W) uint8."""
        images = [np.array(Image.open(_image(folder, i)).convert("RGB")) for i in range(self.count)]
        return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2)


def _image(folder: Path, number: int) -> Path:
    return folder / f"{number:04d}.png"


def _save(image: Image.Image, file: Path) -> None:
    write_atomically(file, lambda stream: image.save(stream, format="png"))
