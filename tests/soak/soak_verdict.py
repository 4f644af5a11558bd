"""The verdict of a soak: tables to read, and every call for programs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from soak_course import Entry

_SHOWN = 20
_COUNTED = ["lost", "repeated", "different", "wrong"]


@dataclass(frozen=True)
class Verdict:
    """Outcome of a soak."""

    seed: int
    asked: int  # number of faults that were planned
    seconds: float
    entries: Sequence[Entry]  # one of each call

    @property
    def landed(self) -> int:
        """Number of faults that hit a job at work."""
        return sum(entry.landed for entry in self.entries)

    @property
    def passed(self) -> bool:
        """Whether all faults landed and nothing was lost, repeated, different or otherwise wrong."""
        return self.landed >= self.asked and all(entry.clean for entry in self.entries)

    def sentence(self) -> str:
        """The verdict on a line."""
        counts = {name: sum(len(getattr(entry, name)) for entry in self.entries) for name in _COUNTED}
        text = ", ".join(f"{count} {name}" for name, count in counts.items())
        result = "passed" if self.passed else "FAILED"
        return f"{result}: {self.landed} of {self.asked} faults in {self.seconds / 60:.1f} minutes, {text}"

    def text(self) -> str:
        """Landed faults by job, work by job, the first complaints, and the sentence."""
        calls = pd.DataFrame([entry.as_dict() for entry in self.entries])
        calls[_COUNTED] = calls[_COUNTED].map(len)
        landed = calls[calls.landed]
        calls = calls.assign(
            calls=1,
            done=calls.status == 0,
            resumed=calls.resumed_from > 0,
            missed=(calls.fault != "none") & ~calls.landed,
        )
        columns = ["calls", "done", "resumed", "missed", *_COUNTED, "seconds", "processor_seconds"]
        work = calls.groupby("job", sort=False)[columns].sum().round().astype(int)
        complaints = [
            f"{entry.job}, {entry.fault}: {kind}: {what}"
            for entry in self.entries
            for kind in _COUNTED
            for what in getattr(entry, kind)
        ]
        more = [f"and {len(complaints) - _SHOWN} more, in the JSON"] * (len(complaints) > _SHOWN)
        faults = pd.crosstab(landed.fault, landed.job, margins=True, margins_name="all").to_string()
        ending = [f"seed {self.seed}", self.sentence()]
        return "\n".join([faults, "", work.to_string(), "", *complaints[:_SHOWN], *more, *ending])

    def write(self, folder: Path) -> None:
        """Write ``verdict.txt`` and ``verdict.json``."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "verdict.txt").write_text(self.text() + "\n")
        content = {
            "passed": self.passed,
            "sentence": self.sentence(),
            "seed": self.seed,
            "asked": self.asked,
            "landed": self.landed,
            "seconds": round(self.seconds, 1),
            "calls": [entry.as_dict() for entry in self.entries],
        }
        (folder / "verdict.json").write_text(json.dumps(content, indent=1) + "\n")
