"""Training of a tiny model on a tiny data folder."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch

from fastcomposer.composer import FastComposer
from fastcomposer.data.datamodule import SubjectDataModule
from fastcomposer.losses import LossConfig
from fastcomposer.models.loading import load_tokenizer
from fastcomposer.training.module import FastComposerModule


@pytest.fixture
def make_module(small_base: Path) -> Callable[..., FastComposerModule]:
    """Build the training of a fresh copy of the tiny model."""

    def build(**settings: Any) -> FastComposerModule:
        torch.manual_seed(0)  # the fusion starts at random
        usual = LossConfig(mask_loss_per_sample=True, mask_loss_skip_unconditional=True)
        loss = settings.pop("loss_config", usual)
        settings = {"ema_decay": 0.9, "warmup_steps": 5, **settings}
        return FastComposerModule(
            model=partial(
                FastComposer.from_pretrained,
                small_base,
                loss_config=loss,
                fusion=settings.pop("fusion", None),
                max_subjects=settings.pop("max_subjects", 4),
            ),
            optimizer=settings.pop("optimizer", partial(torch.optim.AdamW, lr=1e-3)),
            vision_layers=settings.pop("vision_layers", 1),
            **settings,
        )

    return build


@pytest.fixture
def make_data(world: Path, small_base: Path) -> Callable[..., SubjectDataModule]:
    """Build the data module of the tiny folder."""

    def build(**settings: Any) -> SubjectDataModule:
        settings = {"batch_size": 2, "reference": "other_image", "max_subjects": 3, **settings}
        sizes = {"resolution": 32, "reference_size": 56}
        settings = {"root": world, "augmentation": None, **sizes, **settings}
        if "tokenizer" not in settings:
            settings["tokenizer"] = load_tokenizer(str(small_base))
        return SubjectDataModule(**settings)

    return build


@pytest.fixture
def make_trainer(tmp_path: Path) -> Callable[..., L.Trainer]:
    """Build a silent trainer on the CPU."""

    def build(**settings: Any) -> L.Trainer:
        defaults: dict[str, Any] = {
            "accelerator": "cpu",
            "default_root_dir": tmp_path,
            "logger": False,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "enable_checkpointing": False,
            "limit_val_batches": 0,
            "num_sanity_val_steps": 0,
            "gradient_clip_val": 1.0,
            "log_every_n_steps": 1,
        }
        return L.Trainer(**{**defaults, **settings})

    return build


@pytest.fixture
def fit(
    make_data: Callable[..., SubjectDataModule], make_trainer: Callable[..., L.Trainer]
) -> Callable[..., L.Trainer]:
    """Train a module for some steps; returns the trainer."""

    def run(
        module: FastComposerModule, steps: int, data: Any = None, resume: Path | None = None, **settings: Any
    ) -> L.Trainer:
        trainer = make_trainer(max_steps=steps, **settings)
        trainer.fit(module, data or make_data(), ckpt_path=resume, weights_only=True)
        return trainer

    return run
