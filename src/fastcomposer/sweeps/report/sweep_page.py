"""From the folder of a sweep to its tables and its page."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from markupsafe import Markup

from fastcomposer.evaluation.report.html import Gallery, Plot, named_grid, page_environment
from fastcomposer.evaluation.report.tables import Table, to_csv, to_latex, to_markdown
from fastcomposer.evaluation.report.write_report import FORMATS, check_formats, write_formats
from fastcomposer.evaluation.statistics import Estimate
from fastcomposer.sweeps.jobs import Job
from fastcomposer.sweeps.report.grid_search import best_settings
from fastcomposer.sweeps.report.measured import (
    DIFFERENCE,
    Group,
    Sweep,
    group_table,
    read_measured,
    readable,
    references_of,
    short,
)
from fastcomposer.sweeps.report.sweep_plots import Series, SweepPlot
from fastcomposer.sweeps.report.trials import trial_plots, trial_table

_COLUMNS = 1  # of images, of each category of prompts


def write_sweep_report(
    folder: str | Path, formats: tuple[str, ...] = tuple(FORMATS), baseline: int | None = None
) -> tuple[Sweep, list[str], list[Path]]:
    """Write tables and page of a sweep (``train -m`` or ``evaluate -m``) into its folder.

    Formats are ``md``, ``csv``, ``tex`` and ``html``; for ``baseline`` and errors see :func:`read_measured`.
    Returns what was read, the best settings where some were searched (of a search by optuna with the call
    that continues from them), and the files.
    """
    check_formats(formats)
    sweep = read_measured(folder, baseline)
    tables = [group_table(group, sweep.keys) for group in sweep.groups]
    if sweep.plan is not None and sweep.plan.goal is not None:
        sentences = list(sweep.plan.best(sweep.jobs) or ())
        searches = [trial_table(sweep.plan.goal, sweep.jobs)]
        listed = [*searches, *tables]
    else:
        sentences, searches = best_settings(sweep)
        listed = [*tables, *searches]
    makers: dict[str, Callable[[], str]] = {
        "md": lambda: _markdown(sweep, sentences, listed),
        "csv": lambda: to_csv(listed),
        "tex": lambda: to_latex(listed),
        "html": lambda: _page(sweep, sentences, tables, searches),
    }
    return sweep, sentences, write_formats(folder, formats, makers)


def undone_line(job: Job, keys: tuple[str, ...]) -> str:
    """The reason why a job did not finish, on a line."""
    reason = {"waiting": "has not begun", "running": "is running, or ended without a record"}
    where = f" ({job.log})" if job.log else ""
    return f"{job.named(keys)}: {reason.get(job.status, job.reason)}{where}"


def unscored_line(sweep: Sweep) -> str:
    """Trainings whose images are not scored, and the command that scores them; empty where all are."""
    if not sweep.unscored:
        return ""
    numbers = ", ".join(str(job.number) for job in sweep.unscored)
    return (
        f"Identity and prompt of job{'s' * (len(sweep.unscored) > 1)} {numbers} are not measured yet; "
        f"evaluate -m sweep=jobs jobs={sweep.folder} samples the benchmark and scores it."
    )


def _markdown(sweep: Sweep, sentences: list[str], tables: list[Table]) -> str:
    texts = [f"`{text}`" if text.startswith("fastcomposer ") else text for text in sentences]
    parts = [f"# {sweep.folder.name}", *texts, *filter(None, [unscored_line(sweep)])]
    parts += map(to_markdown, tables)
    if sweep.undone:
        lines = "\n".join(f"- {undone_line(job, sweep.keys)}" for job in sweep.undone)
        parts += ["## Not finished", lines]
    return "\n\n".join(parts) + "\n"


def _page(sweep: Sweep, sentences: list[str], tables: list[Table], searches: list[Table]) -> str:
    goal = None if sweep.plan is None else sweep.plan.goal
    groups: list[tuple[Any, ...]] = []
    for group, table in zip(sweep.groups, tables, strict=True):
        shown = ([], None) if goal is not None else (_plots(group, sweep.keys), _images(group, sweep.keys))
        groups.append((group, table, *shown))
    template = page_environment().get_template("sweep.html.j2")
    return template.render(
        title=sweep.folder.name,
        call="" if sweep.plan is None else sweep.plan.call,
        readable=readable,
        keys=sweep.keys,
        jobs=sweep.jobs,
        undone=[undone_line(job, sweep.keys) for job in sweep.undone],
        sentences=sentences,
        unscored=unscored_line(sweep),
        groups=groups,
        searches=searches,
        trials=[] if goal is None else trial_plots(goal, sweep.jobs),
    )


def _images(group: Group, keys: tuple[str, ...]) -> Gallery | None:
    """Images of the same cases below each other."""
    having = [e for e in group.entries if e.run is not None and e.run.images.file.map(Path.is_file).any()]
    named = [(entry.label(keys), entry.run) for entry in having if entry.run is not None]
    return named_grid(group.key, named, references_of(having), _COLUMNS) if named else None


def _plots(group: Group, keys: tuple[str, ...]) -> list[Plot]:
    """A plot of each figure that is worth one, where there is something to compare."""
    if len(group.entries) < 2 or not keys:
        return []
    plots = []
    for number, name in enumerate(group.plotted):
        having = [entry for entry in group.entries if name in entry.values]
        series = _series(group, name, keys)
        if not series:
            continue
        width = len(next(iter(next(iter(series.values())))))
        title, anchor = group.columns[name][0], f"{group.key}-{number}".replace("_", "-")
        compared = name.endswith(DIFFERENCE)
        plot = SweepPlot(series, [short(key) for key in keys[:width]], title, anchor, zero=compared)
        spread = any(entry.values[name].ci95[0] < entry.values[name].ci95[1] for entry in having)
        seen = "Bars are 95 % intervals." if spread and not plot.is_map else "Intervals are not shown."
        text = "; ".join(f"{entry.label(keys)}: {entry.values[name].mean:.3g}" for entry in having)
        caption = f"{title[:1].upper()}{title[1:]}. {seen}"
        plots.append(Plot(Markup(plot.svg()), f"{title}. {text}.", caption))
    return plots


def _series(group: Group, name: str, keys: tuple[str, ...]) -> Series:
    series: dict[str, dict[tuple[str, ...], Estimate]] = {}
    for entry in group.entries:
        line, position = entry.position(keys)
        if name in entry.values:
            series.setdefault(line, {})[position] = entry.values[name]
        elif name.endswith(DIFFERENCE) and entry.job.number == group.baseline:  # keeps its line, at 0
            series.setdefault(line, {})[position] = Estimate(0.0, (0.0, 0.0))
    return series
