"""Jobs of a sweep: what each was to do and how it ended, kept in its own folder."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from fastcomposer.utils.files import write_atomically

Status = Literal["running", "finished", "failed", "stopped", "waiting"]

JOB_NAME = "job.json"
PLAN_NAME = "sweep.json"
EVALUATION = "evaluation"
"""Where in the folder of a sweep the evaluations of what its jobs have trained are: a sweep of its own."""
TRACE_NAME = "error.log"
"""Where the trace of a failed job is."""


@dataclass(frozen=True)
class Job:
    """One job of a sweep.

    Attributes:
        number: Its place in the sweep, from 0.
        folder: Where it writes.
        overrides: What the sweep has set for it on the command line, but for ``resume``.
        settings: Its whole configuration; plain values.
        status: How it ended; ``running`` where it has not said so, ``waiting`` where it has not begun.
        reason: Why it did not finish.
        seconds: How long it took, of its last call.
        value: What it measured, for a search.
    """

    number: int
    folder: Path
    overrides: tuple[str, ...]
    settings: Mapping[str, Any] = field(default_factory=dict)
    status: Status = "running"
    reason: str = ""
    seconds: float = 0.0
    value: float | None = None

    @property
    def chosen(self) -> dict[str, str]:
        """The overrides by key, each value as it was written."""
        pairs = (text.lstrip("+").partition("=") for text in self.overrides)
        return {key: value for key, _, value in pairs}

    def named(self, keys: Sequence[str]) -> str:
        """Number and chosen values of some keys, in a line."""
        chosen = self.chosen
        said = " ".join(f"{key}={chosen[key]}" for key in keys if key in chosen)
        return f"job {self.number}" + f" ({said})" * bool(said)

    @property
    def log(self) -> Path | None:
        """Where to read why it failed."""
        file = self.folder / TRACE_NAME
        return file if file.is_file() else None

    def ended(self, status: Status, **facts: Any) -> Job:
        """The same job with what is known at its end."""
        return replace(self, status=status, **facts)

    def write(self) -> None:
        """Keep the record in the job's folder."""
        content = {name: value for name, value in asdict(self).items() if name != "folder"}
        _write(self.folder / JOB_NAME, content)


@dataclass(frozen=True)
class Goal:
    """What a search is for.

    Attributes:
        objective: What each of its jobs measures.
        direction: Which values of it are better.
        trials: How many jobs there are to be.
        ranges: What each key is chosen from, as it was written.
        common: Configuration that the jobs share; plain values.
    """

    objective: str
    direction: Literal["minimize", "maximize"]
    trials: int
    ranges: Mapping[str, str]
    common: Mapping[str, Any] = field(default_factory=dict)

    def ranked(self, jobs: Sequence[Job]) -> list[tuple[float, Job]]:
        """Jobs that have finished with what they measured, the best first, of equals the earliest."""
        sign = 1 if self.direction == "minimize" else -1
        found = [(job.value, job) for job in jobs if job.status == "finished" and job.value is not None]
        return sorted(found, key=lambda pair: (sign * pair[0], pair[1].number))


