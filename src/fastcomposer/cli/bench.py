"""Measure speed: ``python -m fastcomposer.cli.bench``."""

from __future__ import annotations

import json
from pathlib import Path

from omegaconf import DictConfig

from fastcomposer.cli.common import command

SUITES = ("scenes", "loader", "step", "sampler")


@command("bench")
def main(config: DictConfig) -> None:
    """Time the chosen suites and write the figures."""
    unknown = [name for name in config.suites if name not in SUITES]
    if unknown:
        raise ValueError(f"suites: unknown {', '.join(unknown)}; there are {', '.join(SUITES)}")

    from hydra.utils import instantiate
    from rich.console import Console
    from rich.table import Table

    from fastcomposer.evaluation import speed

    watch = speed.Stopwatch(config.min_seconds)
    if "scenes" in config.suites:
        settings = config.data.prepare
        speed.time_scenes(watch, instantiate(settings.scenes), settings.num_workers)
    data = instantiate(config.data.module, batch_size=config.batch_size)
    if "loader" in config.suites:
        speed.time_loader(watch, data)
    if "step" in config.suites:
        model = instantiate(config.method.model)()
        optimizer = instantiate(config.method.optimizer)(list(model.trainable_parameters()))
        speed.time_step(watch, model, optimizer, next(iter(data.train_dataloader())))
    if "sampler" in config.suites:
        speed.time_sampler(watch, instantiate(config.method.model)(), config.sampler)
    table = Table("suite", "what", "median per second", "spread", "unit")
    for row in watch.rows:
        table.add_row(row.suite, row.what, f"{row.rate:.1f}", f"±{row.spread:.1f}", row.unit)
    Console().print(table)
    file = Path(config.output) / "bench.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps([row.as_dict() for row in watch.rows], indent=2) + "\n")
    print(file)


if __name__ == "__main__":
    main()
