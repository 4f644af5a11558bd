"""Files that are either complete or absent."""

from __future__ import annotations

import os
import re
import shutil
import stat
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

LOCK_NAME = ".lock"
"""Name of the file that keeps a second run out of a folder."""
_LEFTOVER = re.compile(r"\..+\.[0-9a-f]{32}\.tmp")
_NAME_LENGTH, _PATH_LENGTH = 255, 4096  # bytes, of Linux


def check_folder(key: str, folder: str) -> None:
    """Refuse a folder that cannot be made, by ``ValueError``."""
    path = Path(folder).absolute()
    if (
        any(len(os.fsencode(part)) > _NAME_LENGTH for part in path.parts)
        or len(os.fsencode(path)) > _PATH_LENGTH
    ):
        raise ValueError(f"{key}: {folder[:60]}…: too long a path")
    existing = next(one for one in (path, *path.parents) if os.path.lexists(one))
    if not existing.is_dir():
        raise ValueError(f"{key}={folder}: {existing} is a file, not a folder")
    if not os.access(existing, os.W_OK):
        raise ValueError(f"{key}={folder}: {existing} is read-only")


def existing_file(path: str | Path, what: str) -> Path:
    """Return the path of a regular file; ``what`` it is, for messages.

    Raises:
        FileNotFoundError: If it does not exist.
        OSError: If it is a folder, or a FIFO or device, which could be read without end.
    """
    file = Path(path).expanduser()
    try:
        mode = file.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        raise FileNotFoundError(f"{what} {file} does not exist") from None
    if not stat.S_ISREG(mode):
        kind = "folder" if stat.S_ISDIR(mode) else "FIFO, socket or device"
        raise OSError(f"{what} {file} is a {kind}, not a file")
    return file


def write_atomically(path: Path, write: Callable[[BinaryIO], Any]) -> None:
    """Write a temporary file, then rename it: readers see the old file or the complete new one.

    Raises:
        OSError: If the disk does not take it, naming the file and the free space.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # Several processes may write the same file at once.
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        with temporary.open("wb") as file:
            write(file)
        temporary.replace(path)
    except OSError as error:
        if error.filename is not None:
            raise
        raise disk_error(error, path) from error
    finally:
        temporary.unlink(missing_ok=True)


def save_atomically(path: Path, save: Callable[[Path], Any]) -> None:
    """As :func:`write_atomically`, by a library that makes the file itself, in the mode of other files."""

    def write(file: BinaryIO) -> None:
        temporary, mode = Path(file.name), os.fstat(file.fileno()).st_mode
        save(temporary)
        temporary.chmod(stat.S_IMODE(mode))  # safetensors lets the owner alone read

    write_atomically(path, write)


def remove_leftovers(folder: Path, *, shared: bool = False) -> None:
    """Remove what processes killed in :func:`write_atomically` have left in a folder and its folders.

    In a folder ``shared`` with others' files: at its top, and under names that only that function gives.
    """
    for path in filter(is_leftover, folder.iterdir()) if shared else folder.rglob(".*.tmp"):
        path.unlink(missing_ok=True)


def is_leftover(path: Path) -> bool:
    """Whether a file has a name that only :func:`write_atomically` gives."""
    return _LEFTOVER.fullmatch(path.name) is not None and path.is_file()


def disk_error(error: OSError, path: str | Path) -> OSError:
    """Add to an error of writing a file its name and the free space of its disk."""
    folder = Path(path).absolute().parent
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    reason = error.strerror or str(error)
    return OSError(error.errno, f"{reason} ({free / 1e6:.0f} MB free in {folder})", os.fspath(path))
