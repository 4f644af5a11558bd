"""A training that is told to stop."""

from __future__ import annotations

import signal
from collections.abc import Callable
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning as L
import pytest
from lightning.pytorch.callbacks import Callback

from fastcomposer.training.callbacks import GracefulStop, TrainingProgress

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

    module, data = make_module(), make_data(batch_size=batch_size)
    callbacks = [GracefulStop(tmp_path), Interrupt()]
    fit(module, 6, data=data, accumulate_grad_batches=3, callbacks=callbacks)
    assert module.global_step == 2
    assert data.state_dict()["batches"] == 6


def test_a_log_has_a_line_now_and_then(
    make_module: Make,
    fit: Make,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seconds = count(0, 10)
    clock = SimpleNamespace(monotonic=lambda: float(next(seconds)))
    monkeypatch.setattr("fastcomposer.training.callbacks.time", clock)
    progress = TrainingProgress(interval=30)
    fit(make_module(), 7, callbacks=[progress], enable_progress_bar=True)
    out, err = capsys.readouterr()
    assert out == ""
    lines = [line for line in err.splitlines() if line.startswith(str(tmp_path))]
    first, second = (line.partition(", loss ") for line in lines)
    assert first[0] == f"{tmp_path}: step 3/7 after 0:00:30"
    assert second[0] == f"{tmp_path}: step 6/7 after 0:01:00"
    assert 0 < float(first[2]) < 10
