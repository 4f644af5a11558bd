"""Trials of a search: their table and their plots."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from itertools import accumulate

from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.ticker import FormatStrFormatter, LogLocator, MaxNLocator, NullFormatter

from fastcomposer.evaluation.report.html import Plot
from fastcomposer.evaluation.report.plots import COLOURS, figure
from fastcomposer.evaluation.report.tables import Column, Table, make_frame
from fastcomposer.sweeps.jobs import Goal, Job
from fastcomposer.sweeps.report.measured import short
from fastcomposer.sweeps.report.sweep_plots import as_number

_HEIGHT = 2.6  # inches
_LETTERS = 48  # that fit below an axis
_SHORTEST = 5  # letters that a name is broken after


def trial_table(goal: Goal, jobs: Sequence[Job]) -> Table:
    """All trials with an objective, the best first."""
    ranked = goal.ranked(jobs)
    numeric = [key for key in goal.ranges if all(as_number(job.chosen[key]) is not None for _, job in ranked)]
    lines: list[tuple[str, tuple[float | None, ...]]] = []
    for value, job in ranked:
        texts = ", ".join(f"{short(key)} {job.chosen[key]}" for key in goal.ranges if key not in numeric)
        label = ": ".join(filter(None, (f"job {job.number}", texts)))
        cells = (value, *(as_number(job.chosen[key]) for key in numeric), job.seconds)
        lines.append((label + " (best)" * (not lines), cells))
    columns = (
        Column(goal.objective, "number"),
        *(Column(short(key), "number") for key in numeric),
        Column("seconds", "seconds"),
    )
    failed = sum(job.status == "failed" for job in jobs)
    notes = [f"Best is the {'lowest' if goal.direction == 'minimize' else 'highest'} {goal.objective}."]
    notes += [f"{failed} of {len(ranked) + failed} trials failed and are not in the table."] * bool(failed)
    frame = make_frame("trial", columns, lines)
    return Table("trials", "Trials, the best first", frame, tuple(notes), strong=[lines[0][0]])


def trial_plots(goal: Goal, jobs: Sequence[Job]) -> list[Plot]:
    """The objective over the trials, and against each searched key; nothing without two trials."""
    ranked = goal.ranked(jobs)
    if len(ranked) < 2:
        return []
    course = [(str(job.number), value) for value, job in sorted(ranked, key=lambda pair: pair[1].number)]
    plots = [_plot(goal, "course", "trial", f"{goal.objective} over the trials", course)]
    for number, key in enumerate(goal.ranges):
        points = [(job.chosen[key], value) for value, job in ranked if key in job.chosen]
        plots.append(_plot(goal, f"key-{number}", key, f"{goal.objective} against {key}", points))
    return plots


def _plot(goal: Goal, name: str, key: str, title: str, points: Sequence[tuple[str, float]]) -> Plot:
    texts, values = zip(*points, strict=True)
    better = min if goal.direction == "minimize" else max
    numbers = [number for text in texts if (number := as_number(text)) is not None]
    names = sorted(set(texts))
    xs = numbers if len(numbers) == len(texts) else [float(names.index(text)) for text in texts]

    def draw(axes: Axes) -> None:
        if key not in goal.ranges:  # over the trials
            so_far, colour = [*accumulate(values, better)], COLOURS["series-2"]
            axes.step(xs, so_far, where="post", color=colour, linewidth=1.3, label="best so far")
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
            axes.legend(frameon=False, loc="lower left", bbox_to_anchor=(0.0, 1.0), borderaxespad=0.2)
        elif xs is not numbers:
            width = max(_LETTERS // len(names), _SHORTEST)
            axes.set_xticks(range(len(names)), [textwrap.fill(name, width) for name in names])
            axes.set_xlim(-0.5, len(names) - 0.5)
        elif "log" in goal.ranges[key]:
            axes.set_xscale("log")
            axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0), numticks=8))
            axes.xaxis.set_major_formatter(FormatStrFormatter("%g"))
            axes.xaxis.set_minor_formatter(NullFormatter())
        best = values.index(better(values))
        axes.plot(xs, values, "o", color=COLOURS["series-1"], markersize=4.5)
        at = [xs[best]], [values[best]]
        axes.plot(*at, "o", color=COLOURS["series-2"], markersize=8, fillstyle="none")
        axes.set_xlabel(key)
        axes.set_ylabel(goal.objective)
        axes.grid(color=COLOURS["rule"], linewidth=0.6)

    text = "; ".join(f"{x}: {value:.4g}" for x, value in points)
    svg = figure(f"trials-{name}", _HEIGHT, draw)
    return Plot(Markup(svg), f"{title}. {text}.", f"{title}. The ring is the best.")
