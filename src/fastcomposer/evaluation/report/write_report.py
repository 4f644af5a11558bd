"""From the folder of an evaluation to its tables and its report."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from fastcomposer.evaluation.benchmark import Benchmark
from fastcomposer.evaluation.load_results import collect
from fastcomposer.evaluation.report.html import render_html
from fastcomposer.evaluation.report.paper_claims import deviations, expectations
from fastcomposer.evaluation.report.table_files import to_csv, to_latex, to_markdown
from fastcomposer.evaluation.report.tables import make_tables
from fastcomposer.utils.files import write_atomically

FORMATS = {"md": "tables.md", "csv": "tables.csv", "tex": "tables.tex", "html": "report.html"}
"""File of each format."""


def write_report(
    results: str | Path,
    formats: Sequence[str] = tuple(FORMATS),
    alpha: float = 0.6,
    benchmarks: Sequence[Benchmark] = (),
) -> list[Path]:
    """Write tables and report beside the results they are made from.

    Args:
        results: Folder of an evaluation, with ``results.json``.
        formats: Which of ``md``, ``csv``, ``tex`` and ``html`` to write.
        alpha: The setting of FastComposer that the main tables show; the nearest one measured is taken.
        benchmarks: Where references are looked up; without, the report shows none.

    Returns:
        The files.

    Raises:
        FileNotFoundError: If there is no ``results.json``.
        ValueError: If a format is unknown, or there are no rows.
    """
    check_formats(formats)
    collected = collect(results, alpha, benchmarks)
    tables = make_tables(collected)
    expected, different = expectations(collected), deviations(collected)
    makers: dict[str, Callable[[], str]] = {
        "md": lambda: to_markdown(tables, expected, different),
        "csv": lambda: to_csv(tables),
        "tex": lambda: to_latex(tables),
        "html": lambda: render_html(collected, tables, expected, different),
    }
    return write_formats(results, formats, makers)


def check_formats(formats: Sequence[str]) -> None:
    """Refuse formats that there are none of.

    Raises:
        ValueError: Naming them, and those there are.
    """
    unknown = [name for name in formats if name not in FORMATS]
    if unknown:
        raise ValueError(f"formats: {', '.join(unknown)}: unknown; there is {', '.join(FORMATS)}")


def write_formats(
    folder: str | Path, formats: Sequence[str], makers: Mapping[str, Callable[[], str]]
) -> list[Path]:
    """Write each format into its file; a file that was there stays whole until its successor is.

    Args:
        folder: Where they go.
        formats: Which of them.
        makers: Makes the text of each format.

    Returns:
        The files.
    """
    files = []
    for name in formats:
        files.append(Path(folder) / FORMATS[name])
        _write(files[-1], makers[name]())
    return files


def _write(file: Path, text: str) -> None:
    write_atomically(file, lambda out: out.write(text.encode()))
