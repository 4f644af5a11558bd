"""The tables of an evaluation, made of its rows alone, with the published figures beside."""

from __future__ import annotations

from collections.abc import Callable, Sequence
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
from fastcomposer.evaluation.report.table import Cell, Column, Line, Quoted, Table
from fastcomposer.evaluation.statistics import Estimate

PUBLISHED = "published: Stable Diffusion 1.5, photos"
"""Heading over figures that were measured on another model and other data."""
BY_PUBLISHED = "identity, published protocol"
"""Heading of what stands beside published figures of identity."""
CORRECTED = "identity, corrected"
"""Heading of identity by the corrected protocol, which has no published counterpart."""


def make_tables(collected: Collected) -> list[Table]:
    """Make every table for which there are rows."""
    tables = [main_table(collected, name) for name in collected.benchmarks()]
    made = [alpha_table(collected, name) for name in collected.benchmarks()]
    made.append(localization_table(collected))
    made.append(distance_table(collected))
    made.append(speed_table(collected))
    return tables + [table for table in made if table is not None]


def main_table(collected: Collected, benchmark: str) -> Table:
    """All methods on a benchmark, as in the paper's tables 1 and 2.

    Args:
        collected: The evaluation.
        benchmark: Name of the benchmark.
    """
    here: list[tuple[Column, Callable[[Run], Cell]]] = [
        (Column("references", "count"), lambda run: Cell(run.row.reference_images)),
        (Column(BY_PUBLISHED, "score"), lambda run: estimated(run.row.identity_published)),
        (Column("prompt", "score"), lambda run: estimated(run.row.prompt_consistency)),
        (Column(CORRECTED, "score"), lambda run: estimated(run.row.identity_preservation)),
        (Column("detected", "share", bare=True), lambda run: estimated(run.row.detection_rate)),
        (Column("copy-paste", "score", bare=True), lambda run: estimated(run.row.copy_paste)),
        *(
            (Column(name, "score"), partial(_measure, name))
            for name in dict.fromkeys(name for run in collected.main(benchmark) for name in run.row.measures)
        ),
        (Column("s / image", "seconds"), lambda run: Cell(run.row.seconds_per_image)),
        (
            Column("s to personalise", "seconds"),
            lambda run: Cell(run.row.personalization_seconds_per_subject),
        ),
        (Column("stored / subject", "bytes"), lambda run: Cell(run.row.stored_bytes_per_subject)),
        (Column("peak memory", "bytes"), lambda run: Cell(run.row.peak_memory_bytes or None)),
    ]
    there = [
        (Column("identity", "score", PUBLISHED), "identity"),
        (Column("prompt", "score", PUBLISHED), "prompt"),
        (Column("s / subject", "seconds", PUBLISHED), "seconds"),
        (Column("memory", "bytes", PUBLISHED), "memory"),
    ]
    figures = [figure for figure in read_published() if figure.benchmark == benchmark]
    there = [(column, measure) for column, measure in there if any(f.measure == measure for f in figures)]
    runs = collected.main(benchmark)
    lines = []
    for run, name in zip(runs, distinguishing(runs), strict=True):
        cells = [get(run) for _, get in here] + [_quote(figures, run.row.method, m) for _, m in there]
        lines.append(Line(name, tuple(cells), run.row.method == OURS))
    present = {run.row.method for run in runs}
    for method in dict.fromkeys(f.method for f in figures if f.method not in present):
        cells = [Cell()] * len(here) + [_quote(figures, method, m) for _, m in there]
        lines.append(Line(method_name(method), tuple(cells)))
    number = list(BENCHMARKS).index(benchmark) + 1
    columns = tuple(column for column, _ in here) + tuple(column for column, _ in there)
    notes = _main_notes(collected, benchmark)
    return Table(benchmark, BENCHMARKS[benchmark], "method", columns, tuple(lines), notes, number)


def _measure(name: str, run: Run) -> Cell:
    return estimated(run.row.measures.get(name))


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
    """FastComposer by the share of steps that see the subjects; ``None`` without several settings."""
    runs = collected.sweep(benchmark)
    if not runs:
        return None
    columns = (
        Column(CORRECTED, "score"),
        Column("prompt", "score"),
        Column("detected", "share", bare=True),
        Column("copy-paste", "score", bare=True),
        Column("images", "count"),
    )
    best = knee(alpha_points(runs))
    lines = tuple(
        Line(
            f"{run.alpha:g}" + (" (knee)" if number == best else ""),
            (
                estimated(run.row.identity_preservation),
                estimated(run.row.prompt_consistency),
                estimated(run.row.detection_rate),
                estimated(run.row.copy_paste),
                Cell(run.row.images),
            ),
            number == best,
        )
        for number, run in enumerate(runs)
    )
    title = f"Delayed subject conditioning, {BENCHMARKS[benchmark].lower()}"
    note = (
        "α is the share of the steps that see the subjects. The knee is the setting farthest from the line "
        "between the smallest and the largest α, towards more of both scores, each scaled to its range."
    )
    return Table(f"alpha_{benchmark}", title, "α", columns, lines, (note,))


