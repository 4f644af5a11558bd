"""Jobs of a sweep: what each does and how it ends, kept in its own folder."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, TypeVar

from fastcomposer.utils.files import write_atomically
from fastcomposer.utils.json_files import read_json_as

Status = Literal["running", "finished", "failed", "stopped", "waiting"]
_Record = TypeVar("_Record")

JOB_NAME = "job.json"
PLAN_NAME = "sweep.json"
EVALUATION = "evaluation"
"""Folder inside a sweep's with the evaluations of its trainings: a sweep of its own."""
TRACE_NAME = "error.log"
"""File with the trace of a failed job."""


@dataclass(frozen=True)
class Job:
    """One job of a sweep, by its number from 0."""

    number: int
    folder: Path
    overrides: tuple[str, ...]  # what the sweep sets for it on the command line, without resume
    settings: Mapping[str, Any] = field(default_factory=dict)  # its full configuration; plain values
    status: Status = "running"  # until it records an end; waiting before its start
    reason: str = ""  # why it did not finish
    seconds: float = 0.0  # of its last call
    value: float | None = None  # its objective, for a search

    @property
    def chosen(self) -> dict[str, str]:
        """The overrides by key, each value as it was written."""
        return dict(map(key_and_value, self.overrides))

    def named(self, keys: Sequence[str]) -> str:
        """Number and chosen values of some keys, on a line."""
        chosen = self.chosen
        values = " ".join(f"{key}={chosen[key]}" for key in keys if key in chosen)
        return f"job {self.number}" + f" ({values})" * bool(values)

    @property
    def log(self) -> Path | None:
        """The trace of its failure."""
        return file if (file := self.folder / TRACE_NAME).is_file() else None

    def ended(self, status: Status, **outcome: Any) -> Job:
        """The same job with what is known at its end."""
        return replace(self, status=status, **outcome)

    def write(self) -> None:
        """Write the record into the job's folder."""
        _write(self.folder / JOB_NAME, {k: value for k, value in asdict(self).items() if k != "folder"})


@dataclass(frozen=True)
class Goal:
    """What a search is for."""

    objective: str  # what each of its jobs measures
    direction: Literal["minimize", "maximize"]
    trials: int
    ranges: Mapping[str, str]  # what each key is chosen from, as it was written
    common: Mapping[str, Any] = field(default_factory=dict)  # configuration that the jobs share; plain values

    def ranked(self, jobs: Sequence[Job]) -> list[tuple[float, Job]]:
        """Finished jobs with their objectives, the best first, of equal ones the earliest."""
        sign = 1 if self.direction == "minimize" else -1
        found = [(job.value, job) for job in jobs if job.status == "finished" and job.value is not None]
        return sorted(found, key=lambda pair: (sign * pair[0], pair[1].number))


@dataclass(frozen=True)
class Plan:
    """What a sweep is to do, written before its first job begins."""

    command: str  # its name, such as train
    call: str  # the full command line
    swept: tuple[str, ...]  # keys that differ from job to job
    jobs: tuple[tuple[str, ...], ...] = ()  # swept overrides by number; empty for a search
    goal: Goal | None = None  # of a search
    baseline: int | None = None  # number of the job whose values all jobs have in common anyway
    scorable: bool = False  # whether evaluate sweep=jobs can score what the jobs train

    def alone(self, job: Job) -> str:
        """The call that runs by itself, and without the sweep's own settings, what a job ran."""
        program, command, *given = shlex.split(self.call)
        kept = [word for word in given if not self._is_of_sweep(word)]
        own = [override for override in job.overrides if key_and_value(override)[0] in self.swept]
        return shlex.join([program, command, *kept, *own])

    def best(self, jobs: Sequence[Job]) -> tuple[str, str] | None:
        """The best job of a search so far in a sentence, and the call that continues from it."""
        if self.goal is None or not (ranked := self.goal.ranked(jobs)):
            return None
        value, job = ranked[0]
        sentence = f"Best of {len(ranked)}: {job.named(self.swept)}, {self.goal.objective} {value:.5g}"
        return sentence, self.alone(job)

    def _is_of_sweep(self, word: str) -> bool:
        key = key_and_value(word)[0]
        own = key in ("-m", "--multirun", *self.swept, "sweep", "resume", "threads")
        return own or (key.startswith(("hydra.", "hydra/")) and key != "hydra.searchpath")

    def write(self, folder: Path) -> None:
        """Write the plan into the sweep's folder."""
        _write(folder / PLAN_NAME, asdict(self))


def key_and_value(override: str) -> tuple[str, str]:
    """Key without ``+``, and value, of an override."""
    key, _, value = override.lstrip("+").partition("=")
    return key, value


def read_job(folder: str | Path) -> Job | None:
    """The record of a job, ``None`` where there is none; a damaged one is a ``ValueError`` with its field."""
    return _read(Job, Path(folder) / JOB_NAME, folder=folder)


def read_plan(folder: str | Path) -> Plan | None:
    """The plan of a sweep; as :func:`read_job`."""
    return _read(Plan, Path(folder) / PLAN_NAME)


def read_jobs(folder: str | Path) -> list[Job]:
    """All jobs of a sweep by number, waiting ones among them; evaluations of its jobs are another sweep."""
    root = Path(folder)
    files = (file for file in sorted(root.rglob(JOB_NAME)) if root / EVALUATION not in file.parents)
    jobs = [job for file in files if (job := read_job(file.parent)) is not None]
    plan, begun = read_plan(root), {job.number for job in jobs}
    if plan is not None:
        planned = enumerate([()] * plan.goal.trials if plan.goal is not None else plan.jobs)
        waiting = (Job(number, root / str(number), chosen, status="waiting") for number, chosen in planned)
        jobs += [job for job in waiting if job.number not in begun]
    return sorted(jobs, key=lambda job: (job.number, str(job.folder)))


def evaluation_of(folder: str | Path, job: Job) -> Path:
    """The folder of the evaluation of a job's training."""
    return Path(folder) / EVALUATION / job.folder.relative_to(folder)


def swept_keys(folder: str | Path, jobs: Sequence[Job]) -> tuple[str, ...]:
    """Keys that distinguish the jobs of a sweep: those of its plan, or else those that differ."""
    plan = read_plan(folder)
    if plan is not None and plan.swept:
        return plan.swept
    keys = dict.fromkeys(key for job in jobs for key in job.chosen)
    return tuple(key for key in keys if len({job.chosen.get(key) for job in jobs}) > 1)


def _read(kind: type[_Record], file: Path, **more: Any) -> _Record | None:
    try:
        return read_json_as(kind, file, "record of a sweep", **more)
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise ValueError(f"{error}; remove the file to run what it records again") from error


def _write(file: Path, content: Mapping[str, Any]) -> None:
    text = json.dumps(content, indent=2) + "\n"
    write_atomically(file, lambda stream: stream.write(text.encode()))
