"""A sweep as a section of a document: scores with differences, images side by side, attention and costs."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from PIL import Image

from fastcomposer.evaluation.benchmark import PLACEHOLDERS
from fastcomposer.evaluation.load_results import Run, attention_files, chosen_cases
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
_COSTS = "train/gflop_per_image", "train/images_per_second", "train/memory_gib"
_SIDE = 96  # pixels of an image
_LETTERS = 15  # of a line above it


def sweep_section(sweep: Sweep, document: Path, section: str) -> str:
    """Make the section; images go into files beside the document, named after the section and benchmark.

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
        parts += [f"### {group.title}", to_markdown(table, heading=False)]
        file = document.with_name(f"{section}_{group.key}.png")
        if (sheet := _side_by_side(group, sweep.keys)) is not None:
            sheet.save(file, optimize=True)
            parts.append(f"![{group.title}: the same cases of every job]({file.name})")
        file = document.with_name(f"{section}_{group.key}_attention.png")
        if (sheet := _attention(group, sweep.keys)) is not None:
            sheet.save(file, optimize=True)
            about = f"{group.title}: an image of every job, and the attention to the word of each subject"
            parts.append(f"![{about}]({file.name})")
    for group in sweep.groups:
        shown = {"attention": ("inside",), "training": _COSTS}.get(group.key, ())
        columns = {name: group.columns[name] for name in shown if name in group.columns}
        if columns:
            title = "Cost of training" if group.key == "training" else group.title
            table = group_table(replace(group, columns=columns, note=""), sweep.keys)
            parts += [f"### {title}", to_markdown(table, heading=False)]
    return "\n\n".join(parts)


def _side_by_side(group: Group, keys: Sequence[str]) -> Image.Image | None:
    """A line for each case that all jobs have an image of: its references, then the image of every job."""
    references = references_of(group.entries)
    having: list[tuple[Entry, Run]] = []
    for entry in group.entries:
        if entry.run is not None:
            images = entry.run.images[entry.run.images.file.map(Path.is_file)]
            known = images[images.subjects.map(lambda names: {*names} <= references.keys())]
            having += [(entry, replace(entry.run, images=known))] if len(images) else []
    cases = chosen_cases([run for _, run in having], 1) if having else []
    if not cases:
        return None
    rows = [
        [*(references[name] for name in case.subjects), *(run.of_case(case.case).file for _, run in having)]
        for case in cases
    ]
    titles = [*("reference" for _ in cases[0].subjects), *(_title(entry, keys) for entry, _ in having)]
    return grid([[*map(Image.open, row)] for row in rows], _SIDE, titles)


def _attention(group: Group, keys: Sequence[str]) -> Image.Image | None:
    """A column for each run of FastComposer: its image of the first case that all have maps of, and these."""
    runs = {
        _title(entry, keys): entry.run
        for entry in group.entries
        if entry.run is not None and entry.run.is_own_method
    }
    kept = [
        [image.case for image in run.images.itertuples() if attention_files(run, image)]
        for run in runs.values()
    ]
    case = next((case for case in kept[0] if all(case in cases for cases in kept)), None) if kept else None
    if case is None:
        return None
    images = [(run, run.of_case(case)) for run in runs.values()]
    columns = [[image.file, *attention_files(run, image)] for run, image in images]
    return grid([[*map(Image.open, row)] for row in zip(*columns, strict=True)], _SIDE, list(runs))


def _title(entry: Entry, keys: Sequence[str]) -> str:
    return textwrap.fill(entry.label(keys).replace("without_", "without "), _LETTERS)
