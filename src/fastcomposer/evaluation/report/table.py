"""Tables as records, and how their figures are written."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Style = Literal["score", "share", "seconds", "ratio", "bytes", "count", "number"]
MISSING = "–"
MINUS = "\N{MINUS SIGN}"


@dataclass(frozen=True)
class Quoted:
    """A figure that others published.

    Attributes:
        value: The figure.
        tag: How sure it is: V, R or M (docs/method.md).
        note: What else to say, such as ``re-run``.
    """

    value: float
    tag: str
    note: str = ""


@dataclass(frozen=True)
class Cell:
    """What stands in one place of a table: a measured figure, quoted ones, or nothing.

    Attributes:
        value: The measured figure.
        interval: Its 95 % interval.
        quoted: Published figures.
    """

    value: float | None = None
    interval: tuple[float, float] | None = None
    quoted: tuple[Quoted, ...] = ()


@dataclass(frozen=True)
class Column:
    """One column.

    Attributes:
        title: Its heading.
        style: How its figures are written.
        group: Heading over several columns; empty for what was measured here.
        bare: Whether intervals stay out of sight, to save room.
    """

    title: str
    style: Style
    group: str = ""
    bare: bool = False


@dataclass(frozen=True)
class Line:
    """One line of a table.

    Attributes:
        label: What it is about.
        cells: One for each column.
        strong: Whether it is the line to look at.
    """

    label: str
    cells: tuple[Cell, ...]
    strong: bool = False


@dataclass(frozen=True)
class Table:
    """A table.

    Attributes:
        key: Short name for files and links.
        title: Heading.
        first: Heading of the labels.
        columns: Columns after the labels.
        lines: Lines.
        notes: Sentences to read with it.
        number: Of the paper's table that it corresponds to.
    """

    key: str
    title: str
    first: str
    columns: tuple[Column, ...]
    lines: tuple[Line, ...]
    notes: tuple[str, ...] = ()
    number: int | None = None

    @property
    def heading(self) -> str:
        """Title with the number."""
        return self.title if self.number is None else f"Table {self.number}. {self.title}"


def written(value: float, style: Style) -> str:
    """Write a figure as readers expect it."""
    if style == "score":
        return f"{value:z.3f}".replace("-", MINUS)
    if style == "number":
        return f"{value:.4g}".replace("-", MINUS)
    if style == "share":
        return f"{100 * value:.1f} %"
    if style == "bytes":
        return _bytes(value)
    if style == "ratio":
        return f"{value:,.0f}×" if value >= 10 else f"{value:.2g}×"
    if style == "seconds" and 0 < value < 100:
        return f"{value:.2g}" if value < 1 else f"{value:.1f}"
    return f"{value:,.0f}"


def quoted_text(quoted: Sequence[Quoted], style: Style) -> str:
    """Write published figures with their tags."""
    return "; ".join(f"{written(q.value, style)}{f' {q.note}' * bool(q.note)} [{q.tag}]" for q in quoted)


def _bytes(value: float) -> str:
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if value >= size:
            return f"{value / size:.3g} {unit}"
    return f"{value:.0f}" if value == 0 else f"{value:.0f} B"
