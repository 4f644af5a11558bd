"""Trainings that are killed about a validation."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import pytest
from lightning.pytorch.callbacks import Callback
from small_training import log_rows, saving

from fastcomposer.training.base_module import fit
from fastcomposer.training.checkpoints import newest_complete
from fastcomposer.training.loggers import ContinuedCSVLogger
from fastcomposer.training.objective import Objective

Make = Callable[..., Any]


class _Kill(Callback):
    """Kills its process, the hard way, before or after the validation of a step."""

    def __init__(self, step: int, after: bool) -> None:
        self.step, self.after = step, after

    def _kill(self, trainer: L.Trainer, after: bool) -> None:
        if trainer.global_step == self.step and after == self.after:
            os.kill(os.getpid(), signal.SIGKILL)

    def on_validation_start(self, trainer: L.Trainer, *args: Any) -> None:
        self._kill(trainer, False)

    def on_train_batch_start(self, trainer: L.Trainer, *args: Any) -> None:
        self._kill(trainer, True)


class _Validations(Callback):
    """Notes the steps whose validation ends, in a file that outlasts the process."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def on_validation_epoch_end(self, trainer: L.Trainer, *args: Any) -> None:
        with self.file.open("a") as file:
            file.write(f"{trainer.global_step}\n")


@pytest.fixture
def trained(make_module: Make, make_data: Make, make_trainer: Make) -> Make:
    """Train with checkpoints, a log and validations every second step; returns all steps validated so far."""

    def run(folder: Path, kill: _Kill | None = None, every: int = 2, **settings: Any) -> list[int]:
        seen, objective = _Validations(folder.with_suffix(".txt")), Objective("val/denoise_loss")
        validation = {"limit_val_batches": 1, "val_check_interval": 2, "check_val_every_n_epoch": None}
        saved = saving(folder, "checkpoint", "stop", every=every)
        settings = {"max_steps": 4, **validation, **saved, **settings}
        settings["callbacks"] = [seen, objective, *settings["callbacks"], *([kill] if kill else [])]
        trainer = make_trainer(logger=ContinuedCSVLogger(folder, name=None, version="logs"), **settings)
        fit(trainer, make_module(), make_data(), newest_complete(folder / "checkpoints"))
        last = [row["val/denoise_loss"] for row in log_rows(folder) if row["val/denoise_loss"]][-1]
        assert objective.measured() == pytest.approx(float(last), rel=1e-6)  # what a search goes by
        return [int(step) for step in seen.file.read_text().split()]

    return run


def _killed(train: Callable[[], object]) -> None:
    """Train in a process that dies."""
    process = multiprocessing.get_context("fork").Process(target=train)
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL


@pytest.mark.parametrize("settings", [{}, {"limit_train_batches": 2}])  # the latter with ends of epochs
def test_a_validation_that_was_due_is_made_up_for_once(
    settings: dict[str, Any], trained: Make, tmp_path: Path
) -> None:
    whole, run = tmp_path / "whole", tmp_path / "run"
    assert trained(whole, **settings) == [2, 4]
    # Before the first validation, before the one that makes up for it, after it, and before the last one,
    # behind which there is no training left.
    for kill in (_Kill(2, False), _Kill(2, False), _Kill(2, True), _Kill(4, False)):
        _killed(lambda kill=kill: trained(run, kill, **settings))
    assert trained(run, **settings) == [2, 4]
    assert trained(run, **settings) == [2, 4]  # called again, it repeats nothing
    assert log_rows(run) == log_rows(whole)


def test_a_validation_at_the_end_of_the_time_is_made_up_for(trained: Make, tmp_path: Path) -> None:
    budget = {"max_steps": -1, "max_time": {"seconds": 1e-6}, "every": 1}  # the first step uses it up
    _killed(lambda: trained(tmp_path / "run", _Kill(1, False), **budget))
    assert trained(tmp_path / "run", **budget) == [1]


def test_the_end_of_an_epoch_without_validation_is_saved(
    make_module: Make, make_data: Make, make_trainer: Make, tmp_path: Path
) -> None:
    rare = {"limit_train_batches": 2, "val_check_interval": 5, "check_val_every_n_epoch": None}
    saved = saving(tmp_path, "checkpoint", every=2)
    make_trainer(max_steps=3, limit_val_batches=1, **rare, **saved).fit(make_module(), make_data())
    assert [file.name for file in (tmp_path / "checkpoints").glob("step=*")] == ["step=000002.ckpt"]
