"""Jobs of a sweep: what each was to do and how it ended, kept in its own folder."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from fastcomposer.files import write_atomically

Status = Literal["running", "finished", "failed", "stopped", "waiting"]

JOB_NAME = "job.json"
PLAN_NAME = "sweep.json"
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
class Plan:
    """What a sweep is to do, written before its first job begins.

    Attributes:
        command: Name of the command, such as ``train``.
        call: How it was called.
        swept: Keys that differ from job to job.
        jobs: Overrides of every job that are swept, by place; empty for a search, which chooses on the way.
    """

    command: str
    call: str
    swept: tuple[str, ...]
    jobs: tuple[tuple[str, ...], ...] = ()

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
        return Plan(content["command"], content["call"], tuple(content["swept"]), jobs)
    except (KeyError, TypeError):
        return None


def read_jobs(folder: str | Path) -> list[Job]:
    """All jobs of a sweep by number, those that have not begun among them.

    Args:
        folder: Of the sweep.
    """
    root = Path(folder)
    records = (read_job(file.parent) for file in sorted(root.rglob(JOB_NAME)))
    jobs = [job for job in records if job is not None]
    plan = read_plan(root)
    begun = {job.number for job in jobs}
    for number, overrides in enumerate(plan.jobs if plan is not None else ()):
        if number not in begun:
            jobs.append(Job(number, root / str(number), overrides, status="waiting"))
    return sorted(jobs, key=lambda job: (job.number, str(job.folder)))


def swept_keys(folder: str | Path, jobs: Sequence[Job]) -> tuple[str, ...]:
    """Keys that tell the jobs of a sweep apart: those of its plan, or else those that differ."""
    plan = read_plan(folder)
    if plan is not None and plan.swept:
        return plan.swept
    keys = dict.fromkeys(key for job in jobs for key in job.chosen)
    return tuple(key for key in keys if len({job.chosen.get(key) for job in jobs}) > 1)


def _read(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _write(file: Path, content: Mapping[str, Any]) -> None:
    text = json.dumps(content, indent=2) + "\n"
    write_atomically(file, lambda stream: stream.write(text.encode()))
