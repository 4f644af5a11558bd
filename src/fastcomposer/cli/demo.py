"""Try a model in the browser: ``fastcomposer demo``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from fastcomposer.cli.common import command, trained_pipeline
from fastcomposer.utils.lock import sole_run
from fastcomposer.utils.texts import plain


@command("demo")
def main(config: DictConfig) -> None:
    """Load a model and serve the page."""
    from hydra.utils import instantiate

    address, limits = instantiate(config.server), instantiate(config.limits)
    address.check()
    with sole_run(config.output):
        print(f"Loading {config.checkpoint}", flush=True)
        _serve(config, address, limits)


def _serve(config: DictConfig, address: Any, limits: Any) -> None:
    from hydra.utils import instantiate

    from fastcomposer.pipeline.schedulers import split_scheduler

    settings = plain(config)
    scheduler, _ = split_scheduler(settings["sampler"])

    from fastcomposer.demo.server import serve

    serve(
        trained_pipeline(config, scheduler),
        {key: settings[key] for key in ("model", "sampler", "checkpoint")},
        address,
        limits,
        Path(config.output),
        instantiate(config.examples),
    )


if __name__ == "__main__":
    main()
