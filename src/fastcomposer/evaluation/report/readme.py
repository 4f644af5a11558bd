"""Parts of a document that commands write: between markers, and short enough for a README."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from fastcomposer.evaluation.collected import Collected
from fastcomposer.evaluation.report.table import Table
from fastcomposer.evaluation.report.table_files import markdown_table
from fastcomposer.evaluation.report.tables import BY_PUBLISHED, PUBLISHED, localization_table, main_table
from fastcomposer.runtime.files import write_atomically

_COLUMNS = (
    ("", "references"),
    ("", BY_PUBLISHED),
    ("", "prompt"),
    ("", "s / image"),
    ("", "s to personalise"),
    (PUBLISHED, "identity"),
    (PUBLISHED, "prompt"),
)
"""Group and title of what a README shows of a main table."""


def check_section(file: str | Path, name: str) -> None:
    """See that a document has room for a section.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the markers are missing.
    """
    if not Path(file).is_file():
        raise FileNotFoundError(f"readme: no such file: {file}")
    replace_section(Path(file).read_text(encoding="utf-8"), name, "")


def write_section(file: str | Path, name: str, text: str) -> None:
    """Replace a section of a document; see :func:`replace_section`."""
    path = Path(file)
    document = replace_section(path.read_text(encoding="utf-8"), name, text)
    write_atomically(path, lambda out: out.write(document.encode()))


def replace_section(document: str, name: str, text: str) -> str:
    """Put a text between the markers of a document.

    Args:
        document: The whole of it.
        name: Of the section, and of the target of ``make`` that writes it.
        text: What goes there.

    Raises:
        ValueError: If the markers are missing.
    """
    first, last = f"<!-- {name}: written by make {name} -->", f"<!-- {name}: end -->"
    start, end = document.find(first), document.find(last)
    if not 0 <= start < end:
        raise ValueError(f"readme: what make {name} writes goes between {first} and {last}")
    return f"{document[: start + len(first)]}\n{text}\n{document[end:]}"


def results_section(collected: Collected) -> str:
    """Say of an evaluation what fits into a README: narrowed main tables, and what localization gains."""
    parts = []
    for benchmark in collected.benchmarks():
        table = _narrowed(main_table(collected, benchmark))
        title = (
            f"{table.title}, {max(run.row.images for run in collected.main(benchmark)):,} pictures a method"
        )
        parts.append(markdown_table(replace(table, title=title, notes=(), number=None)))
    gain = localization_table(collected)
    if gain is not None:
        parts.append(markdown_table(replace(gain, notes=gain.notes[:1])))
    facts = collected.environment
    machine = f"{facts.get('device', 'an unnamed machine')}, {facts.get('cpus', '?')} cores"
    alphas = {run.alpha for name in collected.benchmarks() if (run := collected.ours(name)) and run.alpha}
    shown = f" FastComposer is shown at α = {', '.join(f'{alpha:g}' for alpha in sorted(alphas))}." * bool(
        alphas
    )
    parts.append(
        f"Measured on {machine}, torch {facts.get('torch', '?')}.{shown} Brackets hold 95 % intervals. "
        "Published figures are of Stable Diffusion 1.5 and photos: compare orders, not values. Beside them "
        "identity is scored by the published protocol; the corrected one takes the largest faces and the "
        "best assignment and leaves negative scores as they are. [R] quoted by another paper, [M] recalled, "
        "unconfirmed."
    )
    return "\n\n".join(parts).replace("\n## ", "\n### ").replace("## ", "### ", 1)


def _narrowed(table: Table) -> Table:
    """The columns that a README shows, and the lines that were measured."""
    kept = [number for number, column in enumerate(table.columns) if (column.group, column.title) in _COLUMNS]
    lines = tuple(
        replace(line, cells=tuple(line.cells[number] for number in kept))
        for line in table.lines
        if any(cell.value is not None for cell in line.cells)
    )
    return replace(table, columns=tuple(table.columns[number] for number in kept), lines=lines)