@dataclass(frozen=True)
class Plan:
    """What a sweep is to do, written before its first job begins.

    Attributes:
        command: Name of the command, such as ``train``.
        call: How it was called.
        swept: Keys that differ from job to job.
        jobs: Overrides of every job that are swept, by place; empty for a search, which chooses on the way.
        goal: Of a search; ``None`` for a grid.
        baseline: Place of the job that changes nothing of what all have in common, where there is one.
        scorable: Whether the jobs train weights that ``evaluate sweep=jobs`` can score.
    """

    command: str
    call: str
    swept: tuple[str, ...]
    jobs: tuple[tuple[str, ...], ...] = ()
    goal: Goal | None = None
    baseline: int | None = None
    scorable: bool = False

    def alone(self, job: Job) -> str:
        """The call that does by itself, and without the sweep's own settings, what a job was chosen to do."""
        program, given = (words := shlex.split(self.call))[:2], words[2:]  # fastcomposer and the subcommand
        kept = [word for word in given if not self._is_of_sweep(word)]
        chosen = [text for text in job.overrides if _key(text) in self.swept]
        return shlex.join([*program, *kept, *chosen])

    def best(self, jobs: Sequence[Job]) -> tuple[str, str] | None:
        """What a search has found so far in a sentence, and the call that goes on from it."""
        if self.goal is None or not (ranked := self.goal.ranked(jobs)):
            return None
        value, job = ranked[0]
        said = f"Best of {len(ranked)}: {job.named(self.swept)}, {self.goal.objective} {value:.5g}"
        return said, self.alone(job)

    def _is_of_sweep(self, word: str) -> bool:
        if word in ("-m", "--multirun"):
            return True
        key = _key(word) if "=" in word else ""
        ours = key in (*self.swept, "sweep", "resume", "threads")
        return ours or (key.startswith(("hydra.", "hydra/")) and key != "hydra.searchpath")

    def write(self, folder: Path) -> None:
        """Keep the plan in the sweep's folder."""
        _write(folder / PLAN_NAME, asdict(self))


def read_job(folder: str | Path) -> Job | None:
    """The record of a job; ``None`` where there is none or it is damaged."""
    content = _read(Path(folder) / JOB_NAME)
    try:
        content["overrides"] = tuple(content["overrides"])
        return Job(folder=Path(folder), **content)
    except (KeyError, TypeError):
        return None


def read_plan(folder: str | Path) -> Plan | None:
    """The plan of a sweep; ``None`` where there is none or it is damaged."""
    content = _read(Path(folder) / PLAN_NAME)
    try:
        jobs = tuple(tuple(overrides) for overrides in content["jobs"])
        goal = Goal(**content["goal"]) if content.get("goal") else None
        further = {name: content[name] for name in ("baseline", "scorable") if name in content}
        swept = tuple(content["swept"])
        return Plan(content["command"], content["call"], swept, jobs, goal, **further)
    except (KeyError, TypeError):
        return None


def read_jobs(folder: str | Path) -> list[Job]:
    """All jobs of a sweep by number, those that have not begun among them.

    Args:
        folder: Of the sweep; evaluations of its jobs are jobs of another.
    """
    root = Path(folder)
    files = (file for file in sorted(root.rglob(JOB_NAME)) if root / EVALUATION not in file.parents)
    records = (read_job(file.parent) for file in files)
    jobs = [job for job in records if job is not None]
    plan = read_plan(root)
    begun = {job.number for job in jobs}
    planned: Sequence[tuple[str, ...]] = () if plan is None else plan.jobs
    if plan is not None and plan.goal is not None:
        planned = [()] * plan.goal.trials
    for number, overrides in enumerate(planned):
        if number not in begun:
            jobs.append(Job(number, root / str(number), overrides, status="waiting"))
    return sorted(jobs, key=lambda job: (job.number, str(job.folder)))


def evaluation_of(folder: str | Path, job: Job) -> Path:
    """Where in the folder of a sweep the evaluation of what a job has trained is."""
    return Path(folder) / EVALUATION / job.folder.relative_to(folder)


def swept_keys(folder: str | Path, jobs: Sequence[Job]) -> tuple[str, ...]:
    """Keys that tell the jobs of a sweep apart: those of its plan, or else those that differ."""
    plan = read_plan(folder)
    if plan is not None and plan.swept:
        return plan.swept
    keys = dict.fromkeys(key for job in jobs for key in job.chosen)
    return tuple(key for key in keys if len({job.chosen.get(key) for job in jobs}) > 1)


def _key(override: str) -> str:
    return override.partition("=")[0].lstrip("+")


def _read(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _write(file: Path, content: Mapping[str, Any]) -> None:
    text = json.dumps(content, indent=2) + "\n"
    write_atomically(file, lambda stream: stream.write(text.encode()))
