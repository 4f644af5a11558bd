"""What the jobs of a sweep have measured: evaluations by their scores, trainings by their log."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from fastcomposer.evaluation.collected import BENCHMARKS, method_name
from fastcomposer.evaluation.report.table import Cell, Column, Line, Style, Table
from fastcomposer.evaluation.results import read_results
from fastcomposer.evaluation.statistics import Estimate, bootstrap
from fastcomposer.jobs import Job, Plan, read_jobs, read_plan, swept_keys

OVER_SUBJECTS = "Intervals (95 %) are bootstrapped over subjects."
OVER_STEPS = (
    "Figures of a training are means over the last quarter of what it logged. Their 95 % intervals are "
    "bootstrapped over these steps: they say how steady a training was, not how another seed would do. "
    "Of fewer than three values the last is shown, without interval."
)
_SCORES: dict[str, tuple[str, Style]] = {
    "identity_preservation": ("identity", "score"),
    "prompt_consistency": ("prompt", "score"),
    "detection_rate": ("detected", "share"),
    "seconds_per_image": ("s per picture", "seconds"),
    "personalization_seconds_per_subject": ("s to personalise", "seconds"),
    "images": ("pictures", "count"),
}
_LOGGED: dict[str, tuple[str, Style]] = {
    "val/denoise_loss": ("denoising loss, held out", "score"),
    "val/localization_loss": ("localization loss, held out", "score"),
    "samples/identity": ("identity, samples", "score"),
    "samples/prompt_consistency": ("prompt, samples", "score"),
    "train/loss": ("loss", "score"),
    "train/denoise_loss": ("denoising loss", "score"),
    "train/localization_loss": ("localization loss", "score"),
    "train/grad_norm": ("gradient norm", "score"),
    "train/images_per_second": ("images/s", "seconds"),
    "train/memory_gib": ("memory, GiB", "seconds"),
}
_ATTENTION: dict[str, tuple[str, Style]] = {
    "inside": ("attention inside the mask", "share"),
    "area": ("mask's share of the picture", "share"),
    "subjects": ("subjects", "count"),
}
_LEFT_OUT = ("epoch", "step", "train/learning_rate")
_PLOTTED = (
    "identity_preservation",
    "prompt_consistency",
    "inside",
    "val/",
    "train/denoise_loss",
    "train/images",
)
_WRITTEN = 10  # letters of a number that somebody may have written
_LEAST = 3  # values for an interval


@dataclass(frozen=True)
class Entry:
    """What a job has measured under one choice of settings of its own.

    Attributes:
        job: The job.
        series: What tells it from other entries of the job, such as method and alpha; may be empty.
        values: Figures by name.
    """

    job: Job
    series: str
    values: Mapping[str, Estimate]


@dataclass(frozen=True)
class Group:
    """Figures that can be compared.

    Attributes:
        key: Short name.
        title: Heading.
        entries: By job.
        columns: Title and style of each figure, by name.
        note: How the intervals were made.
    """

    key: str
    title: str
    entries: tuple[Entry, ...]
    columns: Mapping[str, tuple[str, Style]]
    note: str

    @property
    def plotted(self) -> list[str]:
        """Names of the figures that are worth a plot."""
        return [name for name in self.columns if name.startswith(_PLOTTED)]


@dataclass(frozen=True)
class Sweep:
    """A sweep, read from its folder.

    Attributes:
        folder: Where it is.
        plan: What it was to do, where that is known.
        keys: What was swept.
        jobs: All jobs.
        groups: What those that measured anything have measured.
    """

    folder: Path
    plan: Plan | None
    keys: tuple[str, ...]
    jobs: tuple[Job, ...]
    groups: tuple[Group, ...]

    @property
    def undone(self) -> list[Job]:
        """Jobs that did not finish."""
        return [job for job in self.jobs if job.status != "finished"]


def read_measured(folder: str | Path) -> Sweep:
    """Read a sweep.

    Args:
        folder: Of ``train -m`` or ``evaluate -m``.

    Raises:
        FileNotFoundError: If there are no jobs in it.
    """
    root = Path(folder)
    jobs = tuple(read_jobs(root))
    if not jobs:
        raise FileNotFoundError(f"sweep={root}: no jobs in it; train -m and evaluate -m leave them")
    done = [job for job in jobs if job.status == "finished"]
    plan = read_plan(root)
    found = (*_evaluations(done), _group("attention", "Attention", _ATTENTION, done, _attention, ""))
    training = _group("training", "Training", _LOGGED, done, _trained, OVER_STEPS)
    groups = tuple(group for group in (*found, training) if group.entries)
    return Sweep(root, plan, swept_keys(root, jobs), jobs, groups)


def chosen_label(job: Job, keys: Sequence[str]) -> str:
    """The swept values of a job in a line."""
    values = {key: _shorter(text) for key, text in job.chosen.items()}
    if len(keys) == 1:
        return values.get(keys[0], f"job {job.number}")
    said = ", ".join(f"{short(key)} {values[key]}" for key in keys if key in values)
    return said or f"job {job.number}"


def _shorter(text: str) -> str:
    """A number that nobody wrote by hand, in a few digits."""
    value = _number(text) if len(text) > _WRITTEN else None
    return text if value is None else f"{value:.4g}"


def short(key: str) -> str:
    """The last words of a key, which say what it is about."""
    return ".".join(key.split(".")[-2:])


def group_table(group: Group, keys: Sequence[str]) -> Table:
    """The comparison of a group."""
    columns = tuple(Column(title, style) for title, style in group.columns.values())
    lines = []
    for entry in group.entries:
        label = ": ".join(filter(None, (chosen_label(entry.job, keys), entry.series)))
        cells = tuple(_cell(entry.values.get(name)) for name in group.columns)
        lines.append(Line(label, cells))
    first = " × ".join(short(key) for key in keys) or "job"
    return Table(
        f"sweep_{group.key}",
        f"{group.title}: every job",
        first,
        columns,
        tuple(lines),
        (group.note,) * bool(group.note),
    )


def _cell(estimate: Estimate | None) -> Cell:
    if estimate is None:
        return Cell()
    low, high = estimate.ci95
    return Cell(estimate.mean, estimate.ci95 if high > low else None)


def _evaluations(jobs: Iterable[Job]) -> list[Group]:
    entries: dict[str, list[Entry]] = {}
    for job in jobs:
        file = job.folder / "results.json"
        if not file.is_file():
            continue
        for row in read_results(file).rows:
            said = [method_name(row.method), *(f"{key} {value}" for key, value in row.settings.items())]
            figures = {name: getattr(row, name) for name in _SCORES}
            values = {name: _estimate(value) for name, value in figures.items() if value is not None}
            entries.setdefault(row.benchmark, []).append(Entry(job, ", ".join(said), values))
    return [
        Group(name, BENCHMARKS[name], tuple(found), _SCORES, OVER_SUBJECTS) for name, found in entries.items()
    ]


def _group(
    key: str, title: str, known: Mapping[str, tuple[str, Style]], jobs: Iterable[Job], read: object, note: str
) -> Group:
    entries = [Entry(job, series, values) for job in jobs for series, values in read(job)]  # type: ignore[operator]
    names = dict.fromkeys(name for entry in entries for name in entry.values)
    columns = {name: known[name] for name in known if name in names}
    columns |= {name: (name, "score") for name in names if name not in known}
    return Group(key, title, tuple(entries), columns, note)


def _attention(job: Job) -> list[tuple[str, dict[str, Estimate]]]:
    try:
        content = json.loads((job.folder / "attention.json").read_text())
    except (OSError, ValueError):
        return []
    return [
        (name, {key: _estimate(value) for key, value in found.items()}) for name, found in content.items()
    ]


def _trained(job: Job) -> list[tuple[str, dict[str, Estimate]]]:
    file = job.folder / "logs" / "metrics.csv"
    if not file.is_file():
        return []
    columns: dict[str, list[float]] = {}
    with file.open(newline="") as stream:
        for row in csv.DictReader(stream):
            for name, text in row.items():
                value = _number(text)
                if name not in _LEFT_OUT and value is not None:
                    columns.setdefault(name, []).append(value)
    return [("", {name: last_steps(values) for name, values in columns.items()})] if columns else []


def last_steps(values: Sequence[float]) -> Estimate:
    """The mean of the last quarter of what was logged; of fewer than three values, the last."""
    last = values[-max(len(values) // 4, min(len(values), 5)) :]
    if len(last) < _LEAST:
        return _estimate(last[-1])
    return bootstrap(last, range(len(last)))


def _number(text: str | None) -> float | None:
    try:
        value = float(text or "")
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def _estimate(value: Estimate | float) -> Estimate:
    return value if isinstance(value, Estimate) else Estimate(float(value), (float(value), float(value)))
