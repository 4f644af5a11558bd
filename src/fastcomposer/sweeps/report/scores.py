"""What the jobs of a sweep draw, scored: their own evaluations, or those of what they have trained."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from fastcomposer.evaluation.benchmark import subject_images
from fastcomposer.evaluation.load_results import BENCHMARKS, Run, Score, collect, difference
from fastcomposer.evaluation.report.table import Style
from fastcomposer.evaluation.scorers import check_same
from fastcomposer.evaluation.statistics import Estimate
from fastcomposer.sweeps.jobs import JOB_NAME, Job, evaluation_of, read_job
from fastcomposer.sweeps.report.groups import DIFFERENCE, Entry, Group, full_label

OVER_SUBJECTS = "Intervals (95 %) are bootstrapped over subjects."
ONE_TRAINING = "Each job is one training: how another seed would do is not in them."
_COMPARED: dict[str, Score] = {
    "identity_preservation": "identity",
    "prompt_consistency": "prompt_consistency",
}
_SCORES: dict[str, tuple[str, Style]] = {
    "identity_preservation": ("identity", "score"),
    "identity_preservation" + DIFFERENCE: ("identity, difference", "score"),
    "prompt_consistency": ("prompt", "score"),
    "prompt_consistency" + DIFFERENCE: ("prompt, difference", "score"),
    "copy_paste": ("copy-paste", "score"),
    "detection_rate": ("detected", "share"),
    "seconds_per_image": ("s per image", "seconds"),
    "personalization_seconds_per_subject": ("s to personalise", "seconds"),
    "images": ("images", "count"),
}
_SPARED = ("personalization_seconds_per_subject",)  # where it is 0 in all jobs


def fresh_evaluation(root: Path, job: Job) -> Path | None:
    """The folder of the evaluation of what a job has trained, unless that was trained anew since.

    Args:
        root: Folder of the sweep.
        job: One that has finished.
    """
    folder = evaluation_of(root, job)
    done = read_job(folder)
    if done is None or done.status != "finished":
        return None
    trained, evaluated = (file.stat().st_mtime for file in (job.folder / JOB_NAME, folder / JOB_NAME))
    return folder if evaluated >= trained else None


def scored_folder(root: Path, job: Job) -> Path | None:
    """Where the results of a job are: in its own folder, or in that of the evaluation of what it has trained.

    Args:
        root: Folder of the sweep.
        job: One that has finished.
    """
    found = (folder for folder in (job.folder, fresh_evaluation(root, job)) if folder is not None)
    return next((folder for folder in found if (folder / "results.json").is_file()), None)


def references_of(entries: Sequence[Entry]) -> dict[str, Path]:
    """Reference image of each subject that was drawn, where the evaluations have said where these are."""
    found: dict[str, Path] = {}
    for run in (entry.run for entry in entries):
        done = None if run is None or run.folder is None else read_job(run.folder.parents[1])
        folder = (done.settings.get("benchmark") or {}).get("images") if done is not None else None
        names = {name for names in run.images.subjects for name in names} if run and folder else set()
        for name in names - found.keys():
            if files := subject_images(Path(str(folder)), name):
                found[name] = files[0]
    return found


def score_groups(
    root: Path, jobs: Sequence[Job], keys: Sequence[str], baseline: int | None, trained: bool
) -> list[Group]:
    """Read the scores of jobs, by benchmark.

    Args:
        root: Folder of the sweep.
        jobs: Those that have finished.
        keys: What was swept.
        baseline: Number of the job that the others are compared with.
        trained: Whether the jobs are trainings.

    Returns:
        A group for each benchmark that was drawn.

    Raises:
        ValueError: If jobs were scored by different extractors.
    """
    found = [(job, folder) for job in jobs if (folder := scored_folder(root, job)) is not None]
    scored = [(job, folder, run) for job, folder in found for run in collect(folder, 0.0).runs]
    check_same((folder, run.row) for _, folder, run in scored)
    runs: dict[str, list[tuple[Job, Run]]] = {}
    for job, _, run in scored:
        runs.setdefault(run.row.benchmark, []).append((job, run))
    return [_group(name, its_runs, keys, baseline, trained) for name, its_runs in runs.items()]


def _group(
    benchmark: str, found: list[tuple[Job, Run]], keys: Sequence[str], baseline: int | None, trained: bool
) -> Group:
    common, names = _series([run for _, run in found])
    first = {name: run for name, (job, run) in zip(names, found, strict=True) if job.number == baseline}
    entries = [
        Entry(job, name, _values(run, first.get(name)), run)
        for name, (job, run) in zip(names, found, strict=True)
    ]
    measured = {name for entry in entries for name in entry.values}
    idle = {name for name in _SPARED if not any(e.values[name].mean for e in entries if name in e.values)}
    notes = [f"{common}."] * bool(common) + [OVER_SUBJECTS] + [ONE_TRAINING] * trained
    compared = any(name.endswith(DIFFERENCE) for name in measured)
    if compared:
        job = next(job for job, _ in found if job.number == baseline)
        notes.append(
            f"Differences are from job {job.number} ({full_label(job, keys)}), on the same cases: where an "
            "interval leaves out 0, the two differ."
        )
    columns = {name: _SCORES[name] for name in _SCORES if name in measured - idle}
    title, against = BENCHMARKS[benchmark], baseline if compared else None
    return Group(benchmark, title, tuple(entries), columns, " ".join(notes), against)


def _series(runs: Sequence[Run]) -> tuple[str, list[str]]:
    """What all runs have in common, and what tells each from others: of method and settings."""
    facts = [{"": run.name, **run.row.settings} for run in runs]
    keys = dict.fromkeys(key for one in facts for key in one)
    varied = [key for key in keys if len({str(one.get(key)) for one in facts}) > 1]

    def said(one: Mapping[str, object], wanted: Sequence[str]) -> str:
        return ", ".join(f"{key} {one[key]}".strip() for key in wanted if key in one)

    shared = [key for key in keys if key not in varied]
    return said(facts[0], shared), [said(one, varied) for one in facts]


def _values(run: Run, baseline: Run | None) -> dict[str, Estimate]:
    figures = {name: getattr(run.row, name, None) for name in _SCORES}
    values = {name: _estimate(value) for name, value in figures.items() if value is not None}
    if baseline is not None and baseline is not run:
        for name, score in _COMPARED.items():
            found = difference(run, baseline, score)
            if found is not None:
                values[name + DIFFERENCE] = found
    return values


def _estimate(value: Estimate | float) -> Estimate:
    return value if isinstance(value, Estimate) else Estimate(float(value), (float(value), float(value)))
