"""Faults at random moments in the four long jobs, and whether anything is lost or done twice.

    python tests/data/soak.py --faults 200 --minutes 30

Every job runs in processes of its own. At a moment anywhere in such a process's life something happens to it:
it is killed or asked to end, a worker of it is killed, the disk takes no larger files any more, its newest
checkpoint is cut in two, or a second process is started beside it. Then it is called again. What was finished
before must still be there and not have been made anew; what a job makes in the end must be what it makes when
nothing happens.
"""

from __future__ import annotations

import argparse
import math
import multiprocessing
import os
import random
import resource
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from soak_jobs import OUTPUT, Job, call, jobs

_CONTEXT = multiprocessing.get_context("forkserver")
_PRELOAD = ["soak_jobs", "fastcomposer.evaluation.scoring", "fastcomposer.training.module", "hydra.main"]
_ROOM = 700  # bytes that a file may have on the full disk
_PATIENCE = 600  # seconds until a process counts as hanging


class SoakError(AssertionError):
    """Something was lost, repeated, or ended without a word."""


class Process:
    """One call of a job's command."""

    def __init__(self, job: Job, folder: Path) -> None:
        self.job, self.folder, self.said = job, folder, b""
        receiver, sender = _CONTEXT.Pipe(duplex=False)
        arguments = (str(folder), job.command, job.arguments, sender)
        self.process = _CONTEXT.Process(target=call, args=arguments)
        self.process.start()
        sender.close()
        self._listener = threading.Thread(target=self._listen, args=(receiver,), daemon=True)
        self._listener.start()

    @property
    def pid(self) -> int:
        """Number of the process."""
        assert self.process.pid is not None
        return self.process.pid

    def _listen(self, receiver: Any) -> None:
        while content := os.read(receiver.fileno(), 65_536):
            self.said += content

    def wait(self) -> int:
        """Wait until it ends; returns its status."""
        self.process.join(_PATIENCE)
        if self.process.is_alive():
            self.process.kill()
            raise SoakError(f"{self.job.name} hangs: {self.text}")
        self._listener.join(20)
        assert self.process.exitcode is not None
        return self.process.exitcode

    @property
    def text(self) -> str:
        """What it said."""
        return self.said.decode(errors="replace")[-3000:]

    def children(self) -> list[int]:
        """Processes that it has started."""
        try:
            return [int(n) for n in Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text().split()]
        except OSError:
            return []


@dataclass
class Course:
    """A job on its way through faults."""

    job: Job
    place: Path
    expected: Mapping[str, Any]
    seconds: float
    rounds: int = 0
    starts: int = 0
    done: dict[str, int] = field(default_factory=dict)

    @property
    def folder(self) -> Path:
        """Where the present round runs."""
        folder = self.place / f"{self.job.name}_{self.rounds}"
        folder.mkdir(exist_ok=True)
        return folder

    def strike(self, fault: str, rng: random.Random) -> bool:
        """Call the job and let something happen to it; whether it did."""
        self.starts += 1
        process = Process(self.job, self.folder)
        process.process.join(rng.uniform(0, self.seconds))
        status = process.process.exitcode
        struck = status is None and _FAULTS[fault](process)
        status = process.wait()
        if fault == "damage" and struck:
            _cut_newest(self.folder, rng)
            self.done = {}
        elif struck:
            _check_end(process, fault, status)
        self.check_done()
        if status == 0:
            self.check_results()
        elif not struck:
            raise SoakError(f"{self.job.name} ended with {status} though nothing happened: {process.text}")
        return struck

    def check_done(self) -> None:
        """Nothing that was finished is gone or was made anew."""
        now = self.job.done(self.folder)
        if lost := self.job.lost(self.done, now):
            raise SoakError(f"{self.job.name}: lost or repeated in {self.folder}: {lost[:5]}")
        self.done = now

    def finish(self) -> None:
        """Let the round come to its end."""
        process = Process(self.job, self.folder)
        if (status := process.wait()) != 0:
            raise SoakError(f"{self.job.name} ended with {status} though nothing happened: {process.text}")
        self.check_done()
        self.check_results()

    def check_results(self) -> None:
        """What came out is what comes out when nothing happens; then begin a new round."""
        made = self.job.results(self.folder)
        if wrong := [name for name in {**self.expected, **made} if not _equal(made, self.expected, name)]:
            raise SoakError(f"{self.job.name}: {len(wrong)} results differ in {self.folder}: {wrong[:5]}")
        leftovers = [str(file) for file in self.folder.rglob(".*.tmp")]
        if leftovers or (self.folder / OUTPUT / ".lock").exists():
            raise SoakError(f"{self.job.name}: left behind in {self.folder}: {leftovers or '.lock'}")
        self.rounds, self.done = self.rounds + 1, {}


def _equal(made: Mapping[str, Any], expected: Mapping[str, Any], name: str) -> bool:
    """Whether two results are the same; numbers may round."""
    if name not in made or name not in expected:
        return False
    one, other = made[name], expected[name]
    if not isinstance(one, dict):
        return bool(one == other)
    return one.keys() == other.keys() and all(
        math.isclose(one[key], other[key], abs_tol=1e-3)
        if isinstance(one[key], float) and isinstance(other[key], float)
        else one[key] == other[key]
        for key in one
    )


# --- what happens ------------------------------------------------------------------------------------------


def _kill(process: Process) -> bool:
    os.kill(process.pid, signal.SIGKILL)
    return True


def _ask_to_end(process: Process) -> bool:
    os.kill(process.pid, signal.SIGTERM)
    return True


