"""Plots of a sweep: a figure against what was swept."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.axes import Axes
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator

from fastcomposer.evaluation.report.plots import COLOURS, MARKERS, bars, figure
from fastcomposer.evaluation.statistics import Estimate

Series = Mapping[str, Mapping[tuple[str, ...], Estimate]]
"""Estimates by name of the series and swept values."""
_WIDE = 30.0  # how many times the smallest value the largest is, from where on an axis is logarithmic
_LABEL = 30  # letters in a line


@dataclass(frozen=True)
class SweepPlot:
    """A figure against one number as a line, against choices as dots, against two keys as a map."""

    series: Series  # at least one, not empty
    keys: Sequence[str]  # swept, in the order of the values
    measure: str
    name: str  # unique on the page
    zero: bool = False  # whether to mark 0, which differences are from

    @property
    def values(self) -> list[tuple[str, ...]]:
        """Swept values of all series."""
        return list(dict.fromkeys(value for found in self.series.values() for value in found))

    @property
    def is_map(self) -> bool:
        """Whether the plot is a map, which has no room for intervals."""
        both_vary = all(len({value[i] for value in self.values}) > 1 for i in range(len(self.keys)))
        return len(self.keys) == 2 and len(self.series) == 1 and both_vary

    def svg(self) -> str:
        """An ``<svg>`` element."""
        if self.is_map:
            return self._map()
        numeric = len(self.keys) == 1 and all(as_number(value[0]) is not None for value in self.values)
        return self._lines() if numeric and len(self.values) > 1 else self._dots()

    def _lines(self) -> str:
        numbers = sorted({float(value[0]) for value in self.values})
        positive = [number for number in numbers if number > 0]
        wide = len(positive) > 1 and positive[-1] / positive[0] >= _WIDE
        even = wide and numbers[0] <= 0  # neither a plain axis nor a logarithmic one shows them all

        def draw(axes: Axes) -> None:
            for number, (label, found) in enumerate(self.series.items()):
                xs, estimates = zip(*sorted((float(v[0]), e) for v, e in found.items()), strict=True)
                at = [numbers.index(x) for x in xs] if even else xs
                style = _style(number, label, markersize=4.5, linewidth=1.3, elinewidth=0.9)
                axes.errorbar(at, [one.mean for one in estimates], yerr=bars(estimates), **style)
            if wide and not even:
                axes.set_xscale("log")
            ticks = range(len(numbers)) if even else numbers
            axes.set_xticks(ticks, [f"{number:g}" for number in numbers], minor=False)
            axes.xaxis.minorticks_off()
            if self.zero:
                axes.axhline(0.0, color=COLOURS["ink"], linewidth=0.9)
            self._finish(axes, x=self.keys[0], y=self.measure)

        return figure(self.name, 2.9 + self._legend_height, draw)

    def _dots(self) -> str:
        step, values = 0.7 / len(self.series), self.values

        def draw(axes: Axes) -> None:
            for number, (label, found) in enumerate(self.series.items()):
                ys = [values.index(value) - 0.35 + (number + 0.5) * step for value in found]
                style = _style(number, label, linestyle="", markersize=5, elinewidth=1.0)
                axes.errorbar([one.mean for one in found.values()], ys, xerr=bars([*found.values()]), **style)
            for border in range(1, len(values)):
                axes.axhline(border - 0.5, color=COLOURS["rule"], linewidth=0.8)
            labels = [textwrap.fill(", ".join(value), _LABEL) for value in values]
            axes.set_yticks(range(len(values)), labels)
            axes.set_ylim(len(values) - 0.5, -0.5)
            axes.tick_params(axis="y", length=0)
            axes.margins(x=0.1)
            axes.xaxis.set_major_locator(MaxNLocator(5))
            if self.zero:
                axes.axvline(0.0, color=COLOURS["ink"], linewidth=0.9)
            self._finish(axes, x=self.measure, y="")

        rows = sum(max(len(self.series), 1 + len(", ".join(value)) // _LABEL) for value in values)
        return figure(self.name, 0.9 + 0.26 * max(rows, 3) + self._legend_height, draw)

    def _map(self) -> str:
        (found,) = self.series.values()
        rows, columns = (_ordered({value[i] for value in found}) for i in (0, 1))
        means = [estimate.mean for estimate in found.values()]
        low, reach = min(means), max(means) - min(means) or 1.0

        def draw(axes: Axes) -> None:
            for (row, column), estimate in found.items():
                x, y = columns.index(column), rows.index(row)
                strength = 0.08 + 0.5 * (estimate.mean - low) / reach  # the figure stays legible on it
                corner = (x - 0.48, y - 0.47)
                axes.add_patch(Rectangle(corner, 0.96, 0.94, facecolor=COLOURS["series-1"], alpha=strength))
                axes.annotate(f"{estimate.mean:.3g}", (x, y), ha="center", va="center", color=COLOURS["ink"])
            axes.set_xlim(-0.5, len(columns) - 0.5)
            axes.set_ylim(len(rows) - 0.5, -0.5)
            axes.set_xticks(range(len(columns)), [textwrap.fill(text, 14) for text in columns])
            axes.set_yticks(range(len(rows)), [textwrap.fill(text, 14) for text in rows])
            axes.tick_params(length=0)
            axes.spines[:].set_visible(False)
            axes.set_xlabel(self.keys[1])
            axes.set_ylabel(self.keys[0])
            axes.set_title(self.measure, fontsize=9.5, loc="left", color=COLOURS["ink"])

        return figure(self.name, 1.1 + 0.45 * len(rows), draw)

    def _finish(self, axes: Axes, x: str, y: str) -> None:
        axes.set_xlabel(x)
        axes.set_ylabel(y)
        axes.grid(color=COLOURS["rule"], linewidth=0.6, axis="both" if y else "x")
        if len(self.series) > 1:
            above: dict[str, Any] = {"bbox_to_anchor": (0.0, 1.0), "borderaxespad": 0.2}
            axes.legend(ncols=2, loc="lower left", frameon=False, **above)

    @property
    def _legend_height(self) -> float:
        return 0.2 * ((len(self.series) + 1) // 2) if len(self.series) > 1 else 0.0


def _style(number: int, label: str, **more: Any) -> dict[str, Any]:
    colour, marker = COLOURS[f"series-{number % 6 + 1}"], MARKERS[number % 6]
    return {"color": colour, "marker": marker, "capsize": 2, "label": label, **more}


def as_number(text: str) -> float | None:
    """The finite number that a text is; ``None`` for any other text."""
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def _ordered(values: set[str]) -> list[str]:
    numbers = {value: as_number(value) for value in values}
    return sorted(values) if None in numbers.values() else sorted(values, key=lambda v: numbers[v] or 0.0)
