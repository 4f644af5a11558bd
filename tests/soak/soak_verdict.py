"""The verdict of a soak: a table to read, and every call for programs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from soak_course import Entry
from soak_jobs import Job

_SHOWN = 20
_COUNTED = ("lost", "repeated", "different", "wrong")


@dataclass(frozen=True)
class Verdict:
    """What a soak came to.

    Attributes:
        seed: Of faults and moments.
        asked: How many faults it was to be.
        seconds: From the first call to the last.
        jobs: The jobs.
        entries: Every call.
    """

    seed: int
    asked: int
    seconds: float
    jobs: tuple[Job, ...]
    entries: Sequence[Entry]

    @property
    def landed(self) -> int:
        """How many faults came upon a job that was at work."""
        return sum(entry.landed for entry in self.entries)

    @property
    def passed(self) -> bool:
        """Whether all faults landed and nothing was lost, repeated, different or otherwise wrong."""
        return self.landed >= self.asked and all(entry.clean for entry in self.entries)

    def sentence(self) -> str:
        """In a line."""
        counts = {name: sum(len(getattr(entry, name)) for entry in self.entries) for name in _COUNTED}
        said = ", ".join(f"{count} {name}" for name, count in counts.items())
        result = "passed" if self.passed else "FAILED"
        return f"{result}: {self.landed} of {self.asked} faults in {self.seconds / 60:.1f} minutes, {said}"

    def show(self, console: Console) -> None:
        """Print the tables."""
        console.print(self._faults(), self._work(), sep="\n")
        complaints = [
            f"{entry.job}, {entry.fault}: {kind}: {what}"
            for entry in self.entries
            for kind in _COUNTED
            for what in getattr(entry, kind)
        ]
        for line in complaints[:_SHOWN]:
            console.print(line, markup=False)
        if len(complaints) > _SHOWN:
            console.print(f"and {len(complaints) - _SHOWN} more, in the JSON")
        console.print(f"seed {self.seed}\n{self.sentence()}")

    def _faults(self) -> Table:
        table = Table("fault", *(job.name for job in self.jobs), "all", title="faults that landed")
        for kind in dict.fromkeys(kind for job in self.jobs for kind in job.faults):
            counts = [self._of(job, kind) if kind in job.faults else None for job in self.jobs]
            shown = ("" if count is None else str(count) for count in counts)
            table.add_row(kind, *shown, str(sum(count or 0 for count in counts)))
        table.add_section()
        counts = [self._of(job) for job in self.jobs]
        table.add_row("all", *map(str, counts), str(sum(counts)))
        return table

    def _of(self, job: Job, kind: str | None = None) -> int:
        return sum(e.landed for e in self.entries if e.job == job.name and kind in (None, e.fault))

    def _work(self) -> Table:
        columns = ("calls", "done", "resumed", "resumed from", "missed", *_COUNTED, "seconds", "processor")
        table = Table("job", *columns, title="what became of the work")
        for job in self.jobs:
            table.add_row(job.name, *self._row(job, [e for e in self.entries if e.job == job.name]))
        return table

    @staticmethod
    def _row(job: Job, entries: list[Entry]) -> list[str]:
        resumed = [entry.resumed_from for entry in entries if entry.resumed_from]
        span = f"{min(resumed)}–{max(resumed)} {job.unit}" if resumed else ""
        missed = sum(entry.fault != "none" and not entry.landed for entry in entries)
        counts = [sum(len(getattr(entry, name)) for entry in entries) for name in _COUNTED]
        return [
            str(len(entries)),
            str(sum(entry.status == 0 for entry in entries)),
            *(str(len(resumed)), span, str(missed)),
            *map(str, counts),
            f"{sum(entry.seconds for entry in entries):.0f}",
            f"{sum(entry.processor_seconds for entry in entries):.0f}",
        ]

    def write(self, folder: Path) -> None:
        """Write ``verdict.txt`` and ``verdict.json``."""
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / "verdict.txt").open("w") as file:
            self.show(Console(file=file, width=130))
        content: dict[str, Any] = {
            "passed": self.passed,
            "sentence": self.sentence(),
            "seed": self.seed,
            "asked": self.asked,
            "landed": self.landed,
            "seconds": round(self.seconds, 1),
            "calls": [entry.as_dict() for entry in self.entries],
        }
        (folder / "verdict.json").write_text(json.dumps(content, indent=1) + "\n")
