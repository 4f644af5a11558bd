"""Search of settings on people that no test shows: the benchmark, and the best of a grid."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path

from fastcomposer.data.portraits import ReferenceSet
from fastcomposer.evaluation.benchmark import Benchmark, Subject, Subset, load_benchmark
from fastcomposer.evaluation.load_results import TEXT_ONLY, method_name
from fastcomposer.evaluation.report.tables import Column, Table, make_frame
from fastcomposer.evaluation.results import LEAST_CONSISTENCY, ResultRow, most_similar
from fastcomposer.sweeps.report.measured import Group, Sweep

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


def load_search(
    folder: str | Path, people: Sequence[ReferenceSet], seed: int = 42, part: Subset | None = None
) -> list[Benchmark]:
    """Make the single-subject benchmark of a folder with other people than its own.

    Args:
        folder: Where ``single_subject.json`` is; its prompts are taken.
        people: Subjects.
        seed: Base seed.
        part: How much of the benchmark; ``None`` for all.
    """
    subjects = [Subject(person.name, person.word, person.images) for person in people]
    benchmark = load_benchmark(Path(folder) / "single_subject.json", subjects, seed)
    return [benchmark if part is None else benchmark.subset(**vars(part))]


def best_settings(sweep: Sweep) -> tuple[list[str], list[Table]]:
    """The best settings of each method of a grid in a sentence, and tables of all that were tried.

    Only of methods that several jobs have sampled on the same cases as text alone.
    """
    found = [pair for group in sweep.groups for pair in _searched(group, sweep.keys)]
    return [sentence for sentence, _ in found], [table for _, table in found]


def _searched(group: Group, keys: Sequence[str]) -> Iterator[tuple[str, Table]]:
    rows = [(entry, entry.run.row) for entry in group.entries if entry.run is not None]
    text_only = {entry.job.folder: row for entry, row in rows if row.method == TEXT_ONLY}
    for method in dict.fromkeys(row.method for _, row in rows if row.method != TEXT_ONLY):
        tried = [(e, r) for e, r in rows if r.method == method and e.job.folder in text_only]
        texts = [text_only[entry.job.folder] for entry, _ in tried]
        varied = [key for key in keys if len({entry.job.chosen.get(key) for entry, _ in tried}) > 1]
        if not varied or not _same_cases([row for _, row in tried], texts):
            continue
        best = most_similar([row for _, row in tried], texts[0])
        entry = next(entry for entry, row in tried if row is best)
        settings = " ".join(f"{key}={entry.job.chosen[key]}" for key in varied if key in entry.job.chosen)
        lines = []
        for (one, row), text in zip(tried, texts, strict=True):
            kept = row.prompt_consistency.mean / text.prompt_consistency.mean
            scores = row.identity_preservation, row.prompt_consistency, kept, row.detection_rate
            label = one.label(varied) + " (best)" * (row is best)
            lines.append((label, (*scores, row.personalization_seconds_per_subject, row.images)))
        lines.sort(key=lambda line: -line[1][0].mean)
        title, frame = f"{method_name(method)}: settings", make_frame("setting", _COLUMNS, lines)
        strong = [label for label, _ in lines if label.endswith(" (best)")]
        sentence = f"{method_name(method)}, best of {len(tried)}: {settings}"
        yield sentence, Table(f"search_{method}", title, frame, (RULE,), strong=strong)


def _same_cases(rows: Sequence[ResultRow], texts: Sequence[ResultRow]) -> bool:
    """Whether jobs have the same cases: there, text alone samples the same images in all."""
    means = [text.prompt_consistency.mean for text in texts]
    return len({row.images for row in rows}) == 1 and math.isclose(min(means), max(means), abs_tol=1e-3)
