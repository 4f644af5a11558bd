"""A training that is told to stop."""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import pytest
from lightning.pytorch.callbacks import Callback
from torch.utils.flop_counter import FlopCounterMode

from fastcomposer.training.callbacks import GracefulStop, OperationCount
from fastcomposer.training.checkpoints import read_step

Make = Callable[..., Any]


@pytest.mark.parametrize(
    ("batch_size", "signalled"),
    [(2, (1, 3)), (12, (1, 0))],  # the latter with 2 batches an epoch, less than a step
)
def test_a_signal_waits_for_the_gradients_of_the_step(
    batch_size: int, signalled: tuple[int, int], make_module: Make, make_data: Make, fit: Make, tmp_path: Path
) -> None:
    class Interrupt(Callback):
        def on_train_batch_start(self, trainer: L.Trainer, module: Any, batch: Any, batch_idx: int) -> None:
            if (trainer.global_step, batch_idx) == signalled:
                signal.raise_signal(signal.SIGTERM)

    before, module, data = signal.getsignal(signal.SIGTERM), make_module(), make_data(batch_size=batch_size)
    callbacks = [GracefulStop(tmp_path), Interrupt()]
    fit(module, 6, data=data, accumulate_grad_batches=3, callbacks=callbacks)
    assert module.global_step == 2
    assert data.state_dict()["batches"] == 6
    assert signal.getsignal(signal.SIGTERM) == before


@pytest.mark.parametrize("saving", [True, False])
def test_a_second_signal_leaves_a_whole_checkpoint(
    saving: bool, make_module: Make, make_data: Make, fit: Make, tmp_path: Path
) -> None:
    class Impatient(Callback):
        def on_train_batch_start(self, trainer: L.Trainer, *args: Any) -> None:
            if trainer.global_step == 1:
                for _ in range(1 if saving else 2):
                    signal.raise_signal(signal.SIGTERM)

        def on_save_checkpoint(self, *args: Any) -> None:
            signal.raise_signal(signal.SIGTERM)

    def train() -> None:
        fit(make_module(), 6, data=make_data(), callbacks=[GracefulStop(tmp_path), Impatient()])

    if saving:
        train()
        assert read_step(tmp_path / "last.ckpt") == 2
    else:
        with pytest.raises(SystemExit) as end:
            train()
        assert end.value.code == 143 and not (tmp_path / "last.ckpt").exists()


def test_operations_of_an_image_are_counted_forward_and_backward(
    make_module: Make, make_data: Make, fit: Make
) -> None:
    class Forward(Callback):
        """Operations of the forward pass alone."""

        def on_train_batch_start(self, trainer: L.Trainer, module: Any, batch: Any, batch_idx: int) -> None:
            with FlopCounterMode(display=False) as counter:
                module.model.training_losses(batch)
            self.count = counter.get_total_flops() / len(batch) / 1e9

    forward, found = Forward(), []
    for batch_size in (2, 4):
        callbacks = [forward, OperationCount(every_n_logs=2)]
        data = make_data(batch_size=batch_size)
        trainer = fit(make_module(), 2, data=data, callbacks=callbacks, log_every_n_steps=1)
        found.append(float(trainer.callback_metrics["train/gflop_per_image"]))
    assert found[0] == pytest.approx(found[1], rel=0.02)
    assert found[0] > 1.5 * forward.count > 0
