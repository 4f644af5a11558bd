"""Sections of Markdown documents that commands write between markers: the README and pages of the site."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from fastcomposer.evaluation.load_results import BENCHMARKS, OURS, Collected, Run, distinguishing
from fastcomposer.evaluation.report.table import Cell, Column, Line, Table
from fastcomposer.evaluation.report.table_files import markdown_table
from fastcomposer.evaluation.report.tables import (
    BY_PUBLISHED,
    PUBLISHED,
    estimated,
    localization_table,
    main_table,
)
from fastcomposer.utils.files import write_atomically

_COLUMNS = (
    ("", "references"),
    ("", BY_PUBLISHED),
    ("", "prompt"),
    ("", "s / image"),
    ("", "s to personalise"),
    (PUBLISHED, "identity"),
    (PUBLISHED, "prompt"),
)
"""Group and title of the columns of a main table that the page of results shows."""


def check_section(key: str, file: str | Path, name: str) -> None:
    """Check that a document has the markers of a section.

    Args:
        key: Configuration key that names the document.
        file: The document.
        name: Name of the section.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the markers are missing.
    """
    if not Path(file).is_file():
        raise FileNotFoundError(f"{key}={file}: no such file")
    try:
        replace_section(Path(file).read_text(encoding="utf-8"), name, "")
    except ValueError as error:
        raise ValueError(f"{key}={file}: {error}") from None


def write_section(file: str | Path, name: str, text: str) -> None:
    """Replace a section of a document; see :func:`replace_section`."""
    path = Path(file)
    document = replace_section(path.read_text(encoding="utf-8"), name, text)
    write_atomically(path, lambda out: out.write(document.encode()))


def replace_section(document: str, name: str, text: str) -> str:
    """Put a text between the markers of a document.

    Args:
        document: Text of the document.
        name: Name of the section and of the target of ``make`` that writes it.
        text: The new section.

    Raises:
        ValueError: If the markers are missing.
    """
    first, last = f"<!-- {name}: written by make {name} -->", f"<!-- {name}: end -->"
    start, end = document.find(first), document.find(last)
    if not 0 <= start < end:
        raise ValueError(f"no section for make {name}: add the lines {first} and {last}")
    return f"{document[: start + len(first)]}\n{text}\n{document[end:]}"


def summary_section(collected: Collected) -> str:
    """Write one table of all methods, for the README."""
    names = collected.benchmarks()
    runs: dict[str, dict[str, Run]] = {}
    for name in names:
        main = collected.main(name)
        for label, run in zip(distinguishing(main), main, strict=True):
            runs.setdefault(label, {})[name] = run
    lines = []
    for label, by_benchmark in runs.items():
        row = next(iter(by_benchmark.values())).row
        scores = [
            cell
            for name in names
            for cell in (_scores(by_benchmark[name]) if name in by_benchmark else (Cell(), Cell()))
        ]
        costs = Cell(row.reference_images), Cell(row.personalization_seconds_per_subject)
        lines.append(Line(label, (*costs, *scores), row.method == OURS))
    columns = (
        Column("references", "count"),
        Column("s to personalise", "seconds"),
        *(
            Column(f"{title}, {BENCHMARKS[name].lower()}", "score")
            for name in names
            for title in ("identity", "prompt")
        ),
    )
    table = markdown_table(Table("summary", "", "method", columns, tuple(lines))).partition("\n\n")[2]
    return f"{table}\n\n{_measured(collected)}"


def _scores(run: Run) -> tuple[Cell, Cell]:
    return estimated(run.row.identity_preservation), estimated(run.row.prompt_consistency)


def results_section(collected: Collected) -> str:
    """Write narrowed main tables and the gain by localization, for the page of results."""
    parts = []
    for benchmark in collected.benchmarks():
        table = _narrowed(main_table(collected, benchmark))
        title = (
            f"{table.title}, {max(run.row.images for run in collected.main(benchmark)):,} images per method"
        )
        parts.append(markdown_table(replace(table, title=title, notes=(), number=None)))
    gain = localization_table(collected)
    if gain is not None:
        parts.append(markdown_table(replace(gain, notes=gain.notes[:1])))
    parts.append(
        f"{_measured(collected)} "
        "Published figures are of Stable Diffusion 1.5 and photos: compare orders, not values. Beside them "
        "identity is scored by the published protocol; the corrected one takes the largest faces and the "
        "best assignment and leaves negative scores as they are. [R] quoted by another paper, [M] recalled, "
        "unconfirmed."
    )
    return "\n\n".join(parts)


def _measured(collected: Collected) -> str:
    """State the machine, FastComposer's alpha and the meaning of brackets."""
    facts = collected.environment
    machine = f"{facts.get('device', 'an unnamed machine')}, {facts.get('cpus', '?')} cores"
    ours = [run.alpha for name in collected.benchmarks() if (run := collected.ours(name)) and run.alpha]
    shown = f" FastComposer at α = {', '.join(f'{alpha:g}' for alpha in sorted({*ours}))}." * bool(ours)
    return f"Measured on {machine}, torch {facts.get('torch', '?')}.{shown} Brackets hold 95 % intervals."


def _narrowed(table: Table) -> Table:
    """Keep the columns that the page shows, and the lines that were measured."""
    kept = [number for number, column in enumerate(table.columns) if (column.group, column.title) in _COLUMNS]
    lines = tuple(
        replace(line, cells=tuple(line.cells[number] for number in kept))
        for line in table.lines
        if any(cell.value is not None for cell in line.cells)
    )
    return replace(table, columns=tuple(table.columns[number] for number in kept), lines=lines)
