"""Tables as Markdown, CSV and LaTeX."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from io import StringIO
from itertools import groupby

from fastcomposer.evaluation.report.paper_claims import Expectation
from fastcomposer.evaluation.report.table import (
    MINUS,
    MISSING,
    Cell,
    Column,
    Line,
    Table,
    quoted_text,
    written,
)

_CSV_HEADER = ("table", "line", "measure", "value", "ci95_low", "ci95_high", "source")
_LATEX = {
    "\\": r"\textbackslash{}",
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "_": r"\_",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "×": r"$\times$",
    "α": r"$\alpha$",
    MISSING: "--",
    MINUS: "$-$",
}


def cell_text(cell: Cell, column: Column) -> str:
    """Write a cell on one line."""
    style = column.style
    if cell.quoted:
        return quoted_text(cell.quoted, style)
    if cell.value is None:
        return MISSING
    text = written(cell.value, style)
    if cell.interval is None or column.bare:
        return text
    return f"{text} [{written(cell.interval[0], style)}, {written(cell.interval[1], style)}]"


def to_markdown(
    tables: Sequence[Table], expectations: Sequence[Expectation], deviations: Sequence[str]
) -> str:
    """Write everything as one Markdown document.

    Args:
        tables: The tables.
        expectations: What the paper makes one expect, and whether it holds.
        deviations: Orderings that differ from the paper's.
    """
    parts = ["# Results"]
    parts += [markdown_table(table) for table in tables]
    parts += ["## Expected from the paper"]
    parts += ["\n".join(_markdown_expectation(expectation) for expectation in expectations)]
    if deviations:
        parts += ["Orderings that differ from the paper's:", "\n".join(f"- {text}" for text in deviations)]
    return "\n\n".join(parts) + "\n"


def markdown_table(table: Table) -> str:
    """Write a table with its heading and its notes as Markdown."""
    head = [table.first, *(_full_title(column) for column in table.columns)]
    lines = [_markdown_line(head), _markdown_line(["---", *(["---:"] * len(table.columns))])]
    lines += [_markdown_line(_texts(table, line, strong="**")) for line in table.lines]
    return "\n\n".join([f"## {table.heading}", "\n".join(lines), *table.notes])


def to_csv(tables: Sequence[Table]) -> str:
    """Write every figure on a line of its own, unrounded."""
    text = StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(_CSV_HEADER)
    for table in tables:
        for line in table.lines:
            for column, cell in zip(table.columns, line.cells, strict=True):
                begin = (table.key, line.label, column.title)
                if cell.value is not None:
                    writer.writerow((*begin, cell.value, *(cell.interval or ("", "")), "measured"))
                for quoted in cell.quoted:
                    source = f"published {quoted.note}".strip()
                    writer.writerow((*begin, quoted.value, "", "", f"{source} [{quoted.tag}]"))
    return text.getvalue()


def to_latex(tables: Sequence[Table]) -> str:
    """Write the tables for a document that loads ``booktabs`` and ``graphicx``."""
    return "\n\n".join(_latex_table(table) for table in tables) + "\n"


def _latex_table(table: Table) -> str:
    groups = [(name, len(list(columns))) for name, columns in groupby(table.columns, lambda c: c.group)]
    layout = "l" + "".join(" " + "r" * count for _, count in groups).replace(" ", "@{\\quad}")
    lines = [
        r"\begin{table}",
        r"\centering",
        rf"\caption{{{_latex(table.title)}. {_latex(' '.join(table.notes))}}}",
        rf"\label{{tab:{table.key.replace('_', '-')}}}",
        r"\resizebox{\linewidth}{!}{%",
        rf"\begin{{tabular}}{{{layout}}}",
        r"\toprule",
    ]
    if any(name for name, _ in groups):
        heads = [rf"\multicolumn{{{count}}}{{c}}{{{_latex(name)}}}" for name, count in groups]
        lines += [f"& {' & '.join(heads)} \\\\"]
    lines += [_latex_line([_latex(table.first), *(_latex(column.title) for column in table.columns)])]
    lines += [r"\midrule"]
    for line in table.lines:
        texts = [_latex(text) for text in _texts(table, line)]
        lines.append(_latex_line([rf"\textbf{{{texts[0]}}}" if line.strong else texts[0], *texts[1:]]))
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}}", r"\end{table}"])


def _texts(table: Table, line: Line, strong: str = "") -> list[str]:
    mark = strong if line.strong else ""
    cells = zip(table.columns, line.cells, strict=True)
    return [f"{mark}{line.label}{mark}", *(cell_text(cell, column) for column, cell in cells)]


def _full_title(column: Column) -> str:
    # A Markdown table has one heading only, so the group goes into it.
    return f"published: {column.title}" if column.group else column.title


def _markdown_line(texts: Sequence[str]) -> str:
    return "| " + " | ".join(text.replace("|", r"\|") for text in texts) + " |"


def _markdown_expectation(expectation: Expectation) -> str:
    evidence = "".join(f"\n  - {text}" for text in expectation.evidence)
    return f"- **{expectation.verdict}**: {expectation.claim}{evidence}"


def _latex_line(texts: Sequence[str]) -> str:
    return " & ".join(texts) + r" \\"


def _latex(text: str) -> str:
    return "".join(_LATEX.get(character, character) for character in text)
