"""The photos of a folder: which there are, what they are called, what is said of them, their pixels."""

from __future__ import annotations

import csv
import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageOps

from fastcomposer.data.pixels import eight_bit, is_narrow
from fastcomposer.utils.settings import digest

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".avif", ".heic", ".heif")
"""Files that count as photos; those that Pillow cannot open are listed, not passed over."""

_NO_NAME = re.compile(r"[\s\\]+")  # what would not survive a list of one id a line


class UnusablePhotoError(ValueError):
    """A photo that cannot become a record; the message says why in a line."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason, self.detail = reason, detail


@dataclass(frozen=True)
class PhotoFile:
    """A photo on disk.

    Attributes:
        photo_id: Name of its record: the path inside the source without ending, its parts joined by ``-``,
            spaces as ``_``.
        path: Where it lies.
        name: Path inside the source.
        caption: What somebody said of it, ``None`` where nobody did.
        twin: Name of another file with the same ``photo_id``, which takes precedence.
    """

    photo_id: str
    path: Path
    name: str
    caption: str | None = None
    twin: str | None = None

    @property
    def fingerprint(self) -> str:
        """Changes when the file or its caption does; the pixels are not read."""
        return digest([self.name, self.path.stat().st_size, self.caption])


def list_photos(
    source: str | Path, captions: str | Path | None = None, leave_out: Path | None = None
) -> list[PhotoFile]:
    """List the photos of a folder and all folders in it, in the order of their names.

    Args:
        source: The folder; hidden files and folders in it are left alone.
        captions: JSON file, an object of caption by path inside the source, or CSV file with the columns
            ``file`` and ``caption``. Photos that it does not name may have a ``.txt`` file beside them.
        leave_out: Folder inside the source that is no part of it, as the data folder may be.

    Raises:
        FileNotFoundError: If there is no such folder or file, or the folder holds no photo.
        ValueError: If the captions cannot be read or belong to other photos.
    """
    folder = Path(source).expanduser()
    if not folder.is_dir():
        raise FileNotFoundError(f"source={source}: no such folder")
    given = {} if captions is None else read_captions(Path(captions).expanduser())
    found: list[Path] = []
    for place, folders, files in os.walk(folder):
        inside = Path(place)
        folders[:] = sorted(
            name
            for name in folders
            if not name.startswith(".")
            and (leave_out is None or (inside / name).resolve() != leave_out.resolve())
        )
        found += [inside / n for n in files if not n.startswith(".") and Path(n).suffix.lower() in SUFFIXES]
    if not found:
        raise FileNotFoundError(f"source={source}: holds no photo ({', '.join(SUFFIXES)})")
    photos: dict[str, PhotoFile] = {}
    twins: list[PhotoFile] = []
    for path in sorted(found):
        name = path.relative_to(folder).as_posix()
        photo_id = _NO_NAME.sub("_", "-".join(Path(name).with_suffix("").parts))
        caption = given.get(name) or _sidecar(path)
        if photo_id in photos:
            twins.append(PhotoFile(photo_id, path, name, caption, twin=photos[photo_id].name))
        else:
            photos[photo_id] = PhotoFile(photo_id, path, name, caption)
    names = {photo.name for photo in [*photos.values(), *twins]}
    if given and not names & given.keys():
        shown = next(iter(given))
        raise ValueError(f"data.prepare.captions={captions}: names none of the photos in {source} ({shown})")
    return [*photos.values(), *twins]


def read_captions(file: Path) -> Mapping[str, str]:
    """Read captions by path inside the source from a JSON or CSV file.

    Raises:
        FileNotFoundError: If it does not exist.
        ValueError: If it holds something else.
    """
    key = f"data.prepare.captions={file}"
    try:
        text = file.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise FileNotFoundError(f"{key}: cannot be read: {error}") from None
    if file.suffix.lower() == ".csv":
        rows = csv.DictReader(text.splitlines())
        if not {"file", "caption"} <= set(rows.fieldnames or ()):
            raise ValueError(f"{key}: a CSV file needs the columns file and caption in its first line")
        return {row["file"]: _one_line(row["caption"] or "") for row in rows}
    try:
        content = json.loads(text)
    except ValueError as error:
        raise ValueError(f"{key}: neither .csv nor JSON: {error}") from None
    if not isinstance(content, dict) or not all(isinstance(value, str) for value in content.values()):
        raise ValueError(f"{key}: must be an object of caption by path inside the source")
    return {name: _one_line(caption) for name, caption in content.items()}


def open_photo(photo: PhotoFile, min_side: int, max_side: int | None) -> Image.Image:
    """Read a photo's pixels, upright as its EXIF orientation says.

    Args:
        photo: The photo.
        min_side: Shorter sides below are refused.
        max_side: Shorter sides above are reduced to this; ``None`` for none.

    Returns:
        RGB; transparent parts become white.

    Raises:
        UnusablePhotoError: If it cannot be read, is too narrow for a record, or too small.
    """
    try:
        with Image.open(photo.path) as opened:
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
        return _one_line(path.with_suffix(".txt").read_text(encoding="utf-8-sig")) or None
    except (OSError, UnicodeDecodeError):
        return None


def _one_line(text: str) -> str:
    return " ".join(text.split())
