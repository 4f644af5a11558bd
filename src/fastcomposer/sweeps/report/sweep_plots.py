"""Plots of a sweep: a figure against what was swept."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator

from fastcomposer.evaluation.report.plots import COLOURS, MARKERS, bars, figure
from fastcomposer.evaluation.statistics import Estimate

Series = Mapping[str, Mapping[tuple[str, ...], Estimate]]
"""What is measured, by name of the series and swept values."""
_WIDE = 30.0  # how many times the smallest value the largest is, from where on an axis is logarithmic
_LABEL = 30  # letters in a line


def sweep_plot(series: Series, keys: Sequence[str], measure: str, name: str, *, zero: bool = False) -> str:
    """Draw a figure: against one number as a line, by choice as dots, of two keys as a map.

    Args:
        series: At least one, not empty.
        keys: What was swept, in the order of the values.
        measure: What was measured.
        name: What tells the plot from others on the page.
        zero: Whether to mark 0, from which differences are.

    Returns:
        An ``<svg>`` element.
    """
    values = _values(series)
    if is_map(series, keys):
        return _map(next(iter(series.values())), keys, measure, name)
    if len(keys) == 1 and len(values) > 1 and all(_is_number(value[0]) for value in values):
        return _lines(series, keys[0], measure, name, zero)
    return _dots(series, values, measure, name, zero)


def is_map(series: Series, keys: Sequence[str]) -> bool:
    """Whether the plot is a map, which has no room for intervals."""
    values = _values(series)
    return (
        len(keys) == 2 and len(series) == 1 and all(len({value[i] for value in values}) > 1 for i in (0, 1))
    )


def _values(series: Series) -> list[tuple[str, ...]]:
    return list(dict.fromkeys(value for found in series.values() for value in found))


def _lines(series: Series, key: str, measure: str, name: str, zero: bool) -> str:
    numbers = sorted({float(value[0]) for found in series.values() for value in found})
    positive = [number for number in numbers if number > 0]
    wide = len(positive) > 1 and positive[-1] / positive[0] >= _WIDE
    even = wide and numbers[0] <= 0  # neither a plain axis nor a logarithmic one shows them all

    def draw(axes: Axes) -> None:
        for place, (label, found) in enumerate(series.items()):
            points = sorted((float(value[0]), estimate) for value, estimate in found.items())
            xs = [float(numbers.index(x)) if even else x for x, _ in points]
            estimates = [estimate for _, estimate in points]
            colour = COLOURS[f"series-{place % 6 + 1}"]
            axes.errorbar(
                xs,
                [estimate.mean for estimate in estimates],
                yerr=bars(estimates),
                color=colour,
                marker=MARKERS[place % 6],
                markersize=4.5,
                linewidth=1.3,
                elinewidth=0.9,
                capsize=2,
                label=label,
            )
        if wide and not even:
            axes.set_xscale("log")
        ticks = [float(place) for place in range(len(numbers))] if even else numbers
        axes.set_xticks(ticks, [f"{number:g}" for number in numbers], minor=False)
        axes.xaxis.minorticks_off()
        if zero:
            axes.axhline(0.0, color=COLOURS["ink"], linewidth=0.9)
        _finish(axes, series, x=key, y=measure)

    return figure(name, 2.9 + _legend_height(series), draw)


def _dots(series: Series, values: Sequence[tuple[str, ...]], measure: str, name: str, zero: bool) -> str:
    step = 0.7 / len(series)

    def draw(axes: Axes) -> None:
        for place, (label, found) in enumerate(series.items()):
            colour = COLOURS[f"series-{place % 6 + 1}"]
            axes.errorbar(
                [estimate.mean for estimate in found.values()],
                [values.index(value) - 0.35 + (place + 0.5) * step for value in found],
                xerr=bars(list(found.values())),
                fmt=MARKERS[place % 6],
                color=colour,
                markersize=5,
                elinewidth=1.0,
                capsize=2,
                label=label,
            )
        for border in range(1, len(values)):
            axes.axhline(border - 0.5, color=COLOURS["rule"], linewidth=0.8)
        labels = [textwrap.fill(", ".join(value), _LABEL) for value in values]
        axes.set_yticks(range(len(values)), labels)
        axes.set_ylim(len(values) - 0.5, -0.5)
        axes.tick_params(axis="y", length=0)
        axes.margins(x=0.1)
        axes.xaxis.set_major_locator(MaxNLocator(5))
        if zero:
            axes.axvline(0.0, color=COLOURS["ink"], linewidth=0.9)
        _finish(axes, series, x=measure, y="")

    rows = sum(max(len(series), 1 + len(", ".join(value)) // _LABEL) for value in values)
    return figure(name, 0.9 + 0.26 * max(rows, 3) + _legend_height(series), draw)


def _map(found: Mapping[tuple[str, ...], Estimate], keys: Sequence[str], measure: str, name: str) -> str:
    rows, columns = (_ordered({value[place] for value in found}) for place in (0, 1))
    means = [estimate.mean for estimate in found.values()]
    low, reach = min(means), max(means) - min(means) or 1.0

    def draw(axes: Axes) -> None:
        for (row, column), estimate in found.items():
            x, y = columns.index(column), rows.index(row)
            strength = 0.08 + 0.5 * (estimate.mean - low) / reach  # the figure stays legible on it
            tile = Rectangle((x - 0.48, y - 0.47), 0.96, 0.94, facecolor=COLOURS["series-1"], alpha=strength)
            axes.add_patch(tile)
            axes.annotate(f"{estimate.mean:.3g}", (x, y), ha="center", va="center", color=COLOURS["ink"])
        axes.set_xlim(-0.5, len(columns) - 0.5)
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.set_xticks(range(len(columns)), [textwrap.fill(text, 14) for text in columns])
        axes.set_yticks(range(len(rows)), [textwrap.fill(text, 14) for text in rows])
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
        axes.set_xlabel(keys[1])
        axes.set_ylabel(keys[0])
        axes.set_title(measure, fontsize=9.5, loc="left", color=COLOURS["ink"])

    return figure(name, 1.1 + 0.45 * len(rows), draw)


def _finish(axes: Axes, series: Series, x: str, y: str) -> None:
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.grid(color=COLOURS["rule"], linewidth=0.6, axis="both" if y else "x")
    if len(series) > 1:
        axes.legend(ncols=2, loc="lower left", bbox_to_anchor=(0.0, 1.0), frameon=False, borderaxespad=0.2)


def _legend_height(series: Series) -> float:
    return 0.2 * ((len(series) + 1) // 2) if len(series) > 1 else 0.0


def _ordered(values: set[str]) -> list[str]:
    numbers = all(_is_number(value) for value in values)
    return sorted(values, key=(lambda value: (float(value), "")) if numbers else (lambda value: (0.0, value)))


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False
