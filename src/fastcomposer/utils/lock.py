"""One run at a time in a folder."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import socket
import sys
import warnings
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

from fastcomposer.utils.errors import FaultError
from fastcomposer.utils.files import LOCK_NAME as LOCK_NAME

_RANKS = ("RANK", "LOCAL_RANK", "SLURM_PROCID")


def is_first_process() -> bool:
    """Whether this is the only process of its run, or the first one."""
    return not any(int(os.environ.get(rank) or 0) for rank in _RANKS)


@contextlib.contextmanager
def sole_run(folder: str | Path) -> Iterator[bool]:
    """Keep other runs out of a folder while the block runs.

    The system holds the lock for the process and drops it when the process ends in whatever way, so what a
    killed run leaves never stands in the way. Workers that a process starts do not inherit it. Of several
    processes of one run, the first holds the lock for all.

    Args:
        folder: Where the run writes; made when missing.

    Yields:
        Whether this process holds the lock.

    Raises:
        FaultError: If another process runs there, naming it.
    """
    if not is_first_process():
        yield False
        return
    path = Path(folder) / LOCK_NAME
    made = not path.parent.exists()
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = _hold(path)
    try:
        owner = {"process": os.getpid(), "machine": socket.gethostname(), "command": " ".join(sys.argv)}
        content = {**owner, "since": datetime.now().astimezone().isoformat(timespec="seconds")}
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, json.dumps(content).encode(), 0)
        yield True
    finally:
        # Removed while it is held: whoever opened it meanwhile sees that it is another file now.
        path.unlink(missing_ok=True)
        os.close(descriptor)
        if made:
            with contextlib.suppress(OSError):  # not empty, as it should be
                path.parent.rmdir()


def _hold(path: Path) -> int:
    """Open the file and lock it; returns its descriptor."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):  # POSIX lets a system answer with either
            told = os.pread(descriptor, 10_000, 0)
            os.close(descriptor)
            raise FaultError(
                f"{path.parent} is in use by {_owner(told)}; wait for it, end it, or choose another folder"
            ) from None
        except OSError as error:
            warnings.warn(
                f"no locks on the disk of {path.parent} ({error}): a second run is not kept out", stacklevel=4
            )
            return descriptor
        with contextlib.suppress(FileNotFoundError):
            if os.stat(path).st_ino == os.fstat(descriptor).st_ino:  # noqa: PTH116
                return descriptor
        os.close(descriptor)  # its owner removed it in between


def _owner(told: bytes) -> str:
    """Who holds a lock, by what the file says."""
    try:
        owner = json.loads(told)
        place = f"process {owner['process']} on {owner['machine']}"
        return f"{place} since {owner['since']} ({owner['command']})"
    except (ValueError, LookupError, TypeError):  # it has not written yet
        return "another process"
