"""Tables of results: data frames whose columns hold how they are written, and the files made of them."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Literal

import pandas as pd

from fastcomposer.evaluation.published import PublishedFigure
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


@dataclass(frozen=True)
class Column:
    """How a column is headed and written."""

    title: str
    style: Style
    group: str = ""  # heading over several columns; empty for what was measured here
    bare: bool = False  # whether intervals are hidden, to save room


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
        return f"{100 * value:.1f} %"
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