def alpha_points(runs: Sequence[Run]) -> list[AlphaPoint]:
    """The points of the trade-off curve."""
    return [
        AlphaPoint(run.alpha, run.row.identity_preservation, run.row.prompt_consistency)
        for run in runs
        if run.alpha is not None
    ]


def localization_table(collected: Collected) -> Table | None:
    """FastComposer trained with and without localization; ``None`` where one is missing."""
    lines: list[Line] = []
    for benchmark in collected.benchmarks():
        pair = collected.ablation(benchmark)
        if pair is None:
            continue
        name = BENCHMARKS[benchmark]
        for run, label in zip(pair, ("with", "without"), strict=True):
            row = run.row
            cells = (
                estimated(row.identity_preservation),
                estimated(row.prompt_consistency),
                Cell(row.images),
            )
            lines.append(Line(f"{name}, {label}", cells))
        cells = (
            estimated(difference(*pair, "identity")),
            estimated(difference(*pair, "prompt_consistency")),
            Cell(),
        )
        lines.append(Line(f"{name}, difference", cells, strong=True))
    if not lines:
        return None
    columns = (Column(CORRECTED, "score"), Column("prompt", "score"), Column("images", "count"))
    note = (
        "Differences are taken case by case, over the same people, prompts and noise; their intervals come "
        "from resampling the subjects. One that is apart from 0 does not hang on who was depicted."
    )
    return Table("localization", "Cross-attention localization", "training", columns, tuple(lines), (note,))


def distance_table(collected: Collected) -> Table | None:
    """FID and KID of the main tables' runs; ``None`` where they were not asked for."""
    lines, known = [], []
    for benchmark in collected.benchmarks():
        runs = collected.main(benchmark)
        for run, name in zip(runs, distinguishing(runs), strict=True):
            distances = run.row.distances
            if distances is None:
                continue
            known.append(distances)
            figures = (distances.fid, distances.kid, distances.kid_std, run.row.images)
            label = f"{BENCHMARKS[benchmark]}, {name}"
            lines.append(Line(label, tuple(map(Cell, figures)), run.row.method == OURS))
    if not lines:
        return None
    columns = (
        Column("FID", "score"),
        Column("KID", "score"),
        Column("its deviation over subsets", "score"),
        Column("images", "count"),
    )
    numbers = " or ".join(f"{number:,}" for number in sorted({one.real_images for one in known}))
    note = (
        f"Compared with {numbers} held-out images of the data, as {known[0].features} describes them. FID "
        "is the larger the fewer images there are: compare runs of as many. KID is not."
    )
    return Table("distances", "Distance from real images", "method", columns, tuple(lines), (note,))


def speed_table(collected: Collected) -> Table | None:
    """Time until the first image of a new person, in proportion to FastComposer's; ``None`` without it."""
    benchmark = next((name for name in collected.benchmarks() if collected.ours(name)), None)
    ours = collected.ours(benchmark) if benchmark else None
    if benchmark is None or ours is None:
        return None
    figures = [figure for figure in read_published() if figure.benchmark == "single_subject"]
    reference = _quote(figures, OURS, "seconds").quoted
    lines = []
    runs = collected.main(benchmark)
    for run, name in zip(runs, distinguishing(runs), strict=True):
        quoted = _quote(figures, run.row.method, "seconds").quoted
        ratios = tuple(Quoted(q.value / reference[0].value, q.tag) for q in quoted[:1] if reference)
        cells = (
            Cell(run.row.personalization_seconds_per_subject),
            Cell(run.row.seconds_per_image),
            Cell(first_image(run)),
            Cell(first_image(run) / first_image(ours)),
            Cell(quoted=quoted),
            Cell(quoted=ratios),
        )
        lines.append(Line(name, cells, run == ours))
    columns = (
        Column("s to personalise", "seconds"),
        Column("s / image", "seconds"),
        Column("s in all", "seconds"),
        Column("× FastComposer", "ratio"),
        Column("s in all", "seconds", PUBLISHED),
        Column("× FastComposer", "ratio", PUBLISHED),
    )
    note = "Text only needs no personalisation because it shows nobody in particular."
    return Table("speed", "Time to the first image", "method", columns, tuple(lines), (note,))


def first_image(run: Run) -> float:
    """Seconds from a new person's images to the first image drawn."""
    return run.row.personalization_seconds_per_subject + run.row.seconds_per_image


def estimated(estimate: Estimate | None) -> Cell:
    """A cell of an estimate."""
    return Cell() if estimate is None else Cell(estimate.mean, estimate.ci95)


def _quote(figures: Sequence[PublishedFigure], method: str, measure: str) -> Cell:
    found = [f for f in figures if f.method == method and f.measure == measure]
    return Cell(quoted=tuple(Quoted(f.value, f.tag, f.note) for f in found))
