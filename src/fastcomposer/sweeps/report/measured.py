"""Figures of a sweep's jobs: scores of evaluations, attention, and logs of trainings."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd

from fastcomposer.evaluation.benchmark import subject_images
from fastcomposer.evaluation.load_results import BENCHMARKS, Run, Score, collect, difference
from fastcomposer.evaluation.report.tables import Cell, Column, Style, Table, make_frame, written
from fastcomposer.evaluation.statistics import Estimate, bootstrap
from fastcomposer.evaluation.store import check_same
from fastcomposer.sweeps.jobs import (
    JOB_NAME,
    Job,
    Plan,
    evaluation_of,
    read_job,
    read_jobs,
    read_plan,
    swept_keys,
)
from fastcomposer.utils.json_files import read_json_as

DIFFERENCE = "_difference"
"""Suffix of figures that are differences from the baseline."""
OVER_STEPS = (
    "Figures of a training are means over the last quarter of its log. Their 95 % intervals are bootstrapped "
    "over these steps: they show how steady a training is, not how another seed would do. Of fewer than "
    "three values the last is shown, without interval."
)
OVER_SUBJECTS = "Intervals (95 %) are bootstrapped over subjects."
ONE_TRAINING = "Each job is one training: how another seed would do is not in them."
_Titles = dict[str, tuple[str, Style]]
_SCORES: _Titles = {
    "identity_preservation": ("identity", "score"),
    "identity_preservation" + DIFFERENCE: ("identity, difference", "score"),
    "prompt_consistency": ("prompt", "score"),
    "prompt_consistency" + DIFFERENCE: ("prompt, difference", "score"),
    "copy_paste": ("copy-paste", "score"),
    "copy_paste" + DIFFERENCE: ("copy-paste, difference", "score"),
    "copy_paste_ratio": ("copy-paste ratio", "score"),
    "confusion": ("ID-Conf", "score"),
    "coverage": ("coverage", "share"),
    "coverage" + DIFFERENCE: ("coverage, difference", "share"),
    "duplicates": ("duplicates", "share"),
    "head_count": ("head count", "share"),
    "detection_rate": ("detected", "share"),
    "seconds_per_image": ("s per image", "seconds"),
    "personalization_seconds_per_subject": ("s to personalise", "seconds"),
    "images": ("images", "count"),
}
_COMPARED: dict[str, Score] = {
    "identity_preservation": "identity",
    "prompt_consistency": "prompt_consistency",
    "copy_paste": "copy_paste",
    "coverage": "coverage",
}
_ATTENTION: _Titles = {
    "inside": ("attention inside the mask", "share"),
    "area": ("mask's share of the image", "share"),
    "subjects": ("subjects", "count"),
}
_LOGGED: _Titles = {
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
    "train/gflop_per_image": ("GFLOP/image", "seconds"),
}
_LEFT_OUT = ["epoch", "step", "train/learning_rate"]
_PLOTTED = (
    "identity_preservation",
    "prompt_consistency",
    "copy_paste",
    "inside",
    "val/",
    "samples/",
    "train/denoise_loss",
    "train/images",
)
_LEAST = 3  # values for an interval
_IN_SERIES = frozenset({"compared", "alphas"})  # keys that the names of series contain already
_WORDS = {"null": "none", "true": "on", "false": "off"}
_LONG_NUMBER = re.compile(r"(?=.{11})[-+]?\d+(\.\d*)?([eE][-+]?\d+)?")


@dataclass(frozen=True)
class Entry:
    """Figures of a job under one choice of its own settings."""

    job: Job
    series: str  # what distinguishes it from other entries of the job, such as method and alpha
    values: Mapping[str, Estimate]
    run: Run | None = None

    def label(self, keys: Sequence[str]) -> str:
        """Its name among all entries."""
        chosen = "" if self._by_series(keys) else chosen_label(self.job, keys)
        return ": ".join(filter(None, (chosen, self.series)))

    def position(self, keys: Sequence[str]) -> tuple[str, tuple[str, ...]]:
        """Its series in a plot, and its value of each key."""
        if self._by_series(keys):
            return "", (self.series,)
        return self.series, tuple(readable(self.job.chosen.get(key, "")) for key in keys)

    def _by_series(self, keys: Sequence[str]) -> bool:
        return bool(self.series) and _IN_SERIES.issuperset(keys)


@dataclass(frozen=True)
class Group:
    """Figures that can be compared."""

    key: str
    title: str
    entries: tuple[Entry, ...]
    columns: Mapping[str, tuple[str, Style]]  # title and style by name
    note: str  # how the intervals were made
    baseline: int | None = None  # number of the job that differences are from

    @property
    def plotted(self) -> list[str]:
        """Names of the figures that are plotted."""
        return [name for name in self.columns if name.startswith(_PLOTTED)]


@dataclass(frozen=True)
class Sweep:
    """A sweep, read from its folder."""

    folder: Path
    plan: Plan | None
    keys: tuple[str, ...]
    jobs: tuple[Job, ...]
    groups: tuple[Group, ...]
    unscored: tuple[Job, ...] = ()  # finished trainings of a grid without scored images

    @property
    def undone(self) -> list[Job]:
        """Jobs that did not finish."""
        return [job for job in self.jobs if job.status != "finished"]


def read_measured(folder: str | Path, baseline: int | None = None) -> Sweep:
    """Read a sweep, compared with job ``baseline``: by default the one that changes nothing, else the first.

    Raises:
        FileNotFoundError: If there are no jobs in it.
        ValueError: If there is no such job, or jobs were scored by different extractors.
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
    plan, keys = read_plan(root), swept_keys(root, jobs)
    if baseline is None and (plan is None or plan.goal is None):
        baseline = numbers[0] if plan is None or plan.baseline is None else plan.baseline
    groups = _score_groups(root, done, keys, baseline, plan is not None and plan.command == "train")
    attention = [Entry(job, *found) for job in done for found in _attention(root, job)]
    trainings = [Entry(job, "", values) for job in done if (values := _logged(job))]
    groups += [
        _group("attention", "Attention", _ATTENTION, attention),
        _group("training", "Training", _LOGGED, trainings, OVER_STEPS),
    ]
    scorable = plan is not None and plan.scorable
    unscored = tuple(job for job in done if scorable and _scored_folder(root, job) is None)
    return Sweep(root, plan, keys, jobs, tuple(group for group in groups if group.entries), unscored)


