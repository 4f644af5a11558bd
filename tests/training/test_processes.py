"""Trainings on two processes are those of one, and end together."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from configurations import composed
from hydra.utils import instantiate
from lightning.pytorch.callbacks import Callback

from fastcomposer.losses import LossConfig
from fastcomposer.training.callbacks import GracefulStop
from fastcomposer.training.checkpoints import read_step

Make = Callable[..., Any]


def two() -> dict[str, Any]:
    """Settings of a trainer with two processes, in the way of ``trainer=ddp``."""
    strategy = composed("train", "trainer=ddp").trainer.strategy
    return {"strategy": instantiate(strategy, start_method="fork"), "devices": 2}


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

    def on_train_batch_end(self, trainer: L.Trainer, *args: Any, **kwargs: Any) -> None:
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


def test_a_step_masks_all_of_its_batches_or_none(fit: Make) -> None:
    """One draw for two processes, and for two accumulated batches, as for one batch of all samples."""
    once = LossConfig()
    (alone,) = fit("alone", 8, 6, module={"loss_config": once})
    for name, batch_size, settings in (("two", 4, two()), ("parts", 4, {"accumulate_grad_batches": 2})):
        found = fit(name, batch_size, 6, module={"loss_config": once}, **settings)
        assert furthest(found[0]["weights"], alone["weights"]) < 1e-4
        if name == "two":
            assert found[0]["losses"] == pytest.approx(alone["losses"], abs=1e-4)
    (never,) = fit("never", 8, 6, module={"loss_config": LossConfig(mask_loss_probability=0)})
    masked = [a != pytest.approx(b, rel=0.02) for a, b in zip(never["losses"], alone["losses"], strict=True)]
    assert 0 < sum(masked) < 6


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
