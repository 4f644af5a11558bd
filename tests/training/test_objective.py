"""What a search of training settings goes by."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
import torch
from lightning.pytorch.callbacks import Callback, EarlyStopping

from fastcomposer.training.callbacks import Throughput
from fastcomposer.training.module import FastComposerModule
from fastcomposer.training.objective import Objective, check_logged
from fastcomposer.training.personalization.dreambooth import DreamBooth


def test_an_objective_that_nobody_logs_is_refused() -> None:
    found = [FastComposerModule, EarlyStopping, Throughput]
    check_logged("val/denoise_loss", found)
    check_logged("train/grad_norm", [DreamBooth])
    with pytest.raises(ValueError, match=r"val/los: not logged; there is train/.*, val/localization"):
        check_logged("val/los", found)

    class Silent(Callback):
        """Of somebody else."""

    class Open(Callback):
        LOGGED: ClassVar = ("mine/score",)

    check_logged("val/los", [*found, Silent])  # it may log anything
    with pytest.raises(ValueError, match="there is mine/score, train/"):
        check_logged("val/los", [*found, Open])


def test_the_last_value_counts_through_interruptions() -> None:
    metrics: dict[str, Any] = {"train/loss": torch.tensor(2.0), "val/loss": torch.tensor(0.5)}
    trainer: Any = SimpleNamespace(callback_metrics=metrics)
    first = Objective("val/loss")
    first.setup(trainer, None, "fit")  # type: ignore[arg-type]
    assert first.measured() == 0.5
    state = first.state_dict()
    del metrics["val/loss"]
    again = Objective("val/loss")
    again.setup(trainer, None, "fit")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="never logged in so few steps; there is train/loss"):
        again.measured()
    again.load_state_dict(state)
    assert again.measured() == 0.5
    metrics["val/loss"] = torch.tensor(float("nan"))
    with pytest.raises(ValueError, match="objective=val/loss: the training ended at nan"):
        again.measured()
    other = Objective("train/loss")
    other.load_state_dict(state)  # of another objective
    other.setup(SimpleNamespace(callback_metrics={}), None, "fit")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="never logged"):
        other.measured()
