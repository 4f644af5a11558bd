"""The verdict of a soak, as tables."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import pandas as pd
from soak_course import Entry

_COUNTED = ["lost", "repeated", "different", "wrong"]


@dataclass(frozen=True)
class Verdict:
    """Outcome of a soak."""

    seed: int
    asked: int  # number of faults that were planned
    seconds: float
    entries: Sequence[Entry]  # one of each call

    @property
    def passed(self) -> bool:
        """Whether all faults landed and nothing was lost, repeated, different or otherwise wrong."""
        landed = sum(entry.landed for entry in self.entries)
        return landed >= self.asked and all(entry.clean for entry in self.entries)

    def text(self) -> str:
        """Landed faults by job, work by job, the complaints, and the verdict on a line."""
        calls = pd.DataFrame([asdict(entry) for entry in self.entries])
        complaints = [
            f"{entry.job}, {entry.fault}: {kind}: {what}"
            for entry in self.entries
            for kind in _COUNTED
            for what in getattr(entry, kind)
        ]
        calls[_COUNTED] = calls[_COUNTED].map(len)
        landed = calls[calls.landed]
        faults = pd.crosstab(landed.fault, landed.job, margins=True, margins_name="all").to_string()
        calls["calls"], calls["resumed"] = 1, calls.resumed_from > 0
        columns = ["calls", "landed", "resumed", *_COUNTED, "seconds"]
        work = calls.groupby("job", sort=False)[columns].sum().round().astype(int).to_string()
        counts = ", ".join(f"{count} {name}" for name, count in calls[_COUNTED].sum().items())
        result = f"{'passed' if self.passed else 'FAILED'} with seed {self.seed}"
        ending = (
            f"{result}: {len(landed)} of {self.asked} faults in {self.seconds / 60:.1f} minutes, {counts}"
        )
        return "\n".join([faults, "", work, "", *complaints, ending])
