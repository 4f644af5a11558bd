"""Try a model in the browser: ``python -m fastcomposer.cli.demo``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from fastcomposer.cli.common import command
from fastcomposer.cli.lock import sole_run


@command("demo")
def main(config: DictConfig) -> None:
    """Load a model and serve the page."""
    from hydra.utils import instantiate

    address, limits = instantiate(config.server), instantiate(config.limits)
    address.check()
    with sole_run(config.output):
        _serve(config, address, limits)


def _serve(config: DictConfig, address: Any, limits: Any) -> None:
    import torch
    from hydra.utils import instantiate

    from fastcomposer.schedulers import split_scheduler, use_scheduler

    settings: Any = OmegaConf.to_container(config, resolve=True)
    scheduler, _ = split_scheduler(settings["sampler"])

    from fastcomposer.demo.server import serve
    from fastcomposer.evaluation.pipelines import load_trained

    model = config.model
    pipeline: Any = load_trained(
        model.base,
        model.image_encoder,
        model.max_subjects,
        config.checkpoint,
        safety_checker=True,
        architecture=model.architecture,
        weights=model.weights,
    )
    pipeline.to("cuda" if torch.cuda.is_available() else "cpu")
    use_scheduler(pipeline, scheduler)
    serve(
        pipeline,
        {key: settings[key] for key in ("model", "sampler", "checkpoint")},
        address,
        limits,
        Path(config.output),
        instantiate(config.examples),
    )


if __name__ == "__main__":
    main()
