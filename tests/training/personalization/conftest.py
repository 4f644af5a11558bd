"""Two people with images, and the fine-tuning methods on a tiny base."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from PIL import Image

from fastcomposer.data.portraits import PortraitDataModule, PortraitSettings, ReferenceSet
from fastcomposer.training.personalization.custom_diffusion import CustomDiffusion
from fastcomposer.training.personalization.dreambooth import DreamBooth
from fastcomposer.training.personalization.fine_tuning import PersonalizationModule
from fastcomposer.training.personalization.prior import ClassImages
from fastcomposer.training.personalization.textual_inversion import TextualInversion

METHODS = {
    "textual_inversion": TextualInversion,
    "dreambooth": DreamBooth,
    "custom_diffusion": CustomDiffusion,
}
RATES = {"textual_inversion": 0.3, "dreambooth": 3e-3, "custom_diffusion": 3e-2}


@pytest.fixture(scope="session")
def people(tmp_path_factory: pytest.TempPathFactory) -> tuple[ReferenceSet, ...]:
    """A man and a woman with two images each, transparent around a disc."""
    folder = tmp_path_factory.mktemp("people")
    sets = []
    y, x = np.mgrid[:24, :24] - 11.5
    for name, word, color in (("adam", "man", (220, 60, 40)), ("eve", "woman", (40, 80, 220))):
        files = []
        for k in range(2):
            pixels = np.zeros((24, 24, 4), np.uint8)
            pixels[x**2 + y**2 < (8 + 3 * k) ** 2] = (*color, 255)
            files.append(folder / f"{name}_{k}.png")
            Image.fromarray(pixels).save(files[-1])
        sets.append(ReferenceSet(name, word, tuple(files)))
    return tuple(sets)


@pytest.fixture
def settings(small_base: Path, tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """Settings of a method for a training of seconds."""

    def choose(name: str, **changes: Any) -> dict[str, Any]:
        chosen: dict[str, Any] = {
            "base": str(small_base),
            "images": PortraitSettings(16, batch_size=2, flip=0.0),
            "templates": ["a photo of a {}"],
            "steps": 2,
            "optimizer": partial(torch.optim.AdamW, lr=RATES[name], weight_decay=0.01),
        }
        if name != "textual_inversion":
            chosen["class_images"] = ClassImages(tmp_path / "class", count=3, num_inference_steps=2)
        return chosen | changes

    return choose


@pytest.fixture
def make(settings: Callable[..., Mapping[str, Any]]) -> Callable[..., PersonalizationModule]:
    """Build a method by name."""
    return lambda name, **changes: METHODS[name](**settings(name, **changes))


@pytest.fixture
def fit() -> Callable[..., L.Trainer]:
    """Train a module on some people, silently."""

    def run(
        module: PersonalizationModule,
        people: tuple[ReferenceSet, ...],
        resume: Path | None = None,
        **options: Any,
    ) -> L.Trainer:
        quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
        steps = module.steps * len(people)
        trainer = L.Trainer(
            **{"accelerator": "cpu", "max_steps": steps, "enable_model_summary": False, **quiet, **options}
        )
        data = PortraitDataModule(people, module.images, seed=0)
        trainer.fit(module, data, ckpt_path=resume, weights_only=True)
        return trainer

    return run


@pytest.fixture
def factory(settings: Callable[..., Mapping[str, Any]]) -> Callable[..., partial[PersonalizationModule]]:
    """What a configuration with ``_partial_`` gives for a method."""
    return lambda name, **changes: partial(METHODS[name], **settings(name, **changes))
