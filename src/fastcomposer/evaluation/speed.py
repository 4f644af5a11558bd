"""Speed of the scene generator, the loader, the training step and the sampler."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from itertools import chain, count
from pathlib import Path
from typing import Any

import torch
from torch.utils.benchmark import Timer

from fastcomposer.batch import SubjectBatch
from fastcomposer.data.datamodule import SubjectDataModule
from fastcomposer.data.prepare import prepare_avatars
from fastcomposer.data.scenes import AvatarScenes
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


class Stopwatch:
    """Times functions for at least some seconds each and keeps the figures.

    Args:
        min_seconds: How long a function is repeated.
    """

    def __init__(self, min_seconds: float) -> None:
        self.min_seconds = min_seconds
        self.rows: list[Speed] = []

    def measure(self, suite: str, what: str, unit: str, number: int, function: Callable[[], Any]) -> None:
        """Time a function that does ``number`` of something."""
        function()  # not counted: lazy imports and caches
        timer = Timer("function()", globals={"function": function}, num_threads=torch.get_num_threads())
        measured = timer.blocked_autorange(min_run_time=self.min_seconds)
        rate = number / measured.median
        self.rows.append(Speed(suite, what, rate, rate * measured.iqr / measured.median / 2, unit))


def time_scenes(watch: Stopwatch, scenes: AvatarScenes, workers: int, number: int = 400) -> None:
    """Time rendering and writing ``number`` scenes."""

    def render() -> None:
        with tempfile.TemporaryDirectory() as folder:
            prepare_avatars(Path(folder), scenes, number, 0, num_workers=workers)

    watch.measure("scenes", f"render and write, {workers} processes", "scenes", number, render)


def time_loader(watch: Stopwatch, data: SubjectDataModule) -> None:
    """Time reading and augmenting training batches."""
    loader = data.train_dataloader()
    batches = chain.from_iterable(loader for _ in count())  # epoch after epoch
    what = f"read and augment, {data.num_workers or 'no'} workers"
    watch.measure("loader", what, "samples", data.batch_size, lambda: next(batches))


def time_step(
    watch: Stopwatch, model: FastComposer, optimizer: torch.optim.Optimizer, batch: SubjectBatch
) -> None:
    """Time forward, backward and optimizer step on one batch."""
    model.train()

    def step() -> None:
        model.training_losses(batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    watch.measure("step", f"training step, batch {len(batch)}", "images", len(batch), step)


def time_sampler(watch: Stopwatch, model: FastComposer, options: Mapping[str, Any], batch: int = 4) -> None:
    """Time sampling from text."""
    pipeline = model.to_pipeline(safety_checker=False)
    pipeline.set_progress_bar_config(disable=True)
    prompts = ["a man on the beach"] * batch
    what = f"sample, {options['num_inference_steps']} steps, batch {batch}"
    watch.measure("sampler", what, "images", batch, lambda: pipeline(prompts, **options))
