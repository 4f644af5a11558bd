"""The tables of an evaluation, made of its rows alone, with the published figures beside."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

from fastcomposer.evaluation.load_results import (
    BENCHMARKS,
    OURS,
    Collected,
    Run,
    difference,
    distinguishing,
    method_name,
)
from fastcomposer.evaluation.published import PublishedFigure, read_published
from fastcomposer.evaluation.report.plots import AlphaPoint, knee
from fastcomposer.evaluation.report.table import Cell, Column, Table, make_frame
from fastcomposer.evaluation.results import ResultRow

PUBLISHED = "published: Stable Diffusion 1.5, photos"
BY_PUBLISHED = "identity, published protocol"  # comparable with published figures, unlike the corrected one
CORRECTED = "identity, corrected"

_PUBLISHED = {
    "identity": Column("identity", "score", PUBLISHED),
    "prompt": Column("prompt", "score", PUBLISHED),
    "seconds": Column("s / subject", "seconds", PUBLISHED),
    "memory": Column("memory", "bytes", PUBLISHED),
}
_SCORES = (Column(CORRECTED, "score"), Column("prompt", "score"))
_DETECTED = Column("detected", "share", bare=True)
_COPY_PASTE = Column("copy-paste", "score", bare=True)


def make_tables(collected: Collected) -> list[Table]:
    """Make every table for which there are rows."""
    tables = [main_table(collected, name) for name in collected.benchmarks()]
    made = [alpha_table(collected, name) for name in collected.benchmarks()]
    made.append(localization_table(collected))
    made.append(distance_table(collected))
    made.append(speed_table(collected))
    return tables + [table for table in made if table is not None]


def main_table(collected: Collected, benchmark: str) -> Table:
    """All methods on a benchmark, as in the paper's tables 1 and 2."""
    runs = collected.main(benchmark)
    names = distinguishing(runs)
    measures = dict.fromkeys(name for run in runs for name in run.row.measures)
    measured: list[tuple[Column, Callable[[ResultRow], Cell]]] = [
        (Column("references", "count"), lambda row: row.reference_images),
        (Column(BY_PUBLISHED, "score"), lambda row: row.identity_published),
        (Column("prompt", "score"), lambda row: row.prompt_consistency),
        (Column(CORRECTED, "score"), lambda row: row.identity_preservation),
        (_DETECTED, lambda row: row.detection_rate),
        (_COPY_PASTE, lambda row: row.copy_paste),
        *((Column(name, "score"), partial(_measure, name)) for name in measures),
        (Column("s / image", "seconds"), lambda row: row.seconds_per_image),
        (Column("s to personalise", "seconds"), lambda row: row.personalization_seconds_per_subject),
        (Column("stored / subject", "bytes"), lambda row: row.stored_bytes_per_subject),
        (Column("peak memory", "bytes"), lambda row: row.peak_memory_bytes or None),
    ]
    figures = [figure for figure in read_published() if figure.benchmark == benchmark]
    published = {
        measure: column for measure, column in _PUBLISHED.items() if measure in {f.measure for f in figures}
    }
    lines: list[tuple[str, Sequence[Cell]]] = []
    for run, name in zip(runs, names, strict=True):
        quoted = (_quoted(figures, run.row.method, measure) for measure in published)
        lines.append((name, (*(get(run.row) for _, get in measured), *quoted)))
    for method in dict.fromkeys(figure.method for figure in figures):
        if method not in {run.row.method for run in runs}:
            quoted = (_quoted(figures, method, measure) for measure in published)
            lines.append((method_name(method), (*[None] * len(measured), *quoted)))
    columns = [*(column for column, _ in measured), *published.values()]
    return Table(
        benchmark,
        BENCHMARKS[benchmark],
        make_frame("method", columns, lines),
        _main_notes(collected, benchmark),
        list(BENCHMARKS).index(benchmark) + 1,
        [name for run, name in zip(runs, names, strict=True) if run.row.method == OURS],
    )


def _measure(name: str, row: ResultRow) -> Cell:
    return row.measures.get(name)


def _main_notes(collected: Collected, benchmark: str) -> tuple[str, ...]:
    notes = [
        "Brackets hold 95 % intervals from resampling subjects.",
        "Published figures of identity are to be compared with the one by the published protocol. The "
        "corrected one takes the largest faces and the best assignment and leaves negative scores as they "
        "are; the other tables and plots have it alone.",
    ]
    main = collected.ours(benchmark)
    if main is not None and main.alpha is not None:
        notes.append(f"FastComposer is shown at α = {main.alpha:g}.")
        if main.alpha != collected.alpha:
            notes.append(f"That is the measured setting nearest to the α = {collected.alpha:g} asked for.")
    notes.append(
        "The published figures come from a far larger model and from photos of celebrities: orderings can be "
        "compared, values cannot. [V] read in the published code, [R] quoted by another paper, [M] recalled, "
        "unconfirmed."
    )
    return tuple(notes)


