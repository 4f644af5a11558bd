"""Tables of an evaluation, with the published figures beside, and the files made of them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import groupby
from operator import attrgetter
from typing import Literal

import pandas as pd

from fastcomposer.evaluation.benchmark import PLACEHOLDERS
from fastcomposer.evaluation.load_results import (
    BENCHMARKS,
    OURS,
    Collected,
    PublishedFigure,
    Run,
    difference,
    distinguishing,
    method_name,
    read_published,
)
from fastcomposer.evaluation.results import ResultRow
from fastcomposer.evaluation.statistics import Estimate
from fastcomposer.utils.markdown import markdown_table

Style = Literal["score", "share", "seconds", "ratio", "bytes", "count", "number"]
Cell = Estimate | float | tuple[PublishedFigure, ...] | None
"""A measured figure, with its interval where it has one, or published ones; ``None`` where there is none."""
MISSING = "–"
MINUS = "\N{MINUS SIGN}"
_LATEX = {character: f"\\{character}" for character in "&%$#_{}"} | {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "×": r"$\times$",
    "α": r"$\alpha$",
    MISSING: "--",
    MINUS: "$-$",
}
PUBLISHED = "published: Stable Diffusion 1.5, photos"
BY_PUBLISHED = "identity, published protocol"  # comparable with published figures, unlike the corrected one
CORRECTED = "identity, corrected"
FEWER_PEOPLE = (
    "The methods were measured on different numbers of people. Wherever two are compared, it is on the cases "
    "that both have."
)


@dataclass(frozen=True)
class Column:
    """How a column is headed and written."""

    title: str
    style: Style
    group: str = ""  # heading over several columns; empty for what was measured here
    bare: bool = False  # whether intervals are hidden, to save room


PEOPLE = Column("people", "count")
_PUBLISHED = {
    "identity": Column("identity", "score", PUBLISHED),
    "prompt": Column("prompt", "score", PUBLISHED),
    "seconds": Column("s / subject", "seconds", PUBLISHED),
    "memory": Column("memory", "bytes", PUBLISHED),
}
_SCORES = (Column(CORRECTED, "score"), Column("prompt", "score"))
_DETECTED = Column("detected", "share", bare=True)
_COPY_PASTE = Column("copy-paste", "score", bare=True)
_SUBJECTS = {
    "coverage": Column("coverage", "share", bare=True),
    "duplicates": Column("duplicates", "share", bare=True),
    "head_count": Column("head count", "share", bare=True),
    "confusion": Column("ID-Conf", "score", bare=True),
    "copy_paste_ratio": Column("copy-paste ratio", "score", bare=True),
}
_COSTS = {
    "seconds_per_image": Column("s / image", "seconds"),
    "personalization_seconds_per_subject": Column("s to personalise", "seconds"),
    "stored_bytes_per_subject": Column("stored / subject", "bytes"),
    "peak_memory_bytes": Column("peak memory", "bytes"),
}
_OF_SUBJECTS = (
    "Coverage is the fraction of images in which each subject has its own face, as similar as images of one "
    "person are, and nobody appears twice (duplicates); head count that with as many faces as subjects. "
    "ID-Conf is the margin between a subject's best and second-best face, high where nobody is confused; the "
    "copy-paste ratio is MultiID-Bench's, 1 for a copy of the reference."
)


@dataclass(frozen=True)
class Table:
    """A table, whose frame holds a :data:`Cell` for each label and :class:`Column`."""

    key: str  # short name for files and links
    title: str
    frame: pd.DataFrame
    notes: tuple[str, ...] = ()  # sentences below it
    number: int | None = None  # of the paper's table that it corresponds to
    strong: Collection[str] = ()  # labels of the lines in bold

    @property
    def heading(self) -> str:
        """Title with the number."""
        return self.title if self.number is None else f"Table {self.number}. {self.title}"

    @property
    def groups(self) -> list[tuple[str, int]]:
        """Headings over the columns, and how many columns each covers."""
        return [(name, len(list(columns))) for name, columns in groupby(c.group for c in self.frame)]

    def texts(self) -> pd.DataFrame:
        """The cells as text, by label and column."""
        return self.frame.apply(lambda cells: cells.map(lambda cell: cell_text(cell, cells.name)))


def make_frame(
    first: str, columns: Sequence[Column], lines: Iterable[tuple[str, Sequence[Cell]]]
) -> pd.DataFrame:
    """Make the frame of a table: heading of the labels, columns after them, label and cells of each line."""
    labels, cells = zip(*lines, strict=True)
    return pd.DataFrame(list(cells), pd.Index(labels, name=first), list(columns), dtype=object)


def written(value: float, style: Style) -> str:
    """Write a figure as readers expect it."""
    if style == "score":
        return f"{value:z.3f}".replace("-", MINUS)
    if style == "number":
        return f"{value:.4g}".replace("-", MINUS)
    if style == "share":
        return f"{100 * value:z.1f} %".replace("-", MINUS)
    if style == "bytes":
        for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
            if value >= size:
                return f"{value / size:.3g} {unit}"
        return f"{value:.0f}" + " B" * (value != 0)
    if style == "ratio":
        return f"{value:,.0f}×" if value >= 10 else f"{value:.2g}×"
    if style == "seconds" and 0 < value < 100:
        return f"{value:.2g}" if value < 1 else f"{value:.1f}"
    return f"{value:,.0f}"


def cell_parts(cell: Cell, column: Column) -> list[tuple[str, str]]:
    """Kind and text of each part of a cell: ``figure`` and ``interval``, ``quoted`` ones, or ``none``."""
    style = column.style
    if isinstance(cell, tuple) and cell:
        quoted = [f"{written(q.value, style)}{f' {q.note}' * bool(q.note)} [{q.tag}]" for q in cell]
        return [("quoted", text) for text in quoted]
    if cell is None or isinstance(cell, tuple):
        return [("none", MISSING)]
    if not isinstance(cell, Estimate):
        return [("figure", written(cell, style))]
    low, high = (written(end, style) for end in cell.ci95)
    interval = [] if column.bare else [("interval", f"[{low}, {high}]")]
    return [("figure", written(cell.mean, style)), *interval]


def cell_text(cell: Cell, column: Column) -> str:
    """Write a cell on one line."""
    parts = cell_parts(cell, column)
    return ("; " if parts[0][0] == "quoted" else " ").join(text for _, text in parts)


def to_markdown(table: Table, heading: bool = True) -> str:
    """Write a table as Markdown, with its heading and its notes."""
    texts = table.texts()
    # A Markdown table has one heading only, so the group goes into it.
    titles = [f"published: {c.title}" if c.group else c.title for c in texts]
    marked = [f"**{label}**" if label in table.strong else label for label in texts.index]
    rows = [[label, *cells] for label, cells in zip(marked, texts.to_numpy(), strict=True)]
    lines = markdown_table([texts.index.name, *titles], rows, ["---", *["---:"] * len(titles)])
    return "\n\n".join([*[f"## {table.heading}"] * heading, lines, *table.notes])


def to_csv(tables: Sequence[Table]) -> str:
    """Write every figure on a line of its own, unrounded."""
    names = ("table", "line", "measure", "value", "ci95_low", "ci95_high", "source")
    figures = [
        (table.key, label, column.title, *figure)
        for table in tables
        for label, cells in zip(table.frame.index, table.frame.to_numpy(), strict=True)
        for column, cell in zip(table.frame, cells, strict=True)
        for figure in _figures(cell)
    ]
    return pd.DataFrame(figures, columns=names, dtype=object).to_csv(index=False, lineterminator="\n")


def _figures(cell: Cell) -> list[tuple[object, ...]]:
    """Value, interval and source of the figures in a cell."""
    if isinstance(cell, tuple):
        return [(q.value, "", "", f"{f'published {q.note}'.strip()} [{q.tag}]") for q in cell]
    if isinstance(cell, Estimate):
        return [(cell.mean, *cell.ci95, "measured")]
    return [] if cell is None else [(cell, "", "", "measured")]


def to_latex(tables: Sequence[Table]) -> str:
    """Write the tables for a document that loads ``booktabs`` and ``graphicx``."""
    return "\n\n".join(map(_latex_table, tables)) + "\n"


def _latex_table(table: Table) -> str:
    texts = table.texts()
    heads = [(_latex(c.group), _latex(c.title)) for c in (Column(texts.index.name, "count"), *texts)]
    labels = [rf"\textbf{{{_latex(t)}}}" if t in table.strong else _latex(t) for t in texts.index]
    lines = [[label, *map(_latex, cells)] for label, cells in zip(labels, texts.to_numpy(), strict=True)]
    grouped = any(name for name, _ in table.groups)
    frame = pd.DataFrame(
        lines, columns=pd.MultiIndex.from_tuples(heads) if grouped else [title for _, title in heads]
    )
    layout = "@{\\quad}".join(["l", *("r" * count for _, count in table.groups)])
    tabular = frame.to_latex(index=False, escape=False, column_format=layout, multicolumn_format="c")
    parts = [
        r"\begin{table}",
        r"\centering",
        rf"\caption{{{_latex(f'{table.title}. ' + ' '.join(table.notes))}}}",
        rf"\label{{tab:{table.key.replace('_', '-')}}}",
        r"\resizebox{\linewidth}{!}{%",
        tabular.strip() + "}",
        r"\end{table}",
    ]
    return "\n".join(parts)


def _latex(text: str) -> str:
    return "".join(_LATEX.get(character, character) for character in text)


def make_tables(collected: Collected) -> list[Table]:
    """Make every table for which there are rows."""
    tables = [main_table(collected, name) for name in collected.benchmarks()]
    made = [alpha_table(collected, name) for name in collected.benchmarks()]
    made.append(localization_table(collected))
    made.append(distance_table(collected))
    made.append(speed_table(collected))
    return tables + [table for table in made if table is not None]


def main_table(collected: Collected, benchmark: str) -> Table:
    """All methods on a benchmark; the paper's are its tables 1 and 2."""
    runs = collected.main(benchmark)
    names = distinguishing(runs)
    people = _people_differ(runs)
    measures = dict.fromkeys(name for run in runs for name in run.row.measures)
    subjects = _subject_columns(runs, benchmark)
    measured: list[tuple[Column, Callable[[ResultRow], Cell]]] = [
        (Column("references", "count"), lambda row: row.reference_images),
        (Column(BY_PUBLISHED, "score"), lambda row: row.identity_published),
        (Column("prompt", "score"), lambda row: row.prompt_consistency),
        (Column(CORRECTED, "score"), lambda row: row.identity_preservation),
        (_DETECTED, lambda row: row.detection_rate),
        (_COPY_PASTE, lambda row: row.copy_paste),
        *((_SUBJECTS[name], attrgetter(name)) for name in subjects),
        *((Column(name, "score"), partial(_measure, name)) for name in measures),
        *((column, partial(_cost, name)) for name, column in _COSTS.items()),
    ]
    figures = [figure for figure in read_published() if figure.benchmark == benchmark]
    published = {
        measure: column for measure, column in _PUBLISHED.items() if measure in {f.measure for f in figures}
    }
    lines: list[tuple[str, Sequence[Cell]]] = []
    for run, name in zip(runs, names, strict=True):
        quoted = (_quoted(figures, run.row.method, measure) for measure in published)
        counted = (run.people,) * people
        lines.append((name, (*counted, *(get(run.row) for _, get in measured), *quoted)))
    for method in dict.fromkeys(figure.method for figure in figures):
        if method not in {run.row.method for run in runs}:
            quoted = (_quoted(figures, method, measure) for measure in published)
            lines.append((method_name(method), (*[None] * (people + len(measured)), *quoted)))
    columns = [*(PEOPLE,) * people, *(column for column, _ in measured), *published.values()]
    return Table(
        benchmark,
        BENCHMARKS[benchmark],
        make_frame("method", columns, lines),
        (*_main_notes(collected, benchmark), *(_OF_SUBJECTS,) * bool(subjects), *origin_notes(runs)),
        [*PLACEHOLDERS].index(benchmark) + 1 if benchmark in PLACEHOLDERS else None,
        [name for run, name in zip(runs, names, strict=True) if run.is_own_method],
    )


