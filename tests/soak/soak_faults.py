"""Faults of a soak: real signals, real limits, real damage to real files."""

from __future__ import annotations

import contextlib
import json
import os
import random
import resource
import signal
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from soak_callbacks import TRIGGER
from soak_jobs import OUTPUT, WORLD, unvalidated
from soak_server import Process

if TYPE_CHECKING:
    from soak_course import Course as Call

_ROOM = 700  # bytes that a file may have on the full disk
_GLANCE = 0.005  # seconds between two looks at a process
_GRACE = 0.4  # most seconds that a scheduler gives a job to end
_DAMAGED = 8  # records


@dataclass
class Blow:
    """A fault that has happened to a process."""

    landed: bool  # whether there was anything to hit
    statuses: tuple[int, ...]  # how the process may end then; with 0 it had been done before
    names: tuple[str, ...] = ()  # words of which it must print one
    repair: Callable[[], object] = lambda: None
    wrong: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Fault:
    """A kind of fault."""

    strike: Callable[[Call, Process, random.Random], Blow]
    ready: Callable[[Call, Process], bool] = lambda call, process: True
    early: bool = False  # whether it has to come while there is work left
    after: Callable[[Call, random.Random], Path] | None = None  # damages files once the process has ended


_ENDED = (-signal.SIGTERM, 128 + signal.SIGTERM)


def _term(call: Call, process: Process, rng: random.Random) -> Blow:
    return Blow(process.signal(signal.SIGTERM), _ENDED)


def _kill(call: Call, process: Process, rng: random.Random) -> Blow:
    return Blow(process.signal(signal.SIGKILL), (-signal.SIGKILL,))


def _kill_all(call: Call, process: Process, rng: random.Random) -> Blow:
    return Blow(process.signal_all(signal.SIGKILL), (-signal.SIGKILL,))


def _evict(call: Call, process: Process, rng: random.Random) -> Blow:
    """Ask it to end, as schedulers do, and kill it and its workers soon after."""
    grace = rng.uniform(0, _GRACE)
    landed = process.signal(signal.SIGTERM)
    process.wait(grace)
    process.signal_all(signal.SIGKILL)
    return Blow(landed, (*_ENDED, -signal.SIGKILL))


def _kill_a_worker(call: Call, process: Process, rng: random.Random) -> Blow:
    workers = process.workers()
    try:
        os.kill(workers[rng.randrange(len(workers))], signal.SIGKILL)
    except (ValueError, ProcessLookupError):  # none is left
        return Blow(False, (1,))
    return Blow(True, (1,))


def _fill_the_disk(call: Call, process: Process, rng: random.Random) -> Blow:
    """Limit the size of its files: another error of the system, handled in the same way."""
    # A training's workers only read; the limit would hold for the memory that they share, too.
    training = call.job.name == "train"
    try:
        for pid in (process.pid, *(() if training else process.workers())):
            resource.prlimit(pid, resource.RLIMIT_FSIZE, (_ROOM, resource.RLIM_INFINITY))
    except (ProcessLookupError, PermissionError):
        return Blow(False, (1,))
    while training and not process.wait(_GLANCE):  # workers that it starts from now on inherit the limit
        for pid in process.workers():
            with contextlib.suppress(ProcessLookupError):
                resource.prlimit(pid, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)
    return Blow(True, (1,))


def _start_a_second(call: Call, process: Process, rng: random.Random) -> Blow:
    """Start the same call beside it, which is refused."""
    second = call.start()
    status = second.end()
    refused = status == 1 and "is in use by process" in second.text
    blow = Blow(refused, (0,))
    if not refused and process.status is None:
        blow.wrong.append(f"two at once ({status}): {second.text}")
    return blow


def _damage_records(call: Call, process: Process, rng: random.Random) -> Blow:
    """Cut files of some records that it reads, or remove them where they are copied unread."""
    world = call.folder.parent / WORLD
    contents = {}
    for name in rng.sample(sorted(file.stem for file in world.glob("0*/*.json")), _DAMAGED):
        file = next(world.glob(f"0*/{name}.json")).with_suffix(rng.choice((".jpg", ".npy", ".json")))
        contents[file] = file.read_bytes()
        if call.job.name == "train":
            os.truncate(file, int(len(contents[file]) * rng.random()))
        else:
            file.unlink()
    names = tuple(file.stem for file in contents)
    return Blow(True, (1,), names, repair=lambda: [file.write_bytes(contents[file]) for file in contents])


def _burst(call: Call, process: Process, rng: random.Random) -> Blow:
    """Make the weights of a training NaN, for which it must end without saving them."""
    trigger = call.folder / TRIGGER
    trigger.touch()
    process.wait()
    late = trigger.exists()
    trigger.unlink(missing_ok=True)
    return Blow(not late, (1,), ("finite",))


def _flip(call: Call, rng: random.Random) -> Path:
    """Flip a byte of a finished file, make some of it zeros or cut it; returns it."""
    file = rng.choice(call.job.newest_files(call.folder))
    content = bytearray(file.read_bytes())
    index = rng.randrange(len(content))
    match rng.choice(("flip", "zeros", "cut")):
        case "flip":
            content[index] ^= 1 << rng.randrange(8)
        case "zeros":
            content = bytearray(len(content))
        case "cut":
            del content[index:]
    file.write_bytes(content)
    return file


def _truncate(call: Call, rng: random.Random) -> Path:
    """Cut the newest file in two; returns it."""
    file = call.job.newest_files(call.folder)[-1]
    os.truncate(file, int(file.stat().st_size * rng.random()))
    return file


def _has_files(least: int) -> Callable[[Call, Process], bool]:
    return lambda call, process: len(call.job.newest_files(call.folder)) >= least


def _has_workers(call: Call, process: Process) -> bool:
    return bool(process.workers())


FAULTS = {
    "kill": Fault(_kill),
    "outage": Fault(_kill_all, _has_workers),
    "term": Fault(_term),
    "evict": Fault(_evict),
    "worker": Fault(_kill_a_worker, _has_workers),
    "disk": Fault(_fill_the_disk),
    "truncate": Fault(_kill, _has_files(2), after=_truncate),
    "record": Fault(_damage_records, early=True),
    "second": Fault(_start_a_second),
    "unvalidated": Fault(_kill_all, lambda call, process: unvalidated(call.folder)),
    "nan": Fault(_burst),
    "shard": Fault(_kill, _has_files(1), after=_flip),
    "cache": Fault(_kill, _has_files(1), after=_flip),
}


def holds_the_folder(call: Call, process: Process) -> bool:
    """Whether the job is at work: it takes its lock first. A killed job's lock names that job."""
    try:
        owner = json.loads((call.folder / OUTPUT / ".lock").read_bytes())
    except (OSError, ValueError):
        return False
    return owner["process"] == process.pid