def alpha_table(collected: Collected, benchmark: str) -> Table | None:
    """FastComposer by the fraction of steps that see the subjects; ``None`` without several settings."""
    runs = collected.sweep(benchmark)
    if not runs:
        return None
    best = knee(alpha_points(runs))
    labels = [f"{run.alpha:g}" + " (knee)" * (number == best) for number, run in enumerate(runs)]
    columns = (*_SCORES, _DETECTED, _COPY_PASTE, Column("images", "count"))
    rows = [run.row for run in runs]
    cells = [
        (row.identity_preservation, row.prompt_consistency, row.detection_rate, row.copy_paste, row.images)
        for row in rows
    ]
    title = f"Delayed subject conditioning, {BENCHMARKS[benchmark].lower()}"
    note = (
        "α is the fraction of the steps that see the subjects. The knee is the setting farthest from the "
        "line between the smallest and the largest α, towards more of both scores, each scaled to its range."
    )
    frame = make_frame("α", columns, zip(labels, cells, strict=True))
    knees = [label for label in labels if "knee" in label]
    return Table(f"alpha_{benchmark}", title, frame, (note,), strong=knees)


def alpha_points(runs: Sequence[Run]) -> list[AlphaPoint]:
    """The points of the trade-off curve."""
    return [
        AlphaPoint(run.alpha, run.row.identity_preservation, run.row.prompt_consistency)
        for run in runs
        if run.alpha is not None
    ]


def localization_table(collected: Collected) -> Table | None:
    """FastComposer trained with and without localization; ``None`` where one is missing."""
    lines: list[tuple[str, Sequence[Cell]]] = []
    strong = []
    for benchmark in collected.benchmarks():
        pair = collected.ablation(benchmark)
        if pair is None:
            continue
        for run, label in zip(pair, ("with", "without"), strict=True):
            cells = run.row.identity_preservation, run.row.prompt_consistency, run.row.images
            lines.append((f"{BENCHMARKS[benchmark]}, {label}", cells))
        differences = difference(*pair, "identity"), difference(*pair, "prompt_consistency"), None
        strong.append(f"{BENCHMARKS[benchmark]}, difference")
        lines.append((strong[-1], differences))
    if not lines:
        return None
    note = (
        "Differences are taken case by case, over the same people, prompts and noise; their intervals come "
        "from resampling the subjects. One that is apart from 0 does not hang on who was depicted."
    )
    frame = make_frame("training", (*_SCORES, Column("images", "count")), lines)
    return Table("localization", "Cross-attention localization", frame, (note,), strong=strong)


def distance_table(collected: Collected) -> Table | None:
    """FID and KID of the main tables' runs; ``None`` where they were not asked for."""
    named = [
        (f"{BENCHMARKS[benchmark]}, {name}", run.row, run.row.distances)
        for benchmark in collected.benchmarks()
        for runs in [collected.main(benchmark)]
        for run, name in zip(runs, distinguishing(runs), strict=True)
    ]
    lines = [(label, row, found) for label, row, found in named if found is not None]
    if not lines:
        return None
    scores = (Column(title, "score") for title in ("FID", "KID", "its deviation over subsets"))
    numbers = " or ".join(f"{number:,}" for number in sorted({found.real_images for _, _, found in lines}))
    note = (
        f"Compared with {numbers} held-out images of the data, as {lines[0][2].features} describes them. FID "
        "is the larger the fewer images there are: compare runs of as many. KID is not."
    )
    cells = [(label, (found.fid, found.kid, found.kid_std, row.images)) for label, row, found in lines]
    frame = make_frame("method", [*scores, Column("images", "count")], cells)
    strong = [label for label, row, _ in lines if row.method == OURS]
    return Table("distances", "Distance from real images", frame, (note,), strong=strong)


def speed_table(collected: Collected) -> Table | None:
    """Time until the first image of a new person, in proportion to FastComposer's; ``None`` without it."""
    ours = collected.first_ours()
    if ours is None:
        return None
    figures = [figure for figure in read_published() if figure.benchmark == "single_subject"]
    reference = _quoted(figures, OURS, "seconds")
    runs = collected.main(ours.row.benchmark)
    names = distinguishing(runs)
    lines: list[tuple[str, Sequence[Cell]]] = []
    for run, name in zip(runs, names, strict=True):
        quoted = _quoted(figures, run.row.method, "seconds")
        ratios = [replace(q, value=q.value / reference[0].value, note="") for q in quoted[:1] if reference]
        seconds = run.row.personalization_seconds_per_subject, run.row.seconds_per_image, first_image(run)
        lines.append((name, (*seconds, first_image(run) / first_image(ours), quoted, tuple(ratios))))
    columns = (
        Column("s to personalise", "seconds"),
        Column("s / image", "seconds"),
        Column("s in all", "seconds"),
        Column("× FastComposer", "ratio"),
        Column("s in all", "seconds", PUBLISHED),
        Column("× FastComposer", "ratio", PUBLISHED),
    )
    note = "Text only needs no personalisation because it shows nobody in particular."
    frame = make_frame("method", columns, lines)
    return Table("speed", "Time to the first image", frame, (note,), strong=[names[runs.index(ours)]])


def first_image(run: Run) -> float:
    """Seconds from a new person's images to the first image."""
    return run.row.personalization_seconds_per_subject + run.row.seconds_per_image


def _quoted(figures: Sequence[PublishedFigure], method: str, measure: str) -> tuple[PublishedFigure, ...]:
    return tuple(f for f in figures if f.method == method and f.measure == measure)
