"""The temporary folder of a running page; nothing else is ever deleted."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

PREFIX = "page-"
"""Prefix of the names of such folders."""
MARKER = ".fastcomposer-page"
"""File that identifies such a folder; locked while the page runs."""
_FILES = "files"


@contextlib.contextmanager
def page_folder(output: Path) -> Iterator[Path]:
    """Create a folder in ``output`` for the files of a page, and delete it at the end of the block.

    Yields the absolute path of an empty folder inside the new one. Folders of killed pages are deleted first:
    directories (not links) whose name begins with ``page-`` and whose marker no process has locked. Links
    inside are deleted, not followed.
    """
    output = output.absolute()
    output.mkdir(parents=True, exist_ok=True)
    _delete_leftovers(output)
    folder = Path(tempfile.mkdtemp(prefix=PREFIX, dir=output))
    marker = os.open(folder / MARKER, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        _lock(marker)
        (folder / _FILES).mkdir()
        yield folder / _FILES
    finally:
        _delete(folder)
        os.close(marker)


def _delete_leftovers(output: Path) -> None:
    with os.scandir(output) as entries:
        candidates = [e for e in entries if e.name.startswith(PREFIX) and e.is_dir(follow_symlinks=False)]
    for entry in candidates:
        try:
            marker = os.open(Path(entry.path) / MARKER, os.O_RDWR | os.O_NOFOLLOW)
        except OSError:  # not ours
            continue
        try:
            if _lock(marker):
                _delete(Path(entry.path))
        finally:
            os.close(marker)


def _delete(folder: Path) -> None:
    shutil.rmtree(folder / _FILES, ignore_errors=True)  # the marker last: a kill in between leaves it
    shutil.rmtree(folder, ignore_errors=True)


def _lock(descriptor: int) -> bool:
    """Try to lock; on a disk without locks this fails, and old folders stay."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True
