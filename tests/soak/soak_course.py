"""A job on its way through faults, and the checks of every call."""

from __future__ import annotations

import random
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from soak_faults import FAULTS, Blow, Fault, holds_the_folder
from soak_jobs import OUTPUT, Job
from soak_server import Process, Server

_SHOWN = 1500  # characters of a process's output


@dataclass
class Entry:
    """Outcome of one call of a job."""

    job: str
    fault: str  # none where nothing should happen
    landed: bool = False  # while the job was at work
    resumed_from: int = 0  # finished work at its start
    struck_at: int | None = None  # finished work at the fault
    status: int | None = 0  # None if it had to be ended
    seconds: float = 0.0
    lost: list[str] = field(default_factory=list)  # finished work that is gone, or missing in the end
    repeated: list[str] = field(default_factory=list)  # finished work that was done again, or is there twice
    different: list[str] = field(default_factory=list)  # results unlike those of an undisturbed run
    wrong: list[str] = field(default_factory=list)  # a status, a trace, silence, leftovers

    @property
    def clean(self) -> bool:
        """Whether nothing is wrong."""
        return not (self.lost or self.repeated or self.different or self.wrong)


class Course:
    """A job that is called until it is done, and then again in another folder inside ``root``."""

    def __init__(self, server: Server, job: Job, root: Path) -> None:
        self.server, self.job, self.root = server, job, root
        self.expected: Mapping[str, Any] = {}
        self.total, self.seconds = 0, 0.0
        self.rounds = 0
        self.done: dict[str, int] = {}
        self._to_be_reported: tuple[str, ...] = ()
        self._damaged: dict[str, int] = {}
        self.folder = self._next_folder()

    def _next_folder(self) -> Path:
        folder = self.root / f"{self.job.name}_{self.rounds}"
        folder.mkdir(parents=True)
        return folder

    def start(self) -> Process:
        """Call the job in its present folder."""
        return self.server.call(self.folder, self.job.command, self.job.arguments)

    def undisturbed(self) -> Entry:
        """Run the job from beginning to end, for its results and its duration."""
        begun = time.monotonic()
        process = self.start()
        if process.end() != 0:
            raise RuntimeError(f"{self.job.name} ended with {process.status} undisturbed: {process.text}")
        self.seconds = time.monotonic() - begun
        self.expected, self.total = self.job.results(self.folder), self.job.progress(self.folder)
        entry = Entry(self.job.name, "none", seconds=round(self.seconds, 3))
        self._end_round(entry)
        return entry

    def strike(self, kind: str, rng: random.Random) -> Entry:
        """Call the job and let one of :data:`FAULTS` happen to it.

        The moment is drawn as further finished work, the same on a slow machine, and a pause after it.
        """
        fault, entry = FAULTS[kind], self._entry(kind)
        more = 0 if fault.early else rng.randrange(self.total // 3 + 1)
        pause = 0.0 if fault.early else max(0.0, rng.uniform(-self.seconds / 8, self.seconds / 8))
        begun = time.monotonic()
        process = self.start()
        blow = self._struck(fault, process, more, pause, rng)
        entry.struck_at = self.job.progress(self.folder)
        entry.status = process.end()
        blow.repair()
        entry.seconds = round(time.monotonic() - begun, 3)
        entry.landed = blow.landed and entry.status in blow.statuses
        entry.wrong += blow.wrong
        self._judge(entry, process, blow)
        if entry.landed and fault.after is not None:
            self._forget(fault.after(self, rng))
        return entry

    def finish(self) -> Entry:
        """Finish the round."""
        entry, begun = self._entry("none"), time.monotonic()
        process = self.start()
        entry.status = process.end()
        entry.seconds = round(time.monotonic() - begun, 3)
        self._judge(entry, process, Blow(False, ()))
        return entry

    @property
    def begun(self) -> bool:
        """Whether a round is under way."""
        return any(self.folder.iterdir())

    def _entry(self, kind: str) -> Entry:
        return Entry(self.job.name, kind, resumed_from=self.job.amount(self.done))

    def _struck(self, fault: Fault, process: Process, more: int, pause: float, rng: random.Random) -> Blow:
        nothing = Blow(False, ())
        if not process.until(lambda: holds_the_folder(self, process)):
            return nothing
        aim = min(self.job.progress(self.folder) + more, self.total)
        if not process.until(lambda: self.job.progress(self.folder) >= aim):
            return nothing
        process.wait(pause)
        ready = process.until(lambda: fault.ready(self, process))
        return fault.strike(self, process, rng) if ready else nothing

    def _judge(self, entry: Entry, process: Process, blow: Blow) -> None:
        """Compare finished work with earlier work and, where the job is done, with the expected results."""
        text, problems = process.text, []
        if entry.status is None:
            problems.append("hangs")
        elif entry.status != 0 and not entry.landed:
            problems.append(f"ended with {entry.status}")
        elif entry.status == 1 and not _ends_with_message(text):
            problems.append("ended without a message of its own")
        elif entry.status == 1 and blow.names and not any(name in text for name in blow.names):
            problems.append(f"names none of {', '.join(blow.names)}")
        if all(name in text for name in self._to_be_reported):
            self._to_be_reported = ()
        elif entry.status == 0:  # else it may have ended before it looked
            problems.append(f"does not report {' and '.join(self._to_be_reported)}")
        entry.wrong += [f"{problem}: {text[-_SHOWN:]}" for problem in problems]
        now = self.job.done(self.folder)
        now = {name: value for name, value in now.items() if self._damaged.get(name) != value}
        entry.lost, entry.repeated = self.job.compare(self.done, now) if self.done else ([], [])
        self.done = now
        if entry.status == 0:
            self._compare(entry)
        if entry.status == 0 or not entry.clean:
            self._end_round(entry)

    def _compare(self, entry: Entry) -> None:
        made = self.job.results(self.folder)
        entry.lost += sorted(self.expected.keys() - made.keys() - set(entry.lost))
        entry.repeated += sorted(made.keys() - self.expected.keys())
        both = sorted(made.keys() & self.expected.keys())
        entry.different += [name for name in both if not same(made[name], self.expected[name])]
        if leftovers := [str(file) for file in self.folder.rglob(".*.tmp")]:
            entry.wrong.append(f"left behind: {', '.join(leftovers)}")
        if (self.folder / OUTPUT / ".lock").exists():
            entry.wrong.append("the lock is left behind")

    def _end_round(self, entry: Entry) -> None:
        """Continue in a new folder; one in which something is wrong is kept."""
        if entry.clean:
            shutil.rmtree(self.folder, ignore_errors=True)
        self.rounds, self.done, self._to_be_reported, self._damaged = self.rounds + 1, {}, (), {}
        self.folder = self._next_folder()

    def _forget(self, file: Path) -> None:
        """Expect nothing of a damaged file; a training has to report that it leaves it out."""
        name = str(file.relative_to(self.folder.resolve()))
        self.done.pop(name, None)
        self._damaged[name] = file.stat().st_mtime_ns  # until it is made anew
        if self.job.name == "train":
            self.done = self.job.done(self.folder)
            self._to_be_reported = (f"{file.name} is damaged", "resuming from")


def _ends_with_message(text: str) -> bool:
    """Whether the last output is an error message; Python may report before what it ignored."""
    _, found, message = f"\n{text}".rpartition("\nerror: ")
    return bool(found) and "Traceback" not in message


def same(one: Any, other: Any) -> bool:
    """Whether two results are equal; numbers in dictionaries may round."""
    if not isinstance(one, dict) or not isinstance(other, dict):
        return bool(one == other)
    return one.keys() == other.keys() and all(
        value == other[key]
        or (isinstance(value, float) and isinstance(other[key], float) and abs(value - other[key]) <= 1e-3)
        for key, value in one.items()
    )