def group_table(group: Group, keys: Sequence[str]) -> Table:
    """The table of a group."""
    columns = [Column(title, style) for title, style in group.columns.values()]
    lines = [
        (e.label(keys), [_cell(e.values.get(name), style) for name, (_, style) in group.columns.items()])
        for e in group.entries
    ]
    frame = make_frame(" × ".join(short(key) for key in keys) or "job", columns, lines)
    return Table(f"sweep_{group.key}", f"{group.title}: every job", frame, (group.note,) * bool(group.note))


def last_steps(values: Sequence[float]) -> Estimate:
    """The mean of the last quarter of logged values; of fewer than three values, the last."""
    last = list(values)[-max(len(values) // 4, min(len(values), 5)) :]
    return _estimate(last[-1]) if len(last) < _LEAST else bootstrap(last, range(len(last)))


def references_of(entries: Sequence[Entry]) -> dict[str, Path]:
    """Reference image of each subject, where the evaluations' settings name their folder."""
    found: dict[str, Path] = {}
    for run in (entry.run for entry in entries):
        done = None if run is None or run.folder is None else read_job(run.folder.parents[1])
        folder = (done.settings.get("benchmark") or {}).get("images") if done is not None else None
        names = {name for names in run.images.subjects for name in names} if run and folder else set()
        for name in names - found.keys():
            if files := subject_images(Path(str(folder)), name):
                found[name] = files[0]
    return found


def chosen_label(job: Job, keys: Sequence[str]) -> str:
    """The swept values of a job in a line."""
    values = {key: readable(value) for key, value in job.chosen.items()}
    if len(keys) == 1:
        return values.get(keys[0], f"job {job.number}")
    return ", ".join(f"{short(key)} {values[key]}" for key in keys if key in values) or f"job {job.number}"


def full_label(job: Job, keys: Sequence[str]) -> str:
    """The same with the key, for texts without a heading that names it."""
    label = chosen_label(job, keys)
    plain = len(keys) == 1 and job.chosen.get(keys[0]) == label
    return f"{keys[0].rpartition('.')[2]} {label}" if plain else label


def readable(value: str) -> str:
    """A swept value for readers: ``{jitter:0,grey:0}`` is jitter 0, grey 0."""
    if value == "{}":
        return "as in the experiment"
    if value[:1] + value[-1:] == "{}":
        pairs = re.sub(r"[{}]", "", value).replace(":", ": ").split(",")
        return ", ".join(" ".join(map(_word, pair.split())) for pair in pairs)
    if value[:1] + value[-1:] == "[]":
        return ", ".join(word.strip() for word in value[1:-1].split(","))
    return f"{float(value):.4g}" if _LONG_NUMBER.fullmatch(value) else value


def short(key: str) -> str:
    """The last two words of a key."""
    return ".".join(key.split(".")[-2:])


def _word(text: str) -> str:
    word = text.rstrip(":")
    return _WORDS.get(word.lower(), word)


def _group(key: str, title: str, known: _Titles, entries: Sequence[Entry], note: str = "") -> Group:
    names = dict.fromkeys(name for entry in entries for name in entry.values)
    columns: _Titles = {name: known[name] for name in known if name in names}
    columns |= {name: (name, "score") for name in names if name not in known}
    return Group(key, title, tuple(entries), columns, note)


def _fresh_evaluation(root: Path, job: Job) -> Path | None:
    """The folder of the evaluation of a finished training, unless that was trained again since."""
    folder = evaluation_of(root, job)
    done = read_job(folder)
    if done is None or done.status != "finished":
        return None
    trained, evaluated = (file.stat().st_mtime for file in (job.folder / JOB_NAME, folder / JOB_NAME))
    return folder if evaluated >= trained else None


def _scored_folder(root: Path, job: Job) -> Path | None:
    """The folder of a finished job's results: its own, or that of the evaluation of its training."""
    found = (folder for folder in (job.folder, _fresh_evaluation(root, job)) if folder is not None)
    return next((folder for folder in found if (folder / "results.json").is_file()), None)


def _score_groups(
    root: Path, jobs: Sequence[Job], keys: Sequence[str], baseline: int | None, trained: bool
) -> list[Group]:
    """Scores of finished jobs, by benchmark."""
    folders = [(job, folder) for job in jobs if (folder := _scored_folder(root, job)) is not None]
    scored = [(job, folder, run) for job, folder in folders for run in collect(folder, 0.0).runs]
    check_same((folder, run.row) for _, folder, run in scored)
    runs: dict[str, list[tuple[Job, Run]]] = {}
    for job, _, run in scored:
        runs.setdefault(run.row.benchmark, []).append((job, run))
    return [_score_group(name, found, keys, baseline, trained) for name, found in runs.items()]


def _score_group(
    benchmark: str, found: list[tuple[Job, Run]], keys: Sequence[str], baseline: int | None, trained: bool
) -> Group:
    common, names = _series([run for _, run in found])
    named = list(zip(names, found, strict=True))
    first = {name: run for name, (job, run) in named if job.number == baseline}
    entries = [Entry(job, name, _values(run, first.get(name)), run) for name, (job, run) in named]
    notes = [f"{common}."] * bool(common) + [OVER_SUBJECTS] + [ONE_TRAINING] * trained
    compared = any(name.endswith(DIFFERENCE) for entry in entries for name in entry.values)
    if compared:
        job = next(job for job, _ in found if job.number == baseline)
        notes.append(
            f"Differences are from job {job.number} ({full_label(job, keys)}), on the same cases: where an "
            "interval leaves out 0, the two differ."
        )
    group = _group(benchmark, BENCHMARKS[benchmark], _SCORES, entries, " ".join(notes))
    columns = dict(group.columns)
    if not any(run.row.personalization_seconds_per_subject for _, run in found):
        columns.pop("personalization_seconds_per_subject", None)
    return replace(group, columns=columns, baseline=baseline if compared else None)


def _series(runs: Sequence[Run]) -> tuple[str, list[str]]:
    """Method and settings that all runs have in common, and those that distinguish each."""
    settings = [{"": run.name, **run.row.settings} for run in runs]
    keys = dict.fromkeys(key for one in settings for key in one)
    varied = [key for key in keys if len({str(one.get(key)) for one in settings}) > 1]

    def text(one: Mapping[str, object], wanted: Sequence[str]) -> str:
        return ", ".join(f"{key} {one[key]}".strip() for key in wanted if key in one)

    shared = [key for key in keys if key not in varied]
    return text(settings[0], shared), [text(one, varied) for one in settings]


def _values(run: Run, baseline: Run | None) -> dict[str, Estimate]:
    figures = {name: getattr(run.row, name, None) for name in _SCORES}
    values = {name: _estimate(value) for name, value in figures.items() if value is not None}
    if baseline is not None and baseline is not run:
        for name, score in _COMPARED.items():
            if (found := difference(run, baseline, score)) is not None:
                values[name + DIFFERENCE] = found
    return values


def _attention(root: Path, job: Job) -> list[tuple[str, dict[str, Estimate]]]:
    for folder in filter(None, (job.folder, _fresh_evaluation(root, job))):
        try:
            kind = dict[str, dict[str, float]]
            content = read_json_as(kind, folder / "attention.json", "measured attention")
        except FileNotFoundError:
            continue
        return [
            (name if len(content) > 1 else "", {key: _estimate(value) for key, value in found.items()})
            for name, found in content.items()
        ]
    return []


def _logged(job: Job) -> dict[str, Estimate]:
    file = job.folder / "logs" / "metrics.csv"
    if not file.is_file():
        return {}
    try:
        log = pd.read_csv(file).drop(columns=_LEFT_OUT, errors="ignore")
    except pd.errors.EmptyDataError:  # not written yet
        return {}
    except ValueError as error:
        raise ValueError(f"{file}: cannot be read as a table: {error}") from error
    log = log.apply(pd.to_numeric, errors="coerce")
    columns = log.replace([np.inf, -np.inf], np.nan).items()
    return {str(name): last_steps(values) for name, column in columns if len(values := column.dropna())}


def _cell(estimate: Estimate | None, style: Style) -> Cell:
    """A figure, with its interval where there is one to see."""
    if estimate is None:
        return None
    low, high = estimate.ci95
    equal = style != "score" and len({written(value, style) for value in (estimate.mean, low, high)}) == 1
    return estimate if high > low and not equal else estimate.mean


def _estimate(value: Estimate | float) -> Estimate:
    return value if isinstance(value, Estimate) else Estimate(float(value), (float(value), float(value)))
