"""What an evaluation comes to: rows of all its runs, and the machine they were made on."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.loggers import WandbLogger

import fastcomposer
from fastcomposer.evaluation.benchmark import OTHERS, PLACEHOLDERS
from fastcomposer.evaluation.results import METHODS, Costs, Origin, ResultRow, row_from_scores
from fastcomposer.evaluation.store import (
    RUN_NAME,
    SCORES_NAME,
    check_same,
    images_key,
    read_distances,
    read_run,
    read_table,
    scored_by,
)
from fastcomposer.metrics.multi_subject import SUBJECT_METRICS
from fastcomposer.training.wandb_workspace import RESULTS

_ESTIMATES = (
    "identity_preservation",
    "prompt_consistency",
    "detection_rate",
    "copy_paste",
    *SUBJECT_METRICS,
    "identity_published",
)
_NUMBERS = ("images", "seconds_per_image", "personalization_seconds_per_subject", "peak_memory_bytes")


def result_rows(output: Path) -> list[ResultRow]:
    """Summarize all runs in an evaluation's folder that have been scored, by the same extractors."""
    rows = []
    for file in sorted(output.glob(f"*/*/{SCORES_NAME}")):
        table, run = read_table(file), read_run(file.parent)
        if table is None or run is None or "costs" not in run:
            raise ValueError(f"{file}: damaged, or without its {RUN_NAME}; evaluate with resume=restart")
        costs = Costs(**run["costs"])
        peak = max(costs.peak_memory_bytes, *table["peak_memory_bytes"].to_pylist())
        row = row_from_scores(table, replace(costs, peak_memory_bytes=peak))
        distances = read_distances(file.parent, images_key(run["hash"], table["case"].to_pylist()))
        stated = run["config"].get("origin")
        origin = None if stated is None else Origin(**stated)
        rows.append(replace(row, distances=distances, scored_by=scored_by(file), origin=origin))
    check_same((output, row) for row in rows)
    order: Iterable[str] = (*PLACEHOLDERS, *OTHERS, *METHODS)
    places = {name: number for number, name in enumerate(order)}
    return sorted(
        rows,
        key=lambda row: (
            places[row.benchmark],
            places.get(row.method, len(places)),
            row.method,
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


def log_rows(loggers: Iterable[Any], rows: Sequence[ResultRow]) -> None:
    """Log every row of ``results.json`` as scalars, and all of them as a table of W&B."""
    found = [_flat(row) for row in rows]
    scalars = {
        f"evaluation/{_label(row)}/{name}": flat[name]
        for row, flat in zip(rows, found, strict=True)
        for name in (*_ESTIMATES, *_NUMBERS)
        if flat[name] is not None
    }
    for logger in loggers:
        logger.log_metrics(scalars, 0)
        if isinstance(logger, WandbLogger) and found:
            cells = [list(flat.values()) for flat in found]
            logger.log_table(RESULTS, columns=list(found[0]), data=cells, step=0)
        logger.save()
        logger.finalize("success")


def _flat(row: ResultRow) -> dict[str, Any]:
    """The figures of a row by name, the ends of intervals as ``<name>_low`` and ``<name>_high``."""
    flat: dict[str, Any] = {"benchmark": row.benchmark, "method": row.method, "settings": _settings(row)}
    for name in _ESTIMATES:
        estimate = getattr(row, name)
        figures = (None,) * 3 if estimate is None else (estimate.mean, *estimate.ci95)
        flat |= zip((name, f"{name}_low", f"{name}_high"), figures, strict=True)
    return flat | {name: float(getattr(row, name)) for name in _NUMBERS}


def _settings(row: ResultRow) -> str:
    return ", ".join(f"{name} {value}" for name, value in row.settings.items())


def _label(row: ResultRow) -> str:
    return "/".join(filter(None, (row.benchmark, row.method, _settings(row).replace("/", "-"))))
