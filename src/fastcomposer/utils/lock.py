"""One run at a time in a folder."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import sys
import warnings
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

from filelock import FileLock, Timeout

from fastcomposer.utils.errors import FaultError
from fastcomposer.utils.files import LOCK_NAME as LOCK_NAME

_RANKS = ("RANK", "LOCAL_RANK", "SLURM_PROCID")


def is_first_process() -> bool:
    """Whether this is the only process of its run, or the first one."""
    return not any(int(os.environ.get(rank) or 0) for rank in _RANKS)


@contextlib.contextmanager
def sole_run(folder: str | Path) -> Iterator[bool]:
    """Keep other runs out of a folder, made when missing, while the block runs.

    Of several processes of one run, the first holds the lock for all. Yields whether this process holds it.

    Raises:
        FaultError: If another process runs there, naming it, or the lock is a link or no file.
    """
    if not is_first_process():
        yield False
        return
    path = Path(folder) / LOCK_NAME
    if path.is_symlink() or (path.exists() and not path.is_file()):
        raise FaultError(f"{path} is a link, folder or device, which a lock would overwrite: remove it")
    made = not path.parent.exists()
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path)
    try:
        lock.acquire(blocking=False)
    except Timeout:
        raise FaultError(
            f"{path.parent} is in use by {_owner(path)}; wait for it, end it, or choose another folder"
        ) from None
    except OSError as error:
        message = f"no locks on the disk of {path.parent} ({error}): a second run is not kept out"
        warnings.warn(message, stacklevel=3)
    try:
        owner = {"process": os.getpid(), "machine": socket.gethostname(), "command": " ".join(sys.argv)}
        since = datetime.now().astimezone().isoformat(timespec="seconds")
        path.write_text(json.dumps({**owner, "since": since}))
        yield True
    finally:
        path.unlink(missing_ok=True)  # while it is held: a run that has opened it sees that it is gone
        lock.release()
        if made:
            with contextlib.suppress(OSError):  # not empty, as it should be
                path.parent.rmdir()


def _owner(path: Path) -> str:
    """The process that holds a lock, as the file names it."""
    try:
        owner = json.loads(path.read_bytes())
        process = f"process {owner['process']} on {owner['machine']}"
        return f"{process} since {owner['since']} ({owner['command']})"
    except (OSError, ValueError, LookupError, TypeError):  # not written yet, or gone
        return "another process"
