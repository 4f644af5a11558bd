"""Uploaded reference images, checked before use."""

from __future__ import annotations

import base64
import io
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias, TypeVar

from PIL import Image, ImageOps

from fastcomposer.data.pixels import eight_bit
from fastcomposer.prompt import MARKER
from fastcomposer.utils.ranges import Count, Positive
from fastcomposer.utils.settings import file_digest

FORMATS = ("PNG", "JPEG", "WEBP")
"""Accepted formats, by their names in Pillow."""
ENDINGS = (".png", ".jpg", ".jpeg", ".webp")
"""Endings of such files."""
_THUMBNAIL = 224  # pixels
_Item = TypeVar("_Item")


class RefusedImageError(ValueError):
    """A file that is not accepted as a reference image, with a message for the user."""


@dataclass(frozen=True)
class PageLimits:
    """Limits of the page.

    Attributes:
        megabytes: Maximum size of a file.
        megapixels: Maximum size of an image.
        images: Maximum number of images of one request.
        steps: Maximum number of sampling steps.
        waiting: Maximum number of waiting requests.
        minutes: Time after which files are deleted.
        characters: Maximum length of a prompt.
        markers: Maximum number of markers in a prompt.
        megabytes_per_visitor: Maximum size of a client address's uploads within ``minutes``.
        waiting_per_visitor: Maximum number of waiting requests of a client address.

    Raises:
        ValueError: If a limit is not positive.
    """

    megabytes: Positive = 20.0
    megapixels: Positive = 50.0
    images: Count = 4
    steps: Count = 100
    waiting: Count = 16
    minutes: Positive = 60.0
    characters: Count = 2000
    markers: Count = 32
    megabytes_per_visitor: Positive = 200.0
    waiting_per_visitor: Count = 4

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value <= 0:
                raise ValueError(f"limits.{name} must be positive, not {value}")

    def check_prompt(self, prompt: str) -> None:
        """Refuse, by ``ValueError``, a text that is too long to be read at every change."""
        if len(prompt) > self.characters:
            raise ValueError(f"A prompt may have up to {self.characters} characters, not {len(prompt)}.")
        if (markers := prompt.count(MARKER)) > self.markers:
            raise ValueError(f"A prompt may have up to {self.markers} markers, not {markers}.")


@dataclass(frozen=True)
class Reference:
    """An image of one person."""

    file: Path
    name: str  # of the uploaded file
    digest: str  # of the file's content
    thumbnail: str  # a small upright copy, as a data: address


Person: TypeAlias = tuple[Reference, ...]
"""All images of one person, at least one."""


def read_reference(file: Path, limits: PageLimits) -> Reference:
    """Read an uploaded file as a reference image.

    Raises:
        RefusedImageError: If it is too large, or not a readable image.
    """
    size = file.stat().st_size
    if size > limits.megabytes * 1e6:
        raise RefusedImageError(
            f"{file.name} is too large: {size / 1e6:.0f} MB. Images may have up to {limits.megabytes:g} MB."
        )
    image = ImageOps.exif_transpose(_opened(file, limits))
    if "A" in image.getbands() and image.getchannel("A").getextrema()[1] == 0:
        raise RefusedImageError(f"{file.name} is fully transparent.")
    image.thumbnail((_THUMBNAIL, _THUMBNAIL))
    data = io.BytesIO()
    image.convert("RGBA").save(data, "WEBP", quality=85)
    address = f"data:image/webp;base64,{base64.b64encode(data.getvalue()).decode()}"
    return Reference(file, file.name, file_digest(file), address)


def _opened(file: Path, limits: PageLimits) -> Image.Image:
    """Decode an image, after its header has shown that it is small enough."""
    unreadable = f"{file.name} cannot be read as an image. Use PNG, JPEG or WebP."
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # megapixels is the limit
            opened = Image.open(file, formats=FORMATS)
    except Image.DecompressionBombError:
        raise RefusedImageError(_too_many(file, limits)) from None
    except Exception:  # damaged bytes may raise anything in a decoder
        raise RefusedImageError(unreadable) from None
    with opened:
        if opened.width * opened.height > limits.megapixels * 1e6:
            raise RefusedImageError(_too_many(file, limits, opened.size))
        try:
            opened.load()
            return eight_bit(opened)
        except Exception:
            raise RefusedImageError(unreadable) from None


def _too_many(file: Path, limits: PageLimits, size: tuple[int, int] | None = None) -> str:
    found = "" if size is None else f" ({size[0]} × {size[1]})"
    return (
        f"{file.name} has too many pixels{found}. Images may have up to {limits.megapixels:g} million: "
        "resize it first."
    )


def joined(people: Sequence[Person], index: int) -> list[Person]:
    """Merge the person at ``index`` with the one before; without one before, nothing changes."""
    if not 0 < index < len(people):
        return [*people]
    return [*people[: index - 1], (*people[index - 1], *people[index]), *people[index + 1 :]]


def divided(people: Sequence[Person], index: int) -> list[Person]:
    """Make a person of each image of the person at ``index``."""
    if not 0 <= index < len(people):
        return [*people]
    return [*people[:index], *((reference,) for reference in people[index]), *people[index + 1 :]]


def moved(items: Sequence[_Item], index: int, by: int) -> list[_Item]:
    """Move the item at ``index`` by some positions, at most to an end of the list."""
    rest = [*items]
    if 0 <= index < len(rest):
        rest.insert(max(index + by, 0), rest.pop(index))
    return rest
