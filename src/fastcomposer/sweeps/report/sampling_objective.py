"""Objective of a search of sampling settings: one number made from the rows of an evaluation."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fastcomposer.evaluation.load_results import BENCHMARKS, TEXT_ONLY
from fastcomposer.evaluation.results import ResultRow
from fastcomposer.evaluation.statistics import Estimate

if TYPE_CHECKING:
    from fastcomposer.evaluation.methods import Method


def _mean(estimate: Estimate | None) -> float:
    if estimate is None:
        raise ValueError("objective: it is not defined for these images")
    return estimate.mean


MEASURES: dict[str, Callable[[ResultRow], float]] = {
    "identity_x_prompt": lambda row: row.identity_preservation.mean * row.prompt_consistency.mean,
    "identity_preservation": lambda row: row.identity_preservation.mean,
    "prompt_consistency": lambda row: row.prompt_consistency.mean,
    "detection_rate": lambda row: _mean(row.detection_rate),
    "copy_paste": lambda row: _mean(row.copy_paste),
    "seconds_per_image": lambda row: row.seconds_per_image,
}
"""Values of a row; ``identity_x_prompt``: mean identity times mean prompt consistency."""


@dataclass(frozen=True)
class SamplingObjective:
    """What a search optimizes."""

    measure: str  # one of MEASURES, or a further measure
    benchmark: str | None = None  # the mean over all by default

    @classmethod
    def read(cls, text: str, measures: Collection[str] = ()) -> SamplingObjective:
        """Read ``<measure>`` or ``<benchmark>/<measure>``, with the names of further measures."""
        benchmark, _, measure = text.rpartition("/")
        if measure not in (known := [*MEASURES, *measures]):
            raise ValueError(f"objective={text}: no such measure; there is {', '.join(known)}")
        if benchmark and benchmark not in BENCHMARKS:
            raise ValueError(f"objective={text}: no such benchmark; there is {', '.join(BENCHMARKS)}")
        return cls(measure, benchmark or None)

    def chosen(self, methods: Sequence[Method], benchmarks: Collection[str]) -> tuple[str, Mapping[str, Any]]:
        """Name and setting of the only method besides text alone, sampled on the objective's benchmark."""
        if self.benchmark is not None and self.benchmark not in benchmarks:
            there = ", ".join(benchmarks)
            raise ValueError(f"objective={self.benchmark}/{self.measure}: only {there} is sampled")
        found = [(one.name, chosen) for one in methods if one.name != TEXT_ONLY for chosen in one.settings]
        if len(found) != 1:
            raise ValueError(
                f"objective: a job is scored by one method besides {TEXT_ONLY} at one alpha, not by "
                f"{len(found)}: change methods or alphas"
            )
        return found[0]

    def value(self, rows: Sequence[ResultRow], method: str, settings: Mapping[str, Any]) -> float:
        """The mean over the rows of a method under some settings."""
        values = [
            MEASURES[self.measure](row) if self.measure in MEASURES else row.measures[self.measure].mean
            for row in rows
            if (row.method, dict(row.settings)) == (method, dict(settings))
            and self.benchmark in (None, row.benchmark)
        ]
        if not values:
            raise ValueError(f"objective: {method} was measured on none of its benchmarks")
        return sum(values) / len(values)
