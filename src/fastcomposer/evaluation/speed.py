"""Speed of the scene generator, the loader, the training step and the sampler."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from itertools import chain, count
from pathlib import Path
from typing import Any

import torch
from hydra.utils import instantiate
from torch.utils.benchmark import Timer

from fastcomposer.batch import SubjectBatch
from fastcomposer.data.prepare import prepare_avatars
from fastcomposer.models.composer import FastComposer


@dataclass(frozen=True)
class Speed:
    """One figure.

    Attributes:
        suite: Name of the suite.
        what: What was done.
        rate: Median over repetitions, per second.
        spread: Half the interquartile range of the rate.
        unit: What was counted.
    """

    suite: str
    what: str
    rate: float
    spread: float
    unit: str

    def as_dict(self) -> dict[str, Any]:
        """Plain values by name."""
        return asdict(self)


def run_suites(config: Any) -> list[Speed]:
    """Run the suites that ``config.suites`` names, in its order."""
    return [SUITES[name](config) for name in config.suites]


def _timed(suite: str, what: str, unit: str, number: int, config: Any, function: Callable[[], Any]) -> Speed:
    function()  # not counted: lazy imports and caches
    timer = Timer("function()", globals={"function": function}, num_threads=torch.get_num_threads())
    measured = timer.blocked_autorange(min_run_time=config.min_seconds)
    rate = number / measured.median
    return Speed(suite, what, rate, rate * measured.iqr / measured.median / 2, unit)


def _scenes(config: Any) -> Speed:
    scenes = instantiate(config.data.prepare.scenes)
    workers, number = config.data.prepare.num_workers, 400

    def render() -> None:
        with tempfile.TemporaryDirectory() as folder:
            prepare_avatars(Path(folder), scenes, number, 0, num_workers=workers)

    return _timed("scenes", f"render and write, {workers} processes", "scenes", number, config, render)


def _loader(config: Any) -> Speed:
    module = instantiate(config.data.module, batch_size=config.batch_size, num_workers=0)
    loader = module.train_dataloader()
    batches = chain.from_iterable(loader for _ in count())  # epoch after epoch
    size = config.batch_size
    return _timed("loader", "read and augment, one process", "samples", size, config, lambda: next(batches))


def _model_and_batch(config: Any) -> tuple[FastComposer, SubjectBatch]:
    module = instantiate(config.data.module, batch_size=config.batch_size, num_workers=0)
    return instantiate(config.method.model)(), next(iter(module.train_dataloader()))


def _step(config: Any) -> Speed:
    model, batch = _model_and_batch(config)
    model.train()
    optimizer = instantiate(config.method.optimizer)(list(model.trainable_parameters()))

    def step() -> None:
        model.training_losses(batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return _timed(
        "step", f"training step, batch {config.batch_size}", "images", config.batch_size, config, step
    )


def _sampler(config: Any) -> Speed:
    model, _ = _model_and_batch(config)
    pipeline = model.to_pipeline(safety_checker=False)
    pipeline.set_progress_bar_config(disable=True)
    prompts = ["a man on the beach"] * 4
    options = dict(config.sampler)
    what = f"sample, {options['num_inference_steps']} steps, batch {len(prompts)}"
    return _timed("sampler", what, "images", len(prompts), config, lambda: pipeline(prompts, **options))


SUITES: dict[str, Callable[[Any], Speed]] = {
    "scenes": _scenes,
    "loader": _loader,
    "step": _step,
    "sampler": _sampler,
}
