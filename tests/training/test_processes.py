"""Trainings on two processes are those of one, and end together."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import Callback
from small_training import two

from fastcomposer.training.base_module import RecipeModule
from fastcomposer.training.callbacks import GracefulStop
from fastcomposer.training.checkpoints import read_step
from fastcomposer.utils.rng import uniform

Make = Callable[..., Any]


class _Notes(Callback):
    """Keeps each process's records, gradients of the first step, learning rates and logged losses."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.records: list[str] = []
        self.gradients: dict[str, torch.Tensor] = {}
        self.losses: list[float] = []
        self.rates: list[float] = []

    def on_train_batch_start(self, trainer: L.Trainer, module: Any, batch: Any, batch_idx: int) -> None:
        self.records += batch.record_ids

    def on_before_optimizer_step(self, trainer: L.Trainer, module: Any, optimizer: Any) -> None:
        self.rates.append(optimizer.param_groups[0]["lr"])
        if trainer.global_step == 0:
            trained = module.trained_parameters()
            self.gradients = {name: p.grad.clone() for name, p in trained.items() if p.grad is not None}

    def on_train_batch_end(
        self, trainer: L.Trainer, module: Any, outputs: Any, *args: Any, **kwargs: Any
    ) -> None:
        self.losses.append(trainer.callback_metrics["train/loss"].item())

    def on_train_end(self, trainer: L.Trainer, module: Any) -> None:
        weights = {name: p.detach() for name, p in module.trained_parameters().items()}
        averages = dict(zip(weights, module.ema.shadow_params, strict=True))
        content = {"records": self.records, "gradients": self.gradients, "losses": self.losses}
        content |= {"rates": self.rates, "weights": weights, "averages": averages}
        torch.save(content, self.folder / f"{trainer.global_rank}.pt")


@pytest.fixture
def fit(make_module: Make, make_data: Make, make_trainer: Make, tmp_path: Path) -> Make:
    """Train for some steps; returns what each process noted."""

    def run(
        name: str, batch_size: int, steps: int, module: dict[str, Any] | None = None, **settings: Any
    ) -> list[dict[str, Any]]:
        folder = tmp_path / name
        folder.mkdir()
        trainer = make_trainer(max_steps=steps, callbacks=[_Notes(folder)], **settings)
        trainer.fit(make_module(**(module or {})), make_data(batch_size=batch_size))
        return [torch.load(file, weights_only=True) for file in sorted(folder.glob("*.pt"))]

    return run


def furthest(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    """Largest difference of any two numbers."""
    assert one.keys() == other.keys() and len(one) > 20
    return max((one[name] - other[name]).abs().max().item() for name in one)


def test_two_processes_train_as_one(fit: Make) -> None:
    (alone,) = fit("alone", 8, 20)
    first, second = fit("two", 4, 20, **two())
    # Samples are dealt out in turns.
    assert first["records"][:4] + second["records"][:4] == alone["records"][:8:2] + alone["records"][1:8:2]
    assert sorted(first["records"] + second["records"]) == sorted(alone["records"])
    largest = max(gradient.abs().max().item() for gradient in alone["gradients"].values())
    assert largest > 1e-3  # so that the next lines say something
    assert furthest(first["gradients"], alone["gradients"]) < 1e-5 * max(1, largest)
    assert furthest(first["gradients"], second["gradients"]) == 0
    assert first["losses"] == pytest.approx(alone["losses"], abs=1e-4)
    assert furthest(first["weights"], alone["weights"]) < 1e-4
    assert furthest(first["averages"], alone["averages"]) < 1e-4
    assert furthest(first["weights"], second["weights"]) == 0


_PROCESS = RecipeModule(partial(torch.optim.SGD, lr=1.0))


def masks(step: int, rank: int, batch: int) -> bool:
    """Whether a process masks the losses of a batch of a step."""
    _PROCESS._trainer = SimpleNamespace(global_step=step, global_rank=rank)  # type: ignore[assignment]
    _PROCESS.seed, _PROCESS._micro_batch = 42, batch
    return bool(uniform((1,), "cpu", _PROCESS.mask_generator()) < 0.5)


@pytest.mark.parametrize(("rank", "batch", "numbers"), [(0, 0, ()), (3, 0, (3,)), (1, 2, (1, 2))])
def test_masks_come_from_seed_step_process_and_batch(rank: int, batch: int, numbers: tuple[int, ...]) -> None:
    for step in range(20):
        state = np.random.SeedSequence((42, step, 2**32 - 1, *numbers)).generate_state(1, np.uint64)[0]
        generator = torch.Generator().manual_seed(int(state >> 1))
        assert masks(step, rank, batch) == bool(torch.rand(1, generator=generator) < 0.5)


def test_processes_cool_down_by_one_clock(fit: Make) -> None:
    budget = {"max_time": {"seconds": 100}, "max_epochs": 1, "limit_train_batches": 3}
    first, second = fit("two", 4, -1, module={"cooldown": 1.0, "warmup_steps": 0}, **budget, **two())
    assert first["rates"][0] == 1e-3
    assert 1e-3 > first["rates"][1] > first["rates"][2] > 0
    assert first["rates"] == second["rates"]
    assert furthest(first["weights"], second["weights"]) == 0


def test_accumulated_batches_train_as_one(fit: Make) -> None:
    (alone,) = fit("alone", 8, 3)
    (parts,) = fit("parts", 4, 3, accumulate_grad_batches=2)
    assert parts["records"] == alone["records"]
    assert furthest(parts["gradients"], alone["gradients"]) < 1e-5
    assert furthest(parts["weights"], alone["weights"]) < 1e-4


class _Notice(Callback):
    """Sends the second process a signal within the fourth step."""

    def on_train_batch_start(self, trainer: L.Trainer, *args: Any) -> None:
        if trainer.global_rank == 1 and trainer.global_step == 3:
            os.kill(os.getpid(), signal.SIGTERM)


def test_a_signal_to_one_process_ends_both_after_one_step(
    fit: Make, make_module: Make, make_data: Make, make_trainer: Make, tmp_path: Path
) -> None:
    (whole,) = fit("whole", 4, 8)
    callbacks = [GracefulStop(tmp_path), _Notice()]
    trainer = make_trainer(max_steps=8, callbacks=callbacks, log_every_n_steps=3, **two())
    trainer.fit(make_module(), make_data(batch_size=2))
    assert read_step(tmp_path / "last.ckpt") == 6  # the next step after which processes ask each other
    # It goes on with one process.
    notes = tmp_path / "resumed"
    notes.mkdir()
    trainer = make_trainer(max_steps=8, callbacks=[_Notes(notes)])
    trainer.fit(make_module(), make_data(batch_size=4), ckpt_path=tmp_path / "last.ckpt", weights_only=True)
    resumed = torch.load(notes / "0.pt", weights_only=True)
    assert resumed["records"] == whole["records"][24:]
    assert furthest(resumed["weights"], whole["weights"]) < 1e-4
