"""From the folder of an evaluation to its tables and its report."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from fastcomposer.evaluation.benchmark import Benchmark
from fastcomposer.evaluation.load_results import (
    BENCHMARKS,
    Collected,
    Run,
    collect,
    distinguishing,
    on_common_cases,
)
from fastcomposer.evaluation.report.html import render_html
from fastcomposer.evaluation.report.paper_claims import Expectation, deviations, expectations
from fastcomposer.evaluation.report.tables import (
    BY_PUBLISHED,
    PEOPLE,
    PUBLISHED,
    Cell,
    Column,
    Table,
    localization_table,
    main_table,
    make_frame,
    make_tables,
    origin_notes,
    shown_alphas,
    to_csv,
    to_latex,
    to_markdown,
)
from fastcomposer.utils.files import write_atomically

FORMATS = {"md": "tables.md", "csv": "tables.csv", "tex": "tables.tex", "html": "report.html"}
"""File of each format."""
_COLUMNS = (
    ("", PEOPLE.title),
    ("", "references"),
    ("", BY_PUBLISHED),
    ("", "prompt"),
    ("", "s / image"),
    ("", "s to personalise"),
    (PUBLISHED, "identity"),
    (PUBLISHED, "prompt"),
)
"""Group and title of the columns of a main table that the page of results shows."""


def write_report(
    results: str | Path,
    formats: Sequence[str] = tuple(FORMATS),
    alpha: float = 0.6,
    benchmarks: Sequence[Benchmark] = (),
) -> list[Path]:
    """Write tables and report beside the results they are made from; returns the files.

    Args:
        results: Folder of an evaluation, with ``results.json``.
        formats: Which of ``md``, ``csv``, ``tex`` and ``html`` to write.
        alpha: The setting of FastComposer that the main tables show; the nearest one measured is taken.
        benchmarks: Benchmarks whose references are shown.

    Raises:
        ValueError: If a format is unknown, or there are no rows.
    """
    check_formats(formats)
    collected = collect(results, alpha, benchmarks)
    tables = make_tables(collected)
    expected, different = expectations(collected), deviations(collected)
    makers: dict[str, Callable[[], str]] = {
        "md": lambda: _document(tables, expected, different),
        "csv": lambda: to_csv(tables),
        "tex": lambda: to_latex(tables),
        "html": lambda: render_html(collected, tables, expected, different),
    }
    return write_formats(results, formats, makers)


def check_formats(formats: Sequence[str]) -> None:
    """Refuse unknown formats with a ValueError that names them."""
    unknown = [name for name in formats if name not in FORMATS]
    if unknown:
        raise ValueError(f"formats: {', '.join(unknown)}: unknown; there is {', '.join(FORMATS)}")


def write_formats(
    folder: str | Path, formats: Sequence[str], makers: Mapping[str, Callable[[], str]]
) -> list[Path]:
    """Write the text of each format atomically into its file in a folder; returns the files."""
    files = {name: Path(folder) / FORMATS[name] for name in formats}
    for name, file in files.items():
        _write(file, makers[name]())
    return list(files.values())


def _write(file: Path, text: str) -> None:
    write_atomically(file, lambda out: out.write(text.encode()))


def _document(tables: Sequence[Table], claims: Sequence[Expectation], differing: Sequence[str]) -> str:
    """Everything as one Markdown document."""
    parts = ["# Results", *map(to_markdown, tables), "## Expected from the paper"]
    lines = [
        f"- **{claim.verdict}**: {claim.claim}" + "".join(f"\n  - {text}" for text in claim.evidence)
        for claim in claims
    ]
    parts += ["\n".join(lines)]
    if differing:
        parts += [
            "Orderings that differ from the paper's, by scores of the published protocol:",
            "\n".join(f"- {text}" for text in differing),
        ]
    return "\n\n".join(parts) + "\n"


def summary_section(collected: Collected) -> str:
    """Write one table of all methods, for the README."""
    names = collected.benchmarks()
    runs: dict[str, dict[str, Run]] = {}
    for name in names:
        main = collected.main(name)
        for label, run in zip(distinguishing(main), main, strict=True):
            runs.setdefault(label, {})[name] = run
        for label, run, part in zip(distinguishing(main), main, on_common_cases(main), strict=True):
            if part.people != run.people:
                runs.setdefault(f"{label}, cases of all methods", {})[name] = part
    columns = [PEOPLE, Column("references", "count"), Column("s to personalise", "seconds")]
    for name in names:
        columns += [
            Column(f"{title}, {BENCHMARKS[name].lower()}", "score") for title in ("identity", "prompt")
        ]
    lines: list[tuple[str, list[Cell]]] = []
    strong = []
    for label, by_benchmark in runs.items():
        first = next(iter(by_benchmark.values()))
        seconds = None if first.row.origin else first.row.personalization_seconds_per_subject
        cells: list[Cell] = [first.people, first.row.reference_images, seconds]
        for found in map(by_benchmark.get, names):
            cells += [found.row.identity_preservation, found.row.prompt_consistency] if found else [None] * 2
        lines.append((label, cells))
        strong += [label] * first.is_own_method
    notes = dict.fromkeys(origin_notes(run for name in names for run in collected.main(name)))
    table = Table("summary", "", make_frame("method", columns, lines), tuple(notes), strong=strong)
    return f"{to_markdown(table, heading=False)}\n\n{_measured(collected)}"


def results_section(collected: Collected) -> str:
    """Write narrowed main tables and the gain by localization, for the page of results."""
    parts = []
    for benchmark in collected.benchmarks():
        table = _narrowed(main_table(collected, benchmark))
        runs = collected.main(benchmark)
        images = max(run.row.images for run in runs)
        title = f"{table.title}, {images:,} images per method"
        parts.append(to_markdown(replace(table, title=title, notes=origin_notes(runs), number=None)))
    gain = localization_table(collected)
    if gain is not None:
        parts.append(to_markdown(replace(gain, notes=gain.notes[:1])))
    parts.append(
        f"{_measured(collected)} "
        "Published figures are of Stable Diffusion 1.5 and photos: compare orders, not values. Beside them "
        "identity is scored by the published protocol; the corrected one takes the largest faces and the "
        "best assignment and leaves negative scores as they are. [R] quoted by another paper, [M] recalled, "
        "unconfirmed."
    )
    return "\n\n".join(parts)


def _measured(collected: Collected) -> str:
    """State the machine, what :func:`shown_alphas` states, and the meaning of brackets."""
    metadata = collected.environment
    machine = f"{metadata.get('device', 'an unnamed machine')}, {metadata.get('cpus', '?')} cores"
    shown = shown_alphas(run for name in collected.benchmarks() for run in collected.main(name))
    shown = f" {shown}." * bool(shown)
    return f"Measured on {machine}, torch {metadata.get('torch', '?')}.{shown} Brackets hold 95 % intervals."


def _narrowed(table: Table) -> Table:
    """Keep the columns that the page shows, and the lines that were measured."""
    frame = table.frame
    measured = frame[[column for column in frame if not column.group]].notna().any(axis=1)
    shown = [column for column in frame if (column.group, column.title) in _COLUMNS]
    return replace(table, frame=frame.loc[measured, shown])
