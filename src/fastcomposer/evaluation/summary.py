"""What an evaluation comes to: rows of all its runs, and the machine they were made on."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

import fastcomposer
from fastcomposer.evaluation.benchmark import PLACEHOLDERS
from fastcomposer.evaluation.results import METHODS, Costs, ResultRow, row_from_scores
from fastcomposer.evaluation.scorers import check_same, scored_by
from fastcomposer.evaluation.store import (
    RUN_NAME,
    SCORES_NAME,
    images_key,
    read_distances,
    read_run,
    read_table,
)


def result_rows(output: Path) -> list[ResultRow]:
    """Summarize all runs of an evaluation that have been scored.

    Args:
        output: Folder of the evaluation.

    Raises:
        ValueError: If scores are damaged or without their ``run.json``, or scored by different extractors.
    """
    rows = []
    for file in sorted(output.glob(f"*/*/{SCORES_NAME}")):
        table, run = read_table(file), read_run(file.parent)
        if table is None or run is None or "costs" not in run:
            raise ValueError(f"{file}: damaged, or without its {RUN_NAME}; evaluate with resume=restart")
        costs = Costs(**run["costs"])
        peak = max(costs.peak_memory_bytes, *table["peak_memory_bytes"].to_pylist())
        row = row_from_scores(table, replace(costs, peak_memory_bytes=peak))
        distances = read_distances(file.parent, images_key(run["hash"], table["case"].to_pylist()))
        rows.append(replace(row, distances=distances, scored_by=scored_by(file)))
    check_same((output, row) for row in rows)
    order: Iterable[str] = (*PLACEHOLDERS, *METHODS)
    places = {name: number for number, name in enumerate(order)}
    return sorted(
        rows,
        key=lambda row: (
            places[row.benchmark],
            places[row.method],
            json.dumps(dict(row.settings), sort_keys=True),
        ),
    )


def describe_environment() -> dict[str, Any]:
    """Machine and versions; of packages of extras where they are installed."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.machine()
    return {
        "fastcomposer": fastcomposer.__version__,
        "python": platform.python_version(),
        **dict(_versions(("torch", "diffusers", "transformers", "lightning", "facenet-pytorch"))),
        "platform": platform.platform(),
        "device": device,
        "cpus": os.cpu_count(),
        "threads": torch.get_num_threads(),
    }


def _versions(packages: Iterable[str]) -> Iterator[tuple[str, str]]:
    for name in packages:
        with suppress(metadata.PackageNotFoundError):
            yield name, metadata.version(name)
