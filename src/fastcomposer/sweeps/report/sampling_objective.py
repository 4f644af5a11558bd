"""What a search of drawing goes by: one number made from the rows of an evaluation."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from fastcomposer.evaluation.load_results import BENCHMARKS, TEXT_ONLY
from fastcomposer.evaluation.results import ResultRow
from fastcomposer.evaluation.statistics import Estimate


class _Measured(Protocol):
    """A method whose rows are there; see :class:`~fastcomposer.evaluation.methods.Method`."""

    name: str
    settings: tuple[Mapping[str, Any], ...]


def _product(row: ResultRow) -> float:
    return row.identity_preservation.mean * row.prompt_consistency.mean


def _mean(estimate: Estimate | None) -> float:
    if estimate is None:
        raise ValueError("objective: it is not defined for these images")
    return estimate.mean


MEASURES: dict[str, Callable[[ResultRow], float]] = {
    "identity_x_prompt": _product,
    "identity_preservation": lambda row: row.identity_preservation.mean,
    "prompt_consistency": lambda row: row.prompt_consistency.mean,
    "detection_rate": lambda row: _mean(row.detection_rate),
    "copy_paste": lambda row: _mean(row.copy_paste),
    "seconds_per_image": lambda row: row.seconds_per_image,
}
"""What a row can be worth; ``identity_x_prompt``: mean identity times mean prompt consistency."""


@dataclass(frozen=True)
class Objective:
    """What a search goes by.

    Attributes:
        measure: One of :data:`MEASURES`, or a measure of one's own.
        benchmark: Whose row it is of; ``None`` for the mean over all benchmarks.
    """

    measure: str
    benchmark: str | None = None

    @classmethod
    def read(cls, text: str, measures: Collection[str] = ()) -> Objective:
        """Read ``<measure>`` or ``<benchmark>/<measure>``.

        Args:
            text: What was asked for.
            measures: Names of further measures.

        Raises:
            ValueError: If there is no such measure or benchmark, with those there are.
        """
        benchmark, _, measure = text.rpartition("/")
        if measure not in (known := [*MEASURES, *measures]):
            raise ValueError(f"objective={text}: no such measure; there is {', '.join(known)}")
        if benchmark and benchmark not in BENCHMARKS:
            raise ValueError(f"objective={text}: no such benchmark; there is {', '.join(BENCHMARKS)}")
        return cls(measure, benchmark or None)

    def chosen(
        self, methods: Sequence[_Measured], benchmarks: Collection[str]
    ) -> tuple[str, Mapping[str, Any]]:
        """Name and setting of the method that is judged.

        Args:
            methods: Those that draw.
            benchmarks: Names of those that are drawn.

        Raises:
            ValueError: If there are several beside text alone, or it does not draw the objective's benchmark.
        """
        if self.benchmark is not None and self.benchmark not in benchmarks:
            there = ", ".join(benchmarks)
            raise ValueError(f"objective={self.benchmark}/{self.measure}: only {there} is drawn")
        found = [(one.name, chosen) for one in methods if one.name != TEXT_ONLY for chosen in one.settings]
        if len(found) != 1:
            raise ValueError(
                f"objective: a job is judged by one method besides {TEXT_ONLY} at one alpha, not by "
                f"{len(found)}: change methods or alphas"
            )
        return found[0]

    def value(self, rows: Sequence[ResultRow], method: str, settings: Mapping[str, Any]) -> float:
        """What a job is worth.

        Args:
            rows: All that were measured.
            method: Whose rows count.
            settings: Under which settings.

        Raises:
            ValueError: If it is in no row.
        """
        ours = [row for row in rows if row.method == method and dict(row.settings) == dict(settings)]
        values = [
            MEASURES[self.measure](row) if self.measure in MEASURES else row.measures[self.measure].mean
            for row in ours
            if self.benchmark in (None, row.benchmark)
        ]
        if not values:
            raise ValueError(f"objective: {method} was measured on none of its benchmarks")
        return sum(values) / len(values)