def _people_differ(runs: Sequence[Run]) -> bool:
    return len({run.people for run in runs}) > 1


def _subject_columns(runs: Sequence[Run], benchmark: str) -> list[str]:
    """Scores of several people that there are figures of; none for the paper's single subjects."""
    several = benchmark != "single_subject"
    return [name for name in _SUBJECTS if several and any(getattr(run.row, name) for run in runs)]


def _measure(name: str, row: ResultRow) -> Cell:
    return row.measures.get(name)


def _cost(name: str, row: ResultRow) -> Cell:
    """A cost; ``None`` where it is not measured, as for images of another system."""
    value: float = getattr(row, name)
    return None if row.origin or (name == "peak_memory_bytes" and not value) else value


def origin_notes(runs: Iterable[Run]) -> tuple[str, ...]:
    """State for each run of another system's images where they come from, and what scored them."""
    notes = []
    for run in runs:
        if (origin := run.row.origin) is None:
            continue
        stated = [f"{key} {value}" for key, value in run.row.settings.items()]
        details = ", ".join(filter(None, (*stated, origin.note, f"scored by extractors {run.row.scored_by}")))
        missing = f"; {origin.missing:,} cases without an image are left out" * bool(origin.missing)
        notes.append(f"{run.name}: images of another system, {details}{missing}.")
    return tuple(notes)


