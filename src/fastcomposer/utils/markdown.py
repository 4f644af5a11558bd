"""Markdown: tables, and sections that commands write between markers of a document."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from fastcomposer.utils.files import write_atomically


def markdown_table(head: Sequence[str], rows: Iterable[Sequence[object]], rules: Sequence[str] = ()) -> str:
    """Write a table; a rule ``---:`` aligns its column to the right, a cell of ``None`` is empty."""
    return "\n".join(map(_row, [head, rules or ["---"] * len(head), *rows]))


def _row(cells: Sequence[object]) -> str:
    texts = ("" if cell is None else str(cell).replace("|", r"\|") for cell in cells)
    return f"| {' | '.join(texts)} |"


def check_section(key: str, file: str | Path, name: str) -> None:
    """Check that the document that a configuration key names has the markers of a section.

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
    """Put a text between a document's markers of a section, the first of which names what writes it.

    Raises:
        ValueError: If the markers are missing.
    """
    first, last = f"<!-- {name}: written by", f"<!-- {name}: end -->"
    start, end = document.find(first), document.find(last)
    if not 0 <= start < end:
        raise ValueError(f"no section {name}: add the lines {first} make {name} --> and {last}")
    return f"{document[: document.index('-->', start) + 3]}\n{text}\n{document[end:]}"
