"""Settings of trainings of seconds, of the tests' small base on their small world."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any


def small_training(base: Path | str, world: Path | str, *more: str) -> list[str]:
    """Settings of all small trainings."""
    return [
        "experiment=mini",
        f"model.base={base}",
        "model.resolution=32",
        "model.reference_size=56",
        f"data.root={world}",
        "method.vision_layers=1",
        "trainer.max_time=null",
        *more,
    ]


def bare_training(base: Path | str, world: Path | str, steps: int, *more: str) -> list[str]:
    """A small training without samples and validation."""
    return small_training(
        base,
        world,
        "~callbacks.samples",
        "data.module.batch_size=2",
        "data.module.num_workers=0",
        f"trainer.max_steps={steps}",
        "trainer.limit_val_batches=0",
        *more,
    )


def saving(folder: Path, *names: str, every: int = 2) -> dict[str, Any]:
    """Settings of a trainer that saves by the callbacks of these names, as the configuration asks for it."""
    from configurations import composed
    from hydra.utils import instantiate

    config = composed("train", f"run_dir={folder}", f"callbacks.checkpoint.every_n_train_steps={every}")
    callbacks = [instantiate(config.callbacks[name]) for name in names]
    plugins = instantiate(config.trainer.plugins)
    return {"callbacks": callbacks, "plugins": plugins, "enable_checkpointing": "checkpoint" in names}


def log_rows(folder: Path) -> list[dict[str, str]]:
    """Rows of a run's log without the epoch: a step that was to be the last counts as the end of an epoch."""
    with (folder / "logs" / "metrics.csv").open() as file:
        return [{key: value for key, value in row.items() if key != "epoch"} for row in csv.DictReader(file)]


def two() -> dict[str, Any]:
    """Settings of a trainer with two processes on the CPU, in the way of ``trainer=ddp``."""
    from configurations import composed
    from hydra.utils import instantiate

    strategy = composed("train", "trainer=ddp").trainer.strategy
    return {"strategy": instantiate(strategy, start_method="fork"), "devices": 2}
