"""A scheduler's notice to a training, and what ends one without notice."""

from __future__ import annotations

import os
import signal
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback


class SignalAt(Callback):
    """Sends this process a signal within a step."""

    def __init__(self, step: int, name: str) -> None:
        self.step, self.name = step, name

    def on_train_batch_start(self, trainer: L.Trainer, *args: Any) -> None:
        if trainer.global_step == self.step:
            signal.raise_signal(signal.Signals[self.name])


class KillBeforeValidation(Callback):
    """Kills this process when the first validation begins."""

    def on_validation_start(self, *args: Any) -> None:
        os.kill(os.getpid(), signal.SIGKILL)
