"""A sweep as a section of a Markdown document: scores with differences, and the same cases side by side."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from PIL import Image

from fastcomposer.evaluation.benchmark import PLACEHOLDERS
from fastcomposer.evaluation.report.html import chosen_cases
from fastcomposer.evaluation.report.tables import to_markdown
from fastcomposer.sweeps.report.measured import DIFFERENCE, Entry, Group, Sweep, group_table, references_of
from fastcomposer.utils.image_grid import grid

_SHOWN = (
    "identity_preservation",
    "identity_preservation" + DIFFERENCE,
    "prompt_consistency" + DIFFERENCE,
    "copy_paste" + DIFFERENCE,
    "coverage",
    "coverage" + DIFFERENCE,
    "confusion",
)
_SIDE = 96  # pixels of an image


def sweep_section(sweep: Sweep, document: Path) -> str:
    """Make the section; images go into files beside the document, named after it and the benchmark.

    Raises:
        ValueError: If no job of the sweep was scored on a benchmark.
    """
    groups = [group for group in sweep.groups if group.key in PLACEHOLDERS]
    if not groups:
        raise ValueError(f"document={document}: no job of {sweep.folder} was scored; evaluate -m sweep=jobs")
    parts = []
    for group in groups:
        columns = {name: group.columns[name] for name in _SHOWN if name in group.columns}
        table = group_table(replace(group, columns=columns), sweep.keys)
        parts.append(to_markdown(replace(table, title=group.title)))
        file = document.with_name(f"{document.stem}_{group.key}.png")
        if (sheet := _side_by_side(group, sweep.keys)) is not None:
            sheet.save(file, optimize=True)
            parts.append(f"![{group.title}: the same cases of every job]({file.name})")
    return "\n\n".join(parts)


def _side_by_side(group: Group, keys: Sequence[str]) -> Image.Image | None:
    """A line for each case: its references, then its image of every job."""
    having: list[tuple[Entry, dict[str, Path]]] = []
    for entry in group.entries:
        if entry.run is not None:
            images = entry.run.images
            files = {c: f for c, f in zip(images.case, images.file, strict=True) if f.is_file()}
            having += [(entry, files)] if files else []
    if not having:
        return None
    references = references_of([entry for entry, _ in having])
    count = PLACEHOLDERS[group.key]
    rows = []
    for case in chosen_cases([entry.run for entry, _ in having if entry.run is not None], 1):
        people = [references[name] for name in case.subjects if name in references]
        rows.append([*map(Image.open, people), *(Image.open(files[case.case]) for _, files in having)])
    titles = [
        *("reference" for _ in count),
        *(entry.label(keys).replace("without_", "without\n") for entry, _ in having),
    ]
    return grid(rows, _SIDE, titles)
