"""A short soak (``make soak`` is the long one), and whether a soak would notice."""

from __future__ import annotations

import os
import random
from dataclasses import replace
from pathlib import Path

import pytest
from soak import Course, SoakError, soak
from soak_jobs import OUTPUT, Job, jobs
from toy_evaluation import make_toy

SECONDS = 25


@pytest.mark.slow
def test_a_short_soak(world: Path, small_base: Path, tmp_path: Path) -> None:
    seed = random.SystemRandom().randrange(10**6)  # other moments each time, said where it fails
    print(f"seed {seed}")
    chosen = jobs(world, small_base, make_toy(small_base, tmp_path / "toy"))
    by_job, by_kind = soak(chosen, tmp_path / "soak", faults=4, minutes=SECONDS / 60, seed=seed)
    assert by_job.total() == by_kind.total() >= 1


@pytest.fixture
def course(tmp_path: Path) -> Course:
    """A job of two files, one of which is finished."""
    made = Job(
        "made",
        "prepare",
        (),
        lambda folder: {file.name: file.read_text() for file in (folder / OUTPUT).glob("*.txt")},
        lambda folder: {file.name: file.stat().st_mtime_ns for file in (folder / OUTPUT).glob("*.txt")},
        (),
    )
    course = Course(made, tmp_path, {"a.txt": "1", "b.txt": "2"}, 1.0)
    (course.folder / OUTPUT).mkdir()
    write(course, a="1")
    course.check_done()
    return course


def write(course: Course, **texts: str) -> None:
    for name, text in texts.items():
        (course.folder / OUTPUT / f"{name}.txt").write_text(text)


def test_a_soak_passes_what_is_right(course: Course) -> None:
    write(course, b="2")
    course.check_done()
    course.check_results()
    assert course.rounds == 1


def test_a_soak_notices_what_is_missing(course: Course) -> None:
    with pytest.raises(SoakError, match=r"1 results differ.*'b\.txt'"):
        course.check_results()


def test_a_soak_notices_what_is_too_much_or_wrong(course: Course) -> None:
    write(course, b="3", c="2")
    with pytest.raises(SoakError, match=r"2 results differ"):
        course.check_results()


def test_a_soak_notices_what_is_done_again_or_gone(course: Course) -> None:
    file = course.folder / OUTPUT / "a.txt"
    os.utime(file, ns=(0, 0))
    with pytest.raises(SoakError, match=r"lost or repeated.*a\.txt"):
        course.check_done()
    file.unlink()
    with pytest.raises(SoakError, match=r"lost or repeated.*a\.txt"):
        course.check_done()


def test_a_soak_notices_leftovers(course: Course) -> None:
    write(course, b="2")
    (course.folder / OUTPUT / ".b.txt.tmp").touch()
    with pytest.raises(SoakError, match="left behind"):
        course.check_results()


def test_steps_may_grow_and_not_fall(course: Course) -> None:
    train = replace(course.job, name="train")
    assert train.lost({"steps": 4}, {"steps": 6}) == []
    assert train.lost({"steps": 4}, {"steps": 2}) == ["steps"]
