"""Results for dashboards: the rows of an evaluation as scalars and as one table."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from lightning.pytorch.loggers import WandbLogger

from fastcomposer.evaluation.results import ResultRow
from fastcomposer.training.wandb_workspace import RESULTS

_ESTIMATES = (
    "identity_preservation",
    "prompt_consistency",
    "detection_rate",
    "copy_paste",
    "identity_published",
)
_NUMBERS = ("images", "seconds_per_image", "personalization_seconds_per_subject", "peak_memory_bytes")


def log_rows(loggers: Iterable[Any], rows: Sequence[ResultRow]) -> None:
    """Log every row as scalars, and all of them as a table where the logger shows tables.

    Args:
        loggers: Lightning's.
        rows: Of ``results.json``.
    """
    scalars = {
        f"evaluation/{_label(row)}/{name}": value for row in rows for name, value in _numbers(row).items()
    }
    columns = ["benchmark", "method", "settings"]
    columns += [f"{name}{end}" for name in _ESTIMATES for end in ("", "_low", "_high")] + [*_NUMBERS]
    cells = [[row.benchmark, row.method, _settings(row), *_cells(row)] for row in rows]
    for logger in loggers:
        logger.log_metrics(scalars, 0)
        if isinstance(logger, WandbLogger):
            logger.log_table(RESULTS, columns=columns, data=cells, step=0)
        logger.save()
        logger.finalize("success")


def _settings(row: ResultRow) -> str:
    return ", ".join(f"{name} {value}" for name, value in row.settings.items())


def _label(row: ResultRow) -> str:
    return "/".join(filter(None, (row.benchmark, row.method, _settings(row).replace("/", "-"))))


def _numbers(row: ResultRow) -> dict[str, float]:
    means = {name: getattr(row, name) for name in _ESTIMATES}
    return {name: estimate.mean for name, estimate in means.items() if estimate is not None} | {
        name: float(getattr(row, name)) for name in _NUMBERS
    }


def _cells(row: ResultRow) -> list[float | None]:
    estimates = [getattr(row, name) for name in _ESTIMATES]
    found = [
        value
        for estimate in estimates
        for value in ((None,) * 3 if estimate is None else (estimate.mean, *estimate.ci95))
    ]
    return [*found, *(float(getattr(row, name)) for name in _NUMBERS)]
