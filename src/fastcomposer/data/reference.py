"""Reference images from users: files, PIL images, arrays or tensors."""

from __future__ import annotations

from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from torchvision.transforms.v2 import functional as tvf

from fastcomposer.data.pixels import eight_bit, open_image
from fastcomposer.data.transforms import pad_to_square
from fastcomposer.prompt import PromptError

_NOISE_SEED = 0


def prepare_reference(image: Any, size: int) -> Tensor:
    """Turn a reference image into input of the image encoder, as in training but without augmentation.

    An image with transparency is cropped to its visible pixels, and its transparent pixels are replaced by
    uniform noise from a fixed seed, as pixels outside a subject are in training (docs/method.md). The image
    is padded to a square with zeros (:func:`~fastcomposer.data.transforms.pad_to_square`) and resized.

    Args:
        image: Path; PIL image, whose EXIF orientation is honoured; array (h, w), (h, w, 1), (h, w, 3) or
            (h, w, 4); or tensor (1, h, w), (3, h, w) or (4, h, w). Arrays and tensors are uint8, or float in
            [0, 1]. A fourth channel is opacity.
        size: Height and width R in pixels.

    Returns:
        (3, R, R) float32 in [0, 1].

    Raises:
        FileNotFoundError: If a path does not exist.
        TypeError: If it is none of these.
        ValueError: If a file cannot be read as an image, an array or tensor has another shape or values out
            of range, or nothing is opaque.
    """
    if isinstance(image, str | PathLike):
        path = Path(image).expanduser()
        if not path.is_file():
            raise FileNotFoundError(f"reference image {path} does not exist")
        image = open_image(path)
    if isinstance(image, Image.Image):
        pixels = _from_pil(image)
    elif isinstance(image, np.ndarray):
        pixels = torch.from_numpy(np.ascontiguousarray(image if image.ndim == 3 else image[..., None]))
        pixels = _checked(pixels.movedim(-1, 0), image.shape)
    elif isinstance(image, Tensor):
        pixels = _checked(image.detach().cpu(), image.shape)
    else:
        raise TypeError(
            f"a reference is a path, a PIL image, an array or a tensor, not a {type(image).__name__}"
        )
    square = pad_to_square(_opaque(pixels))
    # uint8 images are resized as such, because training does so and rounds in between.
    resized = tvf.resize(square, [size, size], antialias=True)
    return tvf.to_dtype(resized, torch.float32, scale=True).clamp(0, 1)


def reference_rows(prompt: str | Sequence[str], references: Any) -> list[list[list[Any]]]:
    """Sort references by prompt and subject.

    For one prompt, a string, ``references`` has an entry for each subject; for a list of prompts, one such
    list for each. A subject's entry is an image, or a list (or stack) of several images of that subject::

        prompt                references
        "a man <|image|>"     me                               one image, alone or in a list
        "… <|image|> … …"     [ann, bob]                       two subjects
        "… <|image|> … …"     [[ann1, ann2], [bob]]            two subjects, the first with two images
        ["…", "…"]            [[ann, bob], None]               two prompts, the second without subjects
        ["…", "…"]            [[[ann1, ann2], bob], [carl]]    the same with two images of ann

    Args:
        prompt: One prompt or several.
        references: As above. A tensor or array (K, 3, h, w) is a list of K images.

    Returns:
        For each prompt and each of its subjects a list of at least one image.

    Raises:
        PromptError: If there are not as many entries as prompts, a subject has no image, or lists are nested
            deeper than that.
    """
    if isinstance(prompt, str):
        return [_subjects(references, "references")]
    if _is_image(references) or len(references) != len(prompt):
        found = 1 if _is_image(references) else len(references)
        raise PromptError(
            f"references for {found} prompt(s), but {len(prompt)} prompt(s): give one list of "
            "images for each prompt"
        )
    return [_subjects(row, f"references[{number}]") for number, row in enumerate(references)]


def _subjects(row: Any, name: str) -> list[list[Any]]:
    """For each subject of a prompt its images."""
    if row is None:
        return []
    if _is_image(row):
        return [[row]]
    subjects = []
    for number, entry in enumerate(row):
        images = [] if entry is None else [entry] if _is_image(entry) else list(entry)
        place = f"{name}[{number}]"
        if not images:
            raise PromptError(f"{place}: this subject has no image")
        if not all(map(_is_image, images)):
            raise PromptError(
                f"{place} holds lists of lists: it is one subject, with an image or a list of its images. "
                "Lists for several prompts go with a list of prompts"
            )
        subjects.append(images)
    return subjects


def _is_image(value: Any) -> bool:
    """Whether this is one image; unknown types count as one and are refused when read."""
    if isinstance(value, np.ndarray | Tensor):
        return value.ndim < 4
    return isinstance(value, str) or not isinstance(value, Sequence)


def _from_pil(image: Image.Image) -> Tensor:
    """(3 or 4, h, w) uint8."""
    upright = ImageOps.exif_transpose(eight_bit(image))
    transparent = "A" in upright.getbands() or "transparency" in upright.info
    return torch.from_numpy(np.array(upright.convert("RGBA" if transparent else "RGB"))).movedim(-1, 0)


def _checked(pixels: Tensor, shape: tuple[int, ...]) -> Tensor:
    """(3 or 4, h, w) uint8 or float."""
    if pixels.ndim != 3 or pixels.shape[0] not in (1, 3, 4) or 0 in pixels.shape:
        raise ValueError(
            f"a reference of shape {tuple(shape)} is no image: arrays are (h, w, 3 or 4), "
            "tensors (3 or 4, h, w)"
        )
    if pixels.dtype != torch.uint8:
        pixels = pixels.float()
        if not (pixels.min() >= 0 and pixels.max() <= 1):
            raise ValueError("a reference of floats must lie in [0, 1]; give uint8 for values up to 255")
    return pixels.expand(3, -1, -1) if pixels.shape[0] == 1 else pixels


def _opaque(pixels: Tensor) -> Tensor:
    """Crop an image with opacity to its visible pixels, and put noise behind."""
    if pixels.shape[0] == 3:
        return pixels
    seen = pixels[3] > 0
    rows, columns = seen.any(dim=1).nonzero(), seen.any(dim=0).nonzero()
    if not len(rows):
        raise ValueError("a reference is transparent everywhere")
    pixels = pixels[:, rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    image, opacity = pixels[:3], pixels[3:]
    noise = torch.rand(image.shape, generator=torch.Generator().manual_seed(_NOISE_SEED))
    if pixels.dtype == torch.uint8:
        alpha = opacity.float() / 255
        return (image * alpha + noise * 255 * (1 - alpha)).round().to(torch.uint8)
    return image * opacity + noise * (1 - opacity)
