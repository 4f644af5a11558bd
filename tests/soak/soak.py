"""Faults at random moments in the five long jobs, and whether anything is lost or repeated.

    make soak FAULTS=200 MINUTES=30

Every job runs in processes of its own. At a random moment of its work a fault happens: see ``FAULTS``. Then
it is called again. Finished work must still be there and not have been repeated; the results must be those
of an undisturbed run.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import sys
import tempfile
import time
from collections import deque
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import cycle, islice
from pathlib import Path

from soak_course import Course, Entry
from soak_jobs import WORLD, Job, jobs
from soak_server import Server
from soak_verdict import Verdict
from toy_evaluation import make_toy

_SIZE = 2  # of the jobs
_TRIES = 25  # in which each fault of a lane should have landed, on average a few are needed


def plan(chosen: Sequence[Job], faults: int, rng: random.Random) -> list[tuple[str, str]]:
    """Choose (job, kind) of each fault: jobs in turns, and the kinds of each in turns of random order."""
    kinds = {job.name: cycle(rng.sample(job.faults, len(job.faults))) for job in chosen}
    names = cycle(job.name for job in chosen)
    return [(name, next(kinds[name])) for name in islice(names, faults)]


def soak(
    chosen: tuple[Job, ...], world: Path, folder: Path, faults: int, seed: int, minutes: float, lanes: int
) -> Verdict:
    """Inject ``faults`` into jobs in turns, ``lanes`` jobs at once; begin no more after ``minutes``."""
    begun = time.monotonic()
    planned = plan(chosen, faults, random.Random(seed))

    def run(server: Server, lane: int) -> list[Entry]:
        own = folder / f"lane_{lane}"
        shutil.copytree(world, own / WORLD)  # faults damage it
        courses = {job.name: Course(server, job, own) for job in chosen}
        rng, deadline = random.Random(f"{seed} {lane}"), begun + 60 * minutes
        return _lane(courses, planned[lane::lanes], rng, deadline)

    with Server() as server, ThreadPoolExecutor(lanes) as pool:
        found = [pool.submit(run, server, lane) for lane in range(lanes)]
        entries = [entry for lane in found for entry in lane.result()]
    return Verdict(seed, faults, time.monotonic() - begun, entries)


def _lane(
    courses: dict[str, Course], wanted: list[tuple[str, str]], rng: random.Random, deadline: float
) -> list[Entry]:
    """One job after the other; a fault that came too late is tried again at the end."""
    used = {name for name, _ in wanted}
    entries = [course.undisturbed() for name, course in courses.items() if name in used]
    todo, tries = deque(wanted), 0
    while todo and time.monotonic() < deadline and tries < _TRIES * len(wanted):
        name, kind = todo.popleft()
        entries.append(courses[name].strike(kind, rng))
        tries += 1
        if not entries[-1].landed:
            todo.append((name, kind))
    return entries + [course.finish() for course in courses.values() if course.begun]


def main() -> None:
    """Make models and data, soak, and print the verdict."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--faults", type=int, default=200)
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--seed", type=int, default=None)
    parser.add_argument("--lanes", type=int, default=min(2, os.cpu_count() or 1))
    parser.add_argument("--output", type=Path, default=Path("outputs/soak"))
    options = parser.parse_args()
    seed = random.SystemRandom().randrange(10**6) if options.seed is None else options.seed
    print(f"seed {seed}", flush=True)
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    from conftest import write_small_base, write_world

    folder = Path(tempfile.mkdtemp(prefix="soak"))
    base = write_small_base(folder / "base")
    world = write_world(folder / "world", num_train=72 * _SIZE)
    chosen = jobs(base, make_toy(base, folder / "toy"), size=_SIZE)
    limits = {name: getattr(options, name) for name in ("faults", "minutes", "lanes")}
    verdict = soak(chosen, world, folder / "lanes", seed=seed, **limits)
    options.output.mkdir(parents=True, exist_ok=True)
    (options.output / "verdict.txt").write_text(verdict.text() + "\n")
    print(verdict.text())
    if not all(entry.clean for entry in verdict.entries):
        sys.exit(f"the folders are kept in {folder}")
    shutil.rmtree(folder)
    if not verdict.passed:
        sys.exit("there was too little time (MINUTES=)")


if __name__ == "__main__":
    main()