def _main_notes(collected: Collected, benchmark: str) -> tuple[str, ...]:
    runs = collected.main(benchmark)
    notes = ["Brackets hold 95 % intervals from resampling subjects."]
    if benchmark in PLACEHOLDERS:
        notes.append(
            "Published figures of identity are to be compared with the one by the published protocol. The "
            "corrected one takes the largest faces and the best assignment and leaves negative scores as "
            "they are; the other tables and plots have it alone."
        )
    else:
        notes.append("These are not the scores of the benchmark's authors: compare methods in this table.")
    if _people_differ(runs):
        notes.append(FEWER_PEOPLE)
    if shown := shown_alphas(runs):
        notes.append(f"The table shows {shown}.")
        if any(run.is_own_method and run.alpha not in (None, collected.alpha) for run in runs):
            notes.append(f"The measured setting nearest to the α = {collected.alpha:g} asked for is taken.")
    if benchmark in PLACEHOLDERS:
        notes.append(
            "The published figures come from a far larger model and from photos of celebrities: orderings "
            "can be compared, values cannot. [V] read in the published code, [R] quoted by another paper, "
            "[M] recalled, unconfirmed."
        )
    return tuple(notes)


def shown_alphas(runs: Iterable[Run]) -> str:
    """State FastComposer's α, and FastComposer-ID's where it differs; empty without any."""
    alphas: dict[str, set[float]] = {}
    for run in runs:
        if run.is_own_method and run.alpha is not None:
            alphas.setdefault(run.name, set()).add(run.alpha)
    texts = {name: ", ".join(f"{alpha:g}" for alpha in sorted(found)) for name, found in alphas.items()}
    stated = [f"{name} at α = {text}" for name, text in texts.items()]
    return " and ".join(stated if len({*texts.values()}) > 1 else stated[:1])


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


