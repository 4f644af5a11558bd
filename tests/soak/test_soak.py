"""A short soak (``make soak`` is the long one), and checks of the soak itself."""

from __future__ import annotations

import os
import random
from dataclasses import replace
from pathlib import Path

import pytest
from soak_course import Course, Entry
from soak_faults import FAULTS, Blow
from soak_jobs import OUTPUT, Job, jobs
from soak_server import Process, Server
from soak_verdict import Verdict
from toy_evaluation import make_toy

from soak import plan, soak

SEED = 609  # of a choice of ten faults, weights of NaN, damage and a kill before a validation among them


@pytest.mark.timeout(900)  # half a minute of one core, of which there may be a small part
def test_a_short_soak(world: Path, small_base: Path, tmp_path: Path) -> None:
    """Two faults of each job; only the moments depend on how fast the machine is."""
    chosen = jobs(small_base, make_toy(small_base, tmp_path / "toy"))
    verdict = soak(chosen, world, tmp_path / "soak", faults=10, seed=SEED, minutes=30, lanes=1)
    assert verdict.passed, "\n".join(str(entry) for entry in verdict.entries if not entry.clean)
    landed = [(entry.job, entry.fault) for entry in verdict.entries if entry.landed]
    assert sorted(landed) == sorted(plan(chosen, 10, random.Random(SEED)))
    assert {job for job, _ in landed} == {job.name for job in chosen}


# --- checks of the soak ------------------------------------------------------------------------------------


def _job() -> Job:
    return Job(
        name="made",
        command="prepare",
        arguments=(),
        results=lambda folder: {file.name: file.read_text() for file in _texts(folder)},
        done=lambda folder: {file.name: file.stat().st_mtime_ns for file in _texts(folder)},
        progress=lambda folder: len(list(_texts(folder))),
        faults=("kill",),
    )


def _texts(folder: Path) -> list[Path]:
    return sorted((folder / OUTPUT).glob("*.txt"))


class _Ended(Process):
    """A process that has ended."""

    def __init__(self, output: str = "") -> None:
        self._output = output.encode()


@pytest.fixture
def course(tmp_path: Path) -> Course:
    """A job of two files, one of which is finished."""
    course = Course(Server.__new__(Server), _job(), tmp_path)
    course.expected = {"a.txt": "1", "b.txt": "2"}
    write(course, a="1")
    assert judged(course, -9, landed=True).clean
    return course


def write(course: Course, **texts: str) -> None:
    (course.folder / OUTPUT).mkdir(exist_ok=True)
    for name, text in texts.items():
        (course.folder / OUTPUT / f"{name}.txt").write_text(text)


def judged(
    course: Course, status: int | None, output: str = "", landed: bool = False, names: tuple[str, ...] = ()
) -> Entry:
    """Judge the end of a call."""
    entry = Entry(course.job.name, "kill", status=status, landed=landed)
    course._judge(entry, _Ended(output), Blow(landed, (1,), names))
    return entry


def test_a_soak_notices_what_is_missing_too_much_or_different(course: Course) -> None:
    course.expected = {**course.expected, "d.txt": "4"}
    write(course, b="3", c="2")
    folder = course.folder
    entry = judged(course, 0)
    assert (entry.lost, entry.repeated, entry.different) == (["d.txt"], ["c.txt"], ["b.txt"])
    assert folder.exists()  # for inspection


def test_a_soak_notices_what_is_done_again_or_gone(course: Course) -> None:
    file = course.folder / OUTPUT / "a.txt"
    os.utime(file, ns=(0, 0))
    entry = judged(course, -9, landed=True)
    assert (entry.lost, entry.repeated) == ([], ["a.txt"])
    write(course, a="1")
    assert judged(course, -9, landed=True).clean
    (course.folder / OUTPUT / "a.txt").unlink()
    assert judged(course, -9, landed=True).lost == ["a.txt"]


def test_a_soak_notices_leftovers(course: Course) -> None:
    write(course, b="2")
    (course.folder / OUTPUT / ".b.txt.tmp").touch()
    (course.folder / OUTPUT / ".lock").touch()
    left, lock = judged(course, 0).wrong
    assert left.startswith("left behind: ") and left.endswith(".b.txt.tmp")
    assert lock == "the lock is left behind"


@pytest.mark.parametrize(
    ("status", "output", "landed", "names", "complaint"),
    [
        (None, "", True, (), "hangs"),
        (1, "error: bad", False, (), "ended with 1"),
        (1, "", True, (), "ended without a message"),
        (1, "error: bad\nTraceback", True, (), "ended without a message"),
        (1, "error: bad", True, ("00001",), "names none of 00001"),
        (1, "error: record 00001 is bad", True, ("00001",), None),
    ],
)
def test_a_soak_notices_how_a_process_ends(
    course: Course,
    status: int | None,
    output: str,
    landed: bool,
    names: tuple[str, ...],
    complaint: str | None,
) -> None:
    wrong = judged(course, status, output, landed, names).wrong
    assert [text.startswith(complaint) for text in wrong] == [True] if complaint else wrong == []


def test_a_verdict_counts_what_landed_and_fails_for_anything() -> None:
    entries = [
        Entry("made", "none"),
        Entry("made", "kill", landed=True, status=-9),
        Entry("made", "kill", resumed_from=3),
    ]
    verdict = Verdict(0, 1, 60.0, entries)
    assert verdict.passed
    assert ": 1 of 1 faults in 1.0 minutes, 0 lost, 0 repeated, 0 different, 0 wrong" in verdict.text()
    assert not replace(verdict, asked=2).passed
    for name in ("lost", "repeated", "different", "wrong"):
        failed = replace(verdict, entries=[*entries, Entry("made", "none", **{name: ["this"]})])
        assert not failed.passed
        assert f"made, none: {name}: this" in failed.text() and f"1 {name}" in failed.text()


def test_every_fault_of_every_job_is_known(tmp_path: Path, small_base: Path) -> None:
    chosen = jobs(small_base, make_toy(small_base, tmp_path / "toy"))
    assert {kind for job in chosen for kind in job.faults} == FAULTS.keys()
