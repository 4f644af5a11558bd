"""Search of settings on people that no test shows: the benchmark, what was tried, and which is best."""

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
from fastcomposer.evaluation.report.table import Cell, Column, Table, make_frame
from fastcomposer.evaluation.results import LEAST_CONSISTENCY, ResultRow, most_alike, read_results
from fastcomposer.evaluation.scorers import check_same
from fastcomposer.evaluation.store import RUN_NAME, read_run

RULE = (
    f"Best is the highest identity among the settings that keep {LEAST_CONSISTENCY:.0%} of the prompt "
    "consistency of text alone, or among all where none does."
)
_COLUMNS = (
    Column("identity", "score"),
    Column("prompt", "score"),
    Column("of text only", "share"),
    Column("detected", "share", bare=True),
    Column("s to personalise", "seconds"),
    Column("images", "count"),
)


@dataclass(frozen=True)
class Tried:
    """A choice of settings, as one job of a sweep has measured it."""

    row: ResultRow
    text_only: ResultRow  # on the same cases
    settings: Mapping[str, Any]  # that its images depend on, by dotted name

    @property
    def cells(self) -> list[Cell]:
        """Its figures in a table."""
        row = self.row
        kept = row.prompt_consistency.mean / self.text_only.prompt_consistency.mean
        scores = row.identity_preservation, row.prompt_consistency, kept, row.detection_rate
        return [*scores, row.personalization_seconds_per_subject, row.images]


def load_search(
    folder: str | Path, people: Sequence[ReferenceSet], seed: int = 42, part: Subset | None = None
) -> list[Benchmark]:
    """Make the single-subject benchmark of a folder with other people than its own.

    Args:
        folder: Where ``single_subject.json`` is; its prompts are taken.
        people: Subjects; images as in :class:`~fastcomposer.evaluation.benchmark.Subject`.
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
    """Read the results of the jobs of the sweeps in a folder, by method.

    Raises:
        FileNotFoundError: If there are no results.
        ValueError: If a job lacks text alone, jobs were scored by different extractors, or those of a method
            have sampled different cases.
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
                raise ValueError(f"{file}: no row of {TEXT_ONLY} to compare others with; add it to methods")
            known = settings.get(_key(row.benchmark, row.method, row.settings), {})
            found = tried.setdefault(row.method, [])
            found.append(Tried(row, text[row.benchmark], known))
            one, two = (t.text_only.prompt_consistency.mean for t in (found[0], found[-1]))
            # Text alone samples the same images in every job that has the same cases.
            if row.images != found[0].row.images or not math.isclose(one, two, abs_tol=1e-3):
                raise ValueError(
                    f"sweep={root}: the jobs of {row.method} have sampled different cases; "
                    "give all one benchmark"
                )
    return tried


def differing(tried: Sequence[Tried]) -> list[dict[str, Any]]:
    """Of each choice, the settings that are not the same for all, by name."""
    names = dict.fromkeys(name for one in tried for name in one.settings)
    varied = [n for n in names if len({json.dumps(one.settings.get(n)) for one in tried}) > 1]
    return [{name: one.settings.get(name) for name in varied} for one in tried]


def best_of(tried: Sequence[Tried]) -> Tried:
    """Choose by :data:`RULE`."""
    best = most_alike([one.row for one in tried], tried[0].text_only)
    return next(one for one in tried if one.row is best)


def best_sentences(folder: str | Path) -> tuple[list[str], list[Table]]:
    """The best settings of each method in a sentence, and tables of all; none where none were searched."""
    try:
        tried = read_sweep(folder)
    except (FileNotFoundError, ValueError):
        return [], []
    sentences, tables = [], []
    for method, found in tried.items():
        chosen, best = differing(found), best_of(found)
        if settings := chosen[found.index(best)]:
            text = " ".join(f"{name}={value}" for name, value in settings.items())
            sentences.append(f"{method_name(method)}, best of {len(found)}: {text}")
            tables.append(_table(method, found, chosen, best))
    return sentences, tables


def _table(method: str, tried: Sequence[Tried], chosen: Sequence[Mapping[str, Any]], best: Tried) -> Table:
    """What was tried of a method, from the highest identity down."""
    names = [", ".join(f"{name} {value}" for name, value in one.items()) for one in chosen]
    order = sorted(zip(tried, names, strict=True), key=lambda pair: -pair[0].row.identity_preservation.mean)
    lines = [(name + " (best)" * (one is best), one.cells) for one, name in order]
    title = f"{method_name(method)}: settings, on people of the training split"
    strong = [label for label, _ in lines if label.endswith(" (best)")]
    return Table(f"search_{method}", title, make_frame("setting", _COLUMNS, lines), (RULE,), strong=strong)


def _settings_of_runs(job: Path) -> dict[tuple[str, str, str], dict[str, Any]]:
    """Settings that the images of a job's runs depend on, beside the base and the sampler."""
    found = {}
    for file in sorted(job.glob(f"*/*/{RUN_NAME}")):
        if (run := read_run(file.parent)) is not None:
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
