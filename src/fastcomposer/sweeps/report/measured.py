"""What the jobs of a sweep have measured: evaluations by their scores, trainings by their log."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from fastcomposer.evaluation.report.table import Cell, Column, Style, Table, make_frame, written
from fastcomposer.evaluation.statistics import Estimate, bootstrap
from fastcomposer.sweeps.jobs import Job, Plan, read_jobs, read_plan, swept_keys
from fastcomposer.sweeps.report.groups import Entry, Group, short
from fastcomposer.sweeps.report.scores import fresh_evaluation, score_groups, scored_folder

OVER_STEPS = (
    "Figures of a training are means over the last quarter of what it logged. Their 95 % intervals are "
    "bootstrapped over these steps: they say how steady a training was, not how another seed would do. "
    "Of fewer than three values the last is shown, without interval."
)
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
    "area": ("mask's share of the image", "share"),
    "subjects": ("subjects", "count"),
}
_LEFT_OUT = ("epoch", "step", "train/learning_rate")
_LEAST = 3  # values for an interval


@dataclass(frozen=True)
class Sweep:
    """A sweep, read from its folder.

    Attributes:
        folder: Where it is.
        plan: What it was to do, where that is known.
        keys: What was swept.
        jobs: All jobs.
        groups: What those that measured anything have measured.
        unscored: Trainings of a grid that have finished and of which no images are scored.
    """

    folder: Path
    plan: Plan | None
    keys: tuple[str, ...]
    jobs: tuple[Job, ...]
    groups: tuple[Group, ...]
    unscored: tuple[Job, ...] = ()

    @property
    def undone(self) -> list[Job]:
        """Jobs that did not finish."""
        return [job for job in self.jobs if job.status != "finished"]


def read_measured(folder: str | Path, baseline: int | None = None) -> Sweep:
    """Read a sweep.

    Args:
        folder: Of ``train -m`` or ``evaluate -m``.
        baseline: Number of the job that the others are compared with; ``None`` for the one that changes
            nothing, where there is one, else the first.

    Raises:
        FileNotFoundError: If there are no jobs in it.
        ValueError: If there is no such job.
    """
    root = Path(folder)
    jobs = tuple(read_jobs(root))
    if not jobs:
        what = "no jobs in it; train -m and evaluate -m leave them"
        if (root / "results.json").is_file():
            what = f"one evaluation, no sweep: report results={root}"
        raise FileNotFoundError(f"sweep={root}: {what}")
    numbers = [job.number for job in jobs]
    if baseline is not None and baseline not in numbers:
        raise ValueError(f"baseline={baseline}: no such job; there are {', '.join(map(str, numbers))}")
    done = [job for job in jobs if job.status == "finished"]
    plan = read_plan(root)
    keys = swept_keys(root, jobs)
    if baseline is None and (plan is None or plan.goal is None):
        baseline = numbers[0] if plan is None or plan.baseline is None else plan.baseline
    trained = plan is not None and plan.command == "train"
    scores = score_groups(root, done, keys, baseline, trained)
    wanted = plan is not None and plan.scorable
    unscored = tuple(job for job in done if scored_folder(root, job) is None) if wanted else ()
    attention = _group("attention", "Attention", _ATTENTION, done, lambda job: _attention(root, job), "")
    found = (*scores, attention)
    training = _group("training", "Training", _LOGGED, done, _trained, OVER_STEPS)
    groups = tuple(group for group in (*found, training) if group.entries)
    return Sweep(root, plan, keys, jobs, groups, unscored)


def group_table(group: Group, keys: Sequence[str]) -> Table:
    """The comparison of a group."""
    columns = [Column(title, style) for title, style in group.columns.values()]
    lines = [
        (
            entry.label(keys),
            [_cell(entry.values.get(name), style) for name, (_, style) in group.columns.items()],
        )
        for entry in group.entries
    ]
    first = " × ".join(short(key) for key in keys) or "job"
    frame = make_frame(first, columns, lines)
    return Table(f"sweep_{group.key}", f"{group.title}: every job", frame, (group.note,) * bool(group.note))


def _cell(estimate: Estimate | None, style: Style) -> Cell:
    """A figure, with its interval where there is one to see."""
    if estimate is None:
        return None
    low, high = estimate.ci95
    alike = style != "score" and len({written(value, style) for value in (estimate.mean, low, high)}) == 1
    return estimate if high > low and not alike else estimate.mean


def _group(
    key: str, title: str, known: Mapping[str, tuple[str, Style]], jobs: Iterable[Job], read: object, note: str
) -> Group:
    entries = [Entry(job, series, values) for job in jobs for series, values in read(job)]  # type: ignore[operator]
    names = dict.fromkeys(name for entry in entries for name in entry.values)
    columns = {name: known[name] for name in known if name in names}
    columns |= {name: (name, "score") for name in names if name not in known}
    return Group(key, title, tuple(entries), columns, note)


def _attention(root: Path, job: Job) -> list[tuple[str, dict[str, Estimate]]]:
    for folder in (job.folder, fresh_evaluation(root, job)):
        try:
            content = json.loads(((folder or job.folder) / "attention.json").read_text())
        except (OSError, ValueError):
            continue
        return [
            (name if len(content) > 1 else "", {key: _estimate(value) for key, value in found.items()})
            for name, found in content.items()
        ]
    return []


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
