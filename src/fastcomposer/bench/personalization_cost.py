"""What personalisation takes at full size, projected from the times of single steps."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median
from types import SimpleNamespace
from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.pytorch.callbacks import Callback
from PIL import Image

from fastcomposer.data.portraits import PortraitDataModule, ReferenceSet
from fastcomposer.evaluation.benchmark import NUM_TUNING_IMAGES
from fastcomposer.evaluation.load_results import OURS
from fastcomposer.pipeline.schedulers import split_scheduler, use_scheduler
from fastcomposer.pipeline.stable_diffusion import FastComposerPipeline
from fastcomposer.training.personalization.fine_tuning import PersonalizationModule
from fastcomposer.training.personalization.personalize import QUIET, quietly

_WORD = "man"


@dataclass(frozen=True)
class Projection:
    """Time until the first image of a new person; only the times of single steps are measured.

    Attributes:
        method: As in ``results.json``.
        seconds_per_training_step: Median of the measured steps; 0 where nothing is trained.
        training_steps: Of the method's recipe.
        seconds_per_sampling_step: Measured.
        sampling_steps: Of the sampler.
        seconds_around_sampling: Measured: encoding of texts and references, decoding of the image.
        gradient_checkpointing: Whether the training traded time for memory, which makes its steps longer.
    """

    method: str
    seconds_per_training_step: float
    training_steps: int
    seconds_per_sampling_step: float
    sampling_steps: int
    seconds_around_sampling: float
    gradient_checkpointing: bool = False

    @property
    def personalization_seconds(self) -> float:
        """Projected time of the training."""
        return self.seconds_per_training_step * self.training_steps

    @property
    def seconds_per_image(self) -> float:
        """Projected time of an image."""
        return self.seconds_around_sampling + self.seconds_per_sampling_step * self.sampling_steps

    @property
    def seconds(self) -> float:
        """Both together."""
        return self.personalization_seconds + self.seconds_per_image

    def as_dict(self) -> dict[str, Any]:
        """Plain values by name, with what is projected."""
        projected = ("personalization_seconds", "seconds_per_image", "seconds")
        return {**asdict(self), **{f"projected_{name}": getattr(self, name) for name in projected}}


def project_sampling(
    pipeline: FastComposerPipeline, sampler: Mapping[str, Any], resolution: int, repeats: int = 3
) -> Projection:
    """Measure FastComposer, whose personalisation is a part of drawing.

    Args:
        pipeline: Any FastComposer; what its weights are makes no difference.
        sampler: Arguments of the pipeline call, with ``num_inference_steps``, which are projected to, and the
            scheduler.
        resolution: Height and width of the image in pixels.
        repeats: Sampling steps to measure, at least 1.
    """
    _check(repeats)
    reference = Image.fromarray(_noise(resolution))
    scheduler, options = split_scheduler(sampler)
    use_scheduler(pipeline, scheduler)
    options |= {"alpha": 1.0, "height": resolution, "width": resolution}

    def seconds(steps: int) -> float:
        started = _now()
        pipeline(
            f"a {_WORD} <|image|>",
            references=[reference],
            generator=torch.Generator().manual_seed(0),
            **{**options, "num_inference_steps": steps},
        )
        return _now() - started

    seconds(1)  # not counted: lazy imports and caches
    one, more = seconds(1), seconds(1 + repeats)
    step = max(0.0, (more - one) / repeats)
    return Projection(OURS, 0.0, 0, step, int(sampler["num_inference_steps"]), max(0.0, one - step))


def project_training(module: PersonalizationModule, drawing: Projection, repeats: int = 3) -> Projection:
    """Measure training steps of a fine-tuning method, the optimizer's part among them.

    Images are noise, those of the class too: what they show makes no difference.

    Args:
        module: The method, which is trained for some steps and cannot be used afterwards.
        drawing: Of FastComposer over the same base: an image takes a fine-tuned base as long.
        repeats: Training steps to measure, at least 1.
    """
    _check(repeats)
    timer = _StepTimer()
    with tempfile.TemporaryDirectory() as folder, quietly():
        people = (ReferenceSet("somebody", _WORD, _write_images(Path(folder), module.images.resolution)),)
        if module.class_images is not None:
            module.class_images = replace(module.class_images, folder=folder, count=module.images.batch_size)
            side = module.images.resolution
            place = module.class_images.place(_WORD, module.fingerprint, side)
            module.class_images.draw(_draw_noise, _WORD, place, side)
        # One step more: the first is not counted.
        trainer = L.Trainer(accelerator="auto", devices=1, max_steps=repeats + 1, callbacks=[timer], **QUIET)
        trainer.fit(module, PortraitDataModule(people, module.images, seed=0))
    return replace(
        drawing,
        method=module.method,
        seconds_per_training_step=median(timer.seconds[1:]),
        training_steps=module.steps,
        gradient_checkpointing=module.unet.is_gradient_checkpointing,
    )


class _StepTimer(Callback):
    """Wall time of every training step."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self._started = 0.0

    def on_train_batch_start(self, *args: Any) -> None:
        self._started = _now()

    def on_train_batch_end(self, *args: Any) -> None:
        self.seconds.append(_now() - self._started)


def _now() -> float:
    """Seconds, when all that was asked of an accelerator is done."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def _noise(side: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(256, size=(side, side, 3), dtype=np.uint8)


def _write_images(folder: Path, side: int) -> tuple[Path, ...]:
    files = tuple(folder / f"{number}.png" for number in range(NUM_TUNING_IMAGES))
    for number, file in enumerate(files):
        Image.fromarray(_noise(side, number)).save(file)
    return files


def _draw_noise(prompts: Sequence[str], *, height: int, **_: Any) -> SimpleNamespace:
    """Stands where the base would draw images of the class."""
    return SimpleNamespace(images=[Image.fromarray(_noise(height)) for _ in prompts])


def _check(repeats: int) -> None:
    if repeats < 1:
        raise ValueError(f"repeats={repeats}: at least 1")
