"""A training that is told to stop."""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback

from fastcomposer.training.callbacks import GracefulStop

Make = Callable[..., Any]


def test_a_signal_ends_after_the_step_and_saves(
    make_module: Make, make_data: Make, make_trainer: Make, tmp_path: Path
) -> None:
    class Interrupt(Callback):
        def on_train_batch_start(self, trainer: L.Trainer, *args: Any) -> None:
            if trainer.global_step == 3:
                signal.raise_signal(signal.SIGTERM)

    before = signal.getsignal(signal.SIGTERM)
    stop = GracefulStop(tmp_path)
    module = make_module()
    make_trainer(max_steps=50, callbacks=[stop, Interrupt()]).fit(module, make_data())
    assert stop.stopped
    assert module.global_step == 4
    assert torch.load(tmp_path / "last.ckpt", weights_only=True)["global_step"] == 4
    assert signal.getsignal(signal.SIGTERM) == before


def test_a_signal_waits_for_the_gradients_of_the_step(
    make_module: Make, make_data: Make, make_trainer: Make, tmp_path: Path
) -> None:
    class Interrupt(Callback):
        def on_train_batch_start(self, trainer: L.Trainer, module: Any, batch: Any, batch_idx: int) -> None:
            if batch_idx == 3:
                signal.raise_signal(signal.SIGTERM)

    module, data = make_module(), make_data()
    callbacks = [GracefulStop(tmp_path), Interrupt()]
    make_trainer(max_steps=50, accumulate_grad_batches=3, callbacks=callbacks).fit(module, data)
    assert module.global_step == 2
    assert data.state_dict()["batches"] == 6