def _kill_a_worker(process: Process) -> bool:
    workers = process.children()
    for worker in workers[-1:]:
        os.kill(worker, signal.SIGKILL)
    return bool(workers)


def _fill_the_disk(process: Process) -> bool:
    if not (process.folder / OUTPUT / ".lock").exists():
        return False  # it has not begun: what Hydra writes before is no work
    # A training's workers only read; the limit would hold for the memory that they share, too.
    writers = [] if process.job.name == "train" else process.children()
    for pid in (process.pid, *writers):
        try:
            resource.prlimit(pid, resource.RLIMIT_FSIZE, (_ROOM, resource.RLIM_INFINITY))
        except (ProcessLookupError, PermissionError):
            return False
    return True


def _start_a_second(process: Process) -> bool:
    """Start the same call beside it, and wait for its refusal."""
    if not (process.folder / OUTPUT / ".lock").exists():
        return False
    second = Process(process.job, process.folder)
    status = second.wait()
    if status == 0 or "is in use by process" not in second.text:
        if process.process.exitcode is None:
            raise SoakError(f"{process.job.name}: two at once ({status}): {second.text}")
        return False  # the first had ended meanwhile
    return True


_FAULTS = {
    "kill": _kill,
    "term": _ask_to_end,
    "worker": _kill_a_worker,
    "disk": _fill_the_disk,
    "damage": _kill,
    "second": _start_a_second,
}


def _cut_newest(folder: Path, rng: random.Random) -> None:
    """Cut the newest checkpoint in two, if another is left to go on from."""
    files = {file.resolve() for file in (folder / OUTPUT / "checkpoints").glob("*.ckpt")}
    newest = sorted(files, key=lambda file: file.stat().st_mtime_ns)
    if len(newest) > 1:
        os.truncate(newest[-1], int(newest[-1].stat().st_size * rng.random()))


def _check_end(process: Process, fault: str, status: int) -> None:
    """A process that something happened to ends as it should: with a word, where it could say one."""
    expected = {
        "kill": {-signal.SIGKILL, 0},
        "term": {-signal.SIGTERM, 128 + signal.SIGTERM, 0},
        "worker": {1, 0},
        "disk": {1, 0},
        "second": {0},
    }[fault]
    told = "error: " in process.text and "Traceback" not in process.text
    if status not in expected or (status == 1 and not told):
        raise SoakError(f"{process.job.name} after {fault!r} ended with {status}: {process.text}")


# --- the soak ----------------------------------------------------------------------------------------------


def soak(
    chosen: tuple[Job, ...], place: Path, faults: int, minutes: float, seed: int
) -> tuple[Counter[str], Counter[str]]:
    """Let things happen to jobs in turns.

    Args:
        chosen: The jobs.
        place: Folder for everything.
        faults: How many.
        minutes: When to stop after the first, from the end of the undisturbed runs; what is under way is
            finished.
        seed: Of what happens when.

    Returns:
        How many faults there were of each job, and of each kind.

    Raises:
        SoakError: At the first thing that is lost, repeated, different, or ends without a word.
    """
    _CONTEXT.set_forkserver_preload(_PRELOAD)
    courses = [_undisturbed(job, place) for job in chosen]
    rng, deadline = random.Random(seed), time.monotonic() + 60 * minutes
    by_job: Counter[str] = Counter()
    by_kind: Counter[str] = Counter()
    turns = [(course, fault) for course in courses for fault in course.job.faults]
    while not by_job or (by_job.total() < faults and time.monotonic() < deadline):
        course, fault = turns[rng.randrange(len(turns))]
        if course.strike(fault, rng):
            by_job[course.job.name] += 1
            by_kind[fault] += 1
    for course in courses:
        if any(course.folder.iterdir()):
            course.finish()
    return by_job, by_kind


def _undisturbed(job: Job, place: Path) -> Course:
    """Run a job to its end, for what comes out and how long it takes."""
    warm = _CONTEXT.Process(target=time.sleep, args=(0,))  # the first one waits for imports
    warm.start()
    warm.join()
    folder = place / f"{job.name}_whole"
    folder.mkdir(parents=True)
    begun = time.monotonic()
    process = Process(job, folder)
    if (status := process.wait()) != 0:
        raise SoakError(f"{job.name} ended with {status} undisturbed: {process.text}")
    return Course(job, place, job.results(folder), time.monotonic() - begun)


def main() -> None:
    """Make models and data, and soak."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--faults", type=int, default=200)
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--seed", type=int, default=None)
    parser.add_argument("--jobs", nargs="*", default=["train", "evaluate", "prepare", "shards"])
    options = parser.parse_args()
    seed = random.SystemRandom().randrange(10**6) if options.seed is None else options.seed
    print(f"seed {seed}", flush=True)
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    from toy_evaluation import make_toy

    from conftest import write_small_base, write_world

    begun = time.monotonic()
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        base, world = write_small_base(place / "base"), write_world(place / "world")
        found = jobs(world, base, make_toy(base, place / "toy"), size=2)
        chosen = tuple(job for job in found if job.name in options.jobs)
        by_job, by_kind = soak(chosen, place / "soak", options.faults, options.minutes, seed)
    print(
        f"{by_job.total()} faults in {(time.monotonic() - begun) / 60:.1f} minutes, nothing lost or repeated"
    )
    for counts in (by_job, by_kind):
        print(", ".join(f"{name} {count}" for name, count in counts.most_common()))


if __name__ == "__main__":
    main()