@dataclass(frozen=True)
class AlphaPoint:
    """Identity and prompt consistency at one alpha."""

    alpha: float
    identity: Estimate
    consistency: Estimate


def knee(points: Sequence[AlphaPoint]) -> int | None:
    """Find the setting after which more of one score costs most of the other.

    Both axes are scaled to the range they cover, a chord joins the smallest and the largest alpha, and the
    knee is the point farthest from that chord on its better side (more identity and more consistency).

    Returns its index among points of rising alpha; ``None`` with fewer than three, or none beyond the chord.
    """
    if len(points) < 3:
        return None
    xs = _scaled([point.consistency.mean for point in points])
    ys = _scaled([point.identity.mean for point in points])
    along = (xs[-1] - xs[0], ys[-1] - ys[0])
    # The normal of the chord that points towards larger scores.
    normal = (-along[1], along[0]) if along[0] - along[1] >= 0 else (along[1], -along[0])
    distances = [(x - xs[0]) * normal[0] + (y - ys[0]) * normal[1] for x, y in zip(xs, ys, strict=True)]
    best = max(range(len(points)), key=distances.__getitem__)
    return best if distances[best] > 1e-9 else None


def _scaled(values: list[float]) -> list[float]:
    low, high = min(values), max(values)
    return [(value - low) / (high - low) if high > low else 0.0 for value in values]


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
        "from resampling the subjects. One whose interval excludes 0 does not depend on who was depicted."
    )
    frame = make_frame("training", (*_SCORES, Column("images", "count")), lines)
    return Table("localization", "Cross-attention localization", frame, (note,), strong=strong)


def distance_table(collected: Collected) -> Table | None:
    """FID and KID of the main tables' runs; ``None`` where they were not asked for."""
    named = [
        (f"{BENCHMARKS[benchmark]}, {name}", run, run.row.distances)
        for benchmark in collected.benchmarks()
        for runs in [collected.main(benchmark)]
        for run, name in zip(runs, distinguishing(runs), strict=True)
    ]
    lines = [(label, run, found) for label, run, found in named if found is not None]
    if not lines:
        return None
    scores = (Column(title, "score") for title in ("FID", "KID", "its deviation over subsets"))
    numbers = " or ".join(f"{number:,}" for number in sorted({found.real_images for _, _, found in lines}))
    note = (
        f"Compared with {numbers} held-out images of the data, as {lines[0][2].features} describes them. FID "
        "is the larger the fewer images there are: compare runs of as many. KID is not."
    )
    cells = [(label, (found.fid, found.kid, found.kid_std, run.row.images)) for label, run, found in lines]
    frame = make_frame("method", [*scores, Column("images", "count")], cells)
    strong = [label for label, run, _ in lines if run.is_own_method]
    return Table("distances", "Distance from real images", frame, (note,), strong=strong)


def speed_table(collected: Collected) -> Table | None:
    """Time until the first image of a new person, in proportion to FastComposer's; ``None`` without it."""
    ours = collected.first_ours()
    if ours is None:
        return None
    figures = [figure for figure in read_published() if figure.benchmark == "single_subject"]
    reference = _quoted(figures, OURS, "seconds")
    runs = [run for run in collected.main(ours.row.benchmark) if run.row.origin is None]
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
