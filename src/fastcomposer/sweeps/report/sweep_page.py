"""From the folder of a sweep to its tables and its page."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from markupsafe import Markup

from fastcomposer.evaluation.load_results import Run
from fastcomposer.evaluation.report.gallery import Gallery, named_grid
from fastcomposer.evaluation.report.html import Plot, page_environment
from fastcomposer.evaluation.report.table import Table, to_csv, to_latex, to_markdown
from fastcomposer.evaluation.report.write_report import FORMATS, check_formats, write_formats
from fastcomposer.evaluation.statistics import Estimate
from fastcomposer.sweeps.jobs import Job
from fastcomposer.sweeps.report.grid_search import best_sentences
from fastcomposer.sweeps.report.groups import DIFFERENCE, Group, short, spoken
from fastcomposer.sweeps.report.measured import Sweep, group_table, read_measured
from fastcomposer.sweeps.report.scores import references_of
from fastcomposer.sweeps.report.sweep_plots import is_map, sweep_plot
from fastcomposer.sweeps.report.trials import trial_plots, trial_table

_COLUMNS = 1  # of images, of each category of prompts


def write_sweep_report(
    folder: str | Path, formats: tuple[str, ...] = tuple(FORMATS), baseline: int | None = None
) -> tuple[Sweep, list[str], list[Path]]:
    """Write tables and page of a sweep into its folder.

    Args:
        folder: Of ``train -m`` or ``evaluate -m``.
        formats: Which of ``md``, ``csv``, ``tex`` and ``html`` to write.
        baseline: Number of the job that the others are compared with; see :func:`read_measured`.

    Returns:
        What was read, the best settings where some were searched (of a search by optuna with the call that
        goes on from them), and the files.

    Raises:
        FileNotFoundError: If there are no jobs.
        ValueError: If a format is unknown, or the baseline.
    """
    check_formats(formats)
    sweep = read_measured(folder, baseline)
    tables = [group_table(group, sweep.keys) for group in sweep.groups]
    if sweep.plan is not None and sweep.plan.goal is not None:
        sentences = list(sweep.plan.best(sweep.jobs) or ())
        searches = [trial_table(sweep.plan.goal, sweep.jobs)]
        listed = [*searches, *tables]
    else:
        sentences, searches = best_sentences(folder)
        listed = [*tables, *searches]
    makers: dict[str, Callable[[], str]] = {
        "md": lambda: _markdown(sweep, sentences, listed),
        "csv": lambda: to_csv(listed),
        "tex": lambda: to_latex(listed),
        "html": lambda: _page(sweep, sentences, tables, searches),
    }
    return sweep, sentences, write_formats(folder, formats, makers)


def undone_line(job: Job, keys: tuple[str, ...]) -> str:
    """What became of a job that did not finish."""
    said = {"waiting": "has not begun", "running": "is running, or ended without a word"}
    where = f" ({job.log})" if job.log else ""
    return f"{job.named(keys)}: {said.get(job.status, job.reason)}{where}"


def unscored_line(sweep: Sweep) -> str:
    """Which trainings' images are not scored, and the command that scores them; empty where all are."""
    if not sweep.unscored:
        return ""
    numbers = ", ".join(str(job.number) for job in sweep.unscored)
    which = f"job {numbers}" if len(sweep.unscored) == 1 else f"jobs {numbers}"
    return (
        f"Identity and prompt of {which} are not measured yet; "
        f"evaluate -m sweep=jobs jobs={sweep.folder} samples the benchmark and scores it."
    )


def _markdown(sweep: Sweep, sentences: list[str], tables: list[Table]) -> str:
    parts = [f"# {sweep.folder.name}", *map(_as_code, sentences)]
    if sweep.unscored:
        parts += [unscored_line(sweep)]
    parts += map(to_markdown, tables)
    if sweep.undone:
        lines = "\n".join(f"- {undone_line(job, sweep.keys)}" for job in sweep.undone)
        parts += ["## Not finished", lines]
    return "\n\n".join(parts) + "\n"


def _as_code(sentence: str) -> str:
    return f"`{sentence}`" if sentence.startswith("fastcomposer ") else sentence


def _page(sweep: Sweep, sentences: list[str], tables: list[Table], searches: list[Table]) -> str:
    pairs = zip(sweep.groups, tables, strict=True)
    goal = None if sweep.plan is None else sweep.plan.goal
    return (
        page_environment()
        .get_template("sweep.html.j2")
        .render(
            title=sweep.folder.name,
            call="" if sweep.plan is None else sweep.plan.call,
            spoken=spoken,
            keys=sweep.keys,
            jobs=sweep.jobs,
            undone=[undone_line(job, sweep.keys) for job in sweep.undone],
            sentences=sentences,
            unscored=unscored_line(sweep),
            groups=[
                (group, table, *(([], None) if goal is not None else _drawn(group, sweep.keys)))
                for group, table in pairs
            ],
            searches=searches,
            trials=[] if goal is None else trial_plots(goal, sweep.jobs),
        )
    )


def _drawn(group: Group, keys: tuple[str, ...]) -> tuple[list[Plot], Gallery | None]:
    """Plots of a group's figures, and images of the same cases below each other."""
    having = [entry for entry in group.entries if entry.run is not None and _has_images(entry.run)]
    named = [(entry.label(keys), entry.run) for entry in having if entry.run is not None]
    grid = named_grid(group.key, named, references_of(having), _COLUMNS) if named else None
    return _plots(group, keys), grid


def _has_images(run: Run) -> bool:
    return bool(run.images.file.map(Path.is_file).any())


def _plots(group: Group, keys: tuple[str, ...]) -> list[Plot]:
    """A plot of each figure that is worth one, where there is something to compare."""
    if len(group.entries) < 2 or not keys:
        return []
    plots = []
    for number, name in enumerate(group.plotted):
        compared = name.endswith(DIFFERENCE)
        series: dict[str, dict[tuple[str, ...], Estimate]] = {}
        for entry in group.entries:
            line, place = entry.place(keys)
            if name in entry.values:
                series.setdefault(line, {})[place] = entry.values[name]
            elif compared and entry.job.number == group.baseline:  # has its line, as in the plot beside it
                series.setdefault(line, {})[place] = Estimate(0.0, (0.0, 0.0))
        if not series:
            continue
        names = [short(key) for key in keys[: len(next(iter(next(iter(series.values())))))]]
        spread = any(
            e.values[name].ci95[0] < e.values[name].ci95[1] for e in group.entries if name in e.values
        )
        seen = (
            "Bars are 95 % intervals." if spread and not is_map(series, names) else "Intervals are not shown."
        )
        title = group.columns[name][0]
        said = "; ".join(
            f"{entry.label(keys)}: {entry.values[name].mean:.3g}"
            for entry in group.entries
            if name in entry.values
        )
        anchor = f"{group.key}-{number}".replace("_", "-")
        svg = sweep_plot(series, names, title, anchor, zero=compared)
        plots.append(Plot(Markup(svg), f"{title}. {said}.", f"{title[:1].upper()}{title[1:]}. {seen}"))
    return plots
