"""Search of settings on people that no test shows: whom to draw, what was tried, and which is best."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastcomposer.data.portraits import ReferenceSet
from fastcomposer.evaluation.benchmark import Benchmark, Subject, Subset, load_benchmark
from fastcomposer.evaluation.load_results import TEXT_ONLY, method_name
from fastcomposer.evaluation.report.table import Column, Table, make_frame
from fastcomposer.evaluation.results import LEAST_CONSISTENCY, ResultRow, most_alike, read_results
from fastcomposer.evaluation.scorers import check_same
from fastcomposer.evaluation.store import RUN_NAME, read_run

RULE = (
    f"Best is the highest identity among the settings that keep {LEAST_CONSISTENCY:.0%} of the prompt "
    "consistency of text alone, or among all where none does."
)


@dataclass(frozen=True)
class Tried:
    """A choice of settings, as one job of a sweep has measured it.

    Attributes:
        row: Its figures.
        text_only: Those of text alone on the same cases.
        settings: What decides its images, by dotted name.
    """

    row: ResultRow
    text_only: ResultRow
    settings: Mapping[str, Any]

    @property
    def consistency(self) -> float:
        """Share of the prompt consistency of text alone."""
        return self.row.prompt_consistency.mean / self.text_only.prompt_consistency.mean


def load_search(
    folder: str | Path, people: Sequence[ReferenceSet], seed: int = 42, part: Subset | None = None
) -> list[Benchmark]:
    """Make the single-subject benchmark of a folder with other people than its own.

    Args:
        folder: Where ``single_subject.json`` is; its prompts are taken.
        people: Whom to draw; images as in :class:`~fastcomposer.evaluation.benchmark.Subject`.
        seed: Base seed.
        part: How much of the benchmark; ``None`` for all.

    Raises:
        BenchmarkError: If the file is not as it must be.
        FileNotFoundError: If there is no such file.
        ValueError: If more is asked for than there is.
    """
    subjects = [Subject(person.name, person.word, person.images) for person in people]
    benchmark = load_benchmark(Path(folder) / "single_subject.json", subjects, seed)
    return [benchmark if part is None else benchmark.subset(**vars(part))]


def read_sweep(folder: str | Path) -> dict[str, list[Tried]]:
    """Read what the jobs of one or several sweeps have measured.

    Args:
        folder: Holds the jobs' folders, each with ``results.json`` and its runs, at any depth.

    Returns:
        What was tried, by method.

    Raises:
        FileNotFoundError: If there are no results.
        ValueError: If a job lacks text alone, jobs were scored by different extractors, or those of a method
            have drawn different cases.
    """
    root = Path(folder)
    files = sorted(root.rglob("results.json"))
    if not files:
        raise FileNotFoundError(f"sweep={root}: no results.json in it; evaluate -m sweep=... writes them")
    tried: dict[str, list[Tried]] = {}
    read = {file: read_results(file).rows for file in files}
    check_same((file.parent, row) for file, rows in read.items() for row in rows)
    for file, rows in read.items():
        text = {row.benchmark: row for row in rows if row.method == TEXT_ONLY}
        settings = _settings_of_runs(file.parent)
        for row in rows:
            if row.method == TEXT_ONLY:
                continue
            if row.benchmark not in text:
                raise ValueError(f"{file}: no row of {TEXT_ONLY} to hold others against; add it to methods")
            known = settings.get(_key(row.benchmark, row.method, row.settings), {})
            tried.setdefault(row.method, []).append(Tried(row, text[row.benchmark], known))
    for method, found in tried.items():
        _check_cases(root, method, found)
    return tried


def differing(tried: Sequence[Tried]) -> list[dict[str, Any]]:
    """Of each choice, the settings that are not the same for all, by name."""
    names = list(dict.fromkeys(name for one in tried for name in one.settings))
    varied = [n for n in names if len({json.dumps(one.settings.get(n)) for one in tried}) > 1]
    return [{name: one.settings.get(name) for name in varied} for one in tried]


def best_of(tried: Sequence[Tried]) -> Tried:
    """Choose by :data:`RULE`."""
    best = most_alike([one.row for one in tried], tried[0].text_only)
    return next(one for one in tried if one.row is best)


def sweep_table(method: str, tried: Sequence[Tried]) -> Table:
    """What was tried of a method, from the highest identity down."""
    best = best_of(tried)
    names = [", ".join(f"{name} {value}" for name, value in chosen.items()) for chosen in differing(tried)]
    order = sorted(zip(tried, names, strict=True), key=lambda pair: -pair[0].row.identity_preservation.mean)
    labels = [(name or "as configured") + " (best)" * (one is best) for one, name in order]
    cells = [
        (
            one.row.identity_preservation,
            one.row.prompt_consistency,
            one.consistency,
            one.row.detection_rate,
            one.row.personalization_seconds_per_subject,
            one.row.images,
        )
        for one, _ in order
    ]
    columns = (
        Column("identity", "score"),
        Column("prompt", "score"),
        Column("of text only", "share"),
        Column("detected", "share", bare=True),
        Column("s to personalise", "seconds"),
        Column("images", "count"),
    )
    title = f"{method_name(method)}: settings, on people of the training split"
    frame = make_frame("setting", columns, zip(labels, cells, strict=True))
    strong = [label for label in labels if label.endswith(" (best)")]
    return Table(f"search_{method}", title, frame, (RULE,), strong=strong)


def best_sentences(folder: str | Path) -> tuple[list[str], list[Table]]:
    """Of each method whose settings were searched the best in a sentence, and the table of all.

    Args:
        folder: See :func:`read_sweep`.

    Returns:
        Nothing where no settings of a method differ, or text alone was not drawn to hold them against.
    """
    try:
        tried = read_sweep(folder)
    except (FileNotFoundError, ValueError):
        return [], []
    sentences, tables = [], []
    for method, found in tried.items():
        chosen = differing(found)[found.index(best_of(found))]
        if chosen:
            said = " ".join(f"{name}={value}" for name, value in chosen.items())
            sentences.append(f"{method_name(method)}, best of {len(found)}: {said}")
            tables.append(sweep_table(method, found))
    return sentences, tables


def _settings_of_runs(job: Path) -> dict[tuple[str, str, str], dict[str, Any]]:
    """What decides the images of a job's runs beside the base and the sampler."""
    found = {}
    for file in sorted(job.glob(f"*/*/{RUN_NAME}")):
        run = read_run(file.parent)
        if run is not None:
            recipe = run["decides"].get("recipe", {})
            settings = {**run["settings"], **recipe.get("method", {})}
            found[_key(run["benchmark"], run["method"], run["settings"])] = _flat(settings)
    return found


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in values.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {f"{prefix}{name}": value}
    return flat


def _key(benchmark: str, method: str, settings: Mapping[str, Any]) -> tuple[str, str, str]:
    return benchmark, method, json.dumps(settings, sort_keys=True)


def _check_cases(root: Path, method: str, tried: Sequence[Tried]) -> None:
    """Text alone draws the same images in every job that has the same cases."""
    first = tried[0]
    for other in tried[1:]:
        one, two = (t.text_only.prompt_consistency.mean for t in (first, other))
        if other.row.images != first.row.images or not math.isclose(one, two, abs_tol=1e-3):
            raise ValueError(
                f"sweep={root}: the jobs of {method} have drawn different cases; give all one benchmark"
            )
