"""The photos of a folder: their ids, captions and pixels."""

from __future__ import annotations

import csv
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from PIL import Image, ImageOps
from pydantic import TypeAdapter, ValidationError

from fastcomposer.data.pixels import eight_bit, is_narrow
from fastcomposer.utils.files import existing_file
from fastcomposer.utils.settings import digest

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".avif", ".heic", ".heif")
"""Endings of photos; those that Pillow cannot open are listed as left out."""

MOST_CHARACTERS = 10_000
"""Longest caption of a photo."""
_NO_NAME = re.compile(r"[\s\\]+")  # characters that an id list of one id a line cannot hold


class UnusablePhotoError(ValueError):
    """A photo that cannot become a record, with the reason in one line."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason, self.detail = reason, detail


@dataclass(frozen=True)
class PhotoFile:
    """A photo on disk.

    Its id is the path inside the source without ending, its parts joined by ``-``, spaces as ``_``.
    """

    photo_id: str  # of its record
    path: Path
    name: str  # path inside the source
    caption: str | None = None  # None where none is given
    twin: str | None = None  # another file with the same photo_id, which takes precedence

    @property
    def fingerprint(self) -> str:
        """Changes when the file or its caption does; the pixels are not read."""
        return digest([self.name, self.path.stat().st_size, self.caption])


def list_photos(
    source: str | Path, captions: str | Path | None = None, leave_out: Path | None = None
) -> list[PhotoFile]:
    """List the photos of a folder and all folders in it, in the order of their names.

    Args:
        source: The folder; hidden files and folders in it are skipped.
        captions: JSON file, an object of caption by path inside the source, or CSV file with the columns
            ``file`` and ``caption``. Photos that it does not name may have a ``.txt`` file beside them.
        leave_out: Folder inside the source to skip, such as the data folder.

    Raises:
        FileNotFoundError: If there is no such folder or file, or the folder holds no photo.
        ValueError: If the captions cannot be read or belong to other photos.
    """
    folder = Path(source).expanduser()
    if not folder.is_dir():
        raise FileNotFoundError(f"source={source}: no such folder")
    given = {} if captions is None else read_captions(Path(captions).expanduser())
    found: list[Path] = []
    for name, folders, files in os.walk(folder):
        path = Path(name)
        folders[:] = [
            n
            for n in folders
            if not n.startswith(".") and (leave_out is None or (path / n).resolve() != leave_out.resolve())
        ]
        found += [path / n for n in files if not n.startswith(".") and Path(n).suffix.lower() in SUFFIXES]
    if not found:
        raise FileNotFoundError(f"source={source}: holds no photo ({', '.join(SUFFIXES)})")
    photos: dict[str, PhotoFile] = {}
    twins: list[PhotoFile] = []
    for path in sorted(found):
        name = path.relative_to(folder).as_posix()
        photo_id = _NO_NAME.sub("_", "-".join(Path(name).with_suffix("").parts))
        photo = PhotoFile(photo_id, path, name, given.get(name) or _sidecar(path))
        first = photos.setdefault(photo_id, photo)
        if first is not photo:
            twins.append(replace(photo, twin=first.name))
    listed = [*photos.values(), *twins]
    if given and not any(photo.name in given for photo in listed):
        shown = next(iter(given))
        raise ValueError(f"data.prepare.captions={captions}: names none of the photos in {source} ({shown})")
    return listed


def read_captions(file: Path) -> Mapping[str, str]:
    """Read captions by path inside the source from a JSON or CSV file."""
    key = f"data.prepare.captions={file}"
    try:
        text = existing_file(file, "file").read_text(encoding="utf-8-sig")
        if file.suffix.lower() == ".csv":
            rows = csv.DictReader(text.splitlines())
            if not {"file", "caption"} <= set(rows.fieldnames or ()):
                raise ValueError("a CSV file needs the columns file and caption in its first line")
            captions = {row["file"]: row["caption"] or "" for row in rows}
        else:
            captions = TypeAdapter(dict[str, str]).validate_json(text)
    except OSError as error:
        raise FileNotFoundError(f"{key}: cannot be read: {error}") from None
    except ValidationError:
        raise ValueError(f"{key}: must be a .csv file, or a JSON object of caption by path") from None
    except (ValueError, csv.Error) as error:
        raise ValueError(f"{key}: {error}") from None
    return {name: _one_line(caption) for name, caption in captions.items()}


def open_photo(photo: PhotoFile, min_side: int, max_side: int | None) -> Image.Image:
    """Read a photo as RGB, upright by its EXIF orientation; transparent parts become white.

    Shorter sides below ``min_side`` are refused, and those above ``max_side`` are reduced to it.

    Raises:
        UnusablePhotoError: If it cannot be read, is too narrow for a record, or too small.
    """
    try:
        with Image.open(existing_file(photo.path, "photo")) as opened:
            if is_narrow(opened.size):
                raise UnusablePhotoError("too narrow", f"{opened.width} x {opened.height} pixels")
            opened.load()
        image = ImageOps.exif_transpose(eight_bit(opened))
        if "A" in image.getbands() or "transparency" in image.info:
            shown = image.convert("RGBA")
            image = Image.new("RGB", shown.size, "white")
            image.paste(shown, (0, 0), shown)
        image = image.convert("RGB")
    except UnusablePhotoError:
        raise
    except Exception as error:  # damaged bytes may raise anything in a decoder
        raise UnusablePhotoError("unreadable", _one_line(f"{type(error).__name__}: {error}")) from None
    shorter = min(image.size)
    if shorter < min_side:
        raise UnusablePhotoError("too small", f"{image.width} x {image.height} pixels")
    if max_side is not None and shorter > max_side:
        size = [round(side * max_side / shorter) for side in image.size]
        image = image.resize((size[0], size[1]), Image.Resampling.LANCZOS)
    return image


def _sidecar(path: Path) -> str | None:
    try:
        with existing_file(path.with_suffix(".txt"), "caption").open(encoding="utf-8-sig") as file:
            return _one_line(file.read(2 * MOST_CHARACTERS)) or None  # enough to see that it is too long
    except (OSError, UnicodeDecodeError):
        return None


def _one_line(text: str) -> str:
    return " ".join(text.split())
