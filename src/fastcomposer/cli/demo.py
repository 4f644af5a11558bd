"""Try a model in the browser: ``fastcomposer demo``."""

from __future__ import annotations

from pathlib import Path

from omegaconf import DictConfig

from fastcomposer.cli.common import command, trained_pipeline


@command("demo")
def main(config: DictConfig) -> None:
    """Load a model and serve the page."""
    from hydra.utils import instantiate

    from fastcomposer.demo.server import serve
    from fastcomposer.pipeline.schedulers import split_scheduler
    from fastcomposer.utils.lock import sole_run
    from fastcomposer.utils.texts import plain

    address, limits = instantiate(config.server), instantiate(config.limits)
    address.check()
    with sole_run(config.output):
        print(f"Loading {config.checkpoint}", flush=True)
        settings = plain(config)
        scheduler, _ = split_scheduler(settings["sampler"])
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
