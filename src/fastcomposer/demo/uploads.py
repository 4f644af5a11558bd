"""Reference images as people hand them in: checked before anything of them is used."""

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
from fastcomposer.utils.settings import file_digest

FORMATS = ("PNG", "JPEG", "WEBP")
"""Formats that are read, by the names that Pillow gives them."""
ENDINGS = (".png", ".jpg", ".jpeg", ".webp")
"""How names of such files end."""
_THUMBNAIL = 224  # pixels
_Item = TypeVar("_Item")


class RefusedImageError(ValueError):
    """A file that is not taken as a reference; the message is for the person who chose it."""


@dataclass(frozen=True)
class PageLimits:
    """What the page takes.

    Attributes:
        megabytes: Most of a file.
        megapixels: Most of an image.
        images: Most that are drawn at once.
        steps: Most sampling steps.
        waiting: Most drawings that wait for their turn.
        minutes: How long files are kept.
    """

    megabytes: float = 20.0
    megapixels: float = 50.0
    images: int = 4
    steps: int = 100
    waiting: int = 16
    minutes: float = 60.0

    def __post_init__(self) -> None:
        """Refuse what would leave nothing to do.

        Raises:
            ValueError: If a limit is not positive.
        """
        for name, value in vars(self).items():
            if value <= 0:
                raise ValueError(f"limits.{name} must be positive, not {value}")


@dataclass(frozen=True)
class Reference:
    """An image of one person.

    Attributes:
        file: The image.
        name: What the person's file is called.
        digest: Of the file's content.
        thumbnail: A small upright copy as a ``data:`` address.
    """

    file: Path
    name: str
    digest: str
    thumbnail: str


Person: TypeAlias = tuple[Reference, ...]
"""All images of one person, at least one."""


def read_reference(file: Path, limits: PageLimits) -> Reference:
    """Take a file as somebody's image.

    Args:
        file: The file.
        limits: What is taken.

    Raises:
        RefusedImageError: If it is too large, or no image that can be read.
    """
    size = file.stat().st_size
    if size > limits.megabytes * 1e6:
        raise RefusedImageError(
            f"{file.name} is too large: {size / 1e6:.0f} MB. Images may have up to {limits.megabytes:g} MB."
        )
    image = ImageOps.exif_transpose(_opened(file, limits))
    if "A" in image.getbands() and image.getchannel("A").getextrema()[1] == 0:
        raise RefusedImageError(f"{file.name} is transparent everywhere: there is nobody to see.")
    image.thumbnail((_THUMBNAIL, _THUMBNAIL))
    data = io.BytesIO()
    image.convert("RGBA").save(data, "WEBP", quality=85)
    address = f"data:image/webp;base64,{base64.b64encode(data.getvalue()).decode()}"
    return Reference(file, file.name, file_digest(file), address)


def _opened(file: Path, limits: PageLimits) -> Image.Image:
    """All pixels of an image, once its header has told how many there are."""
    unreadable = f"{file.name} cannot be read as an image. PNG, JPEG and WebP files can."
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # there is a limit of our own
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
        "make it smaller first."
    )


def joined(people: Sequence[Person], place: int) -> list[Person]:
    """Take a person and the one before for the same.

    Args:
        people: Images of each person; the list stays as it is.
        place: Of the later one, from 0; one that has none before changes nothing.
    """
    if not 0 < place < len(people):
        return [*people]
    return [*people[: place - 1], (*people[place - 1], *people[place]), *people[place + 1 :]]


def divided(people: Sequence[Person], place: int) -> list[Person]:
    """Take each image of a person for somebody else; see :func:`joined`."""
    if not 0 <= place < len(people):
        return [*people]
    return [*people[:place], *((reference,) for reference in people[place]), *people[place + 1 :]]


def moved(items: list[_Item], place: int, by: int) -> list[_Item]:
    """Move an item so many places along a list, as far as there are some.

    Args:
        items: The list, which stays as it is.
        place: Of the item, from 0.
        by: Places towards the end; negative towards the start.
    """
    if not 0 <= place < len(items):
        return [*items]
    rest = [*items[:place], *items[place + 1 :]]
    goal = min(max(place + by, 0), len(rest))
    return [*rest[:goal], items[place], *rest[goal:]]
