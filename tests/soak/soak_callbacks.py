"""What a soak puts into a training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback

TRIGGER = "nan"
"""Name of the file that sets off :class:`NanBurst`, in the folder that the training was called in."""


class NanBurst(Callback):
    """Make weights and losses NaN from the step after the trigger appears until the process ends."""

    def __init__(self) -> None:
        self.trigger = Path(TRIGGER).absolute()

    @torch.no_grad()
    def on_train_batch_start(self, trainer: L.Trainer, pl_module: L.LightningModule, *batch: Any) -> None:
        """Overwrite a trained weight."""
        if self.trigger.exists():
            self.trigger.unlink()
            next(weight for weight in pl_module.parameters() if weight.requires_grad).fill_(float("nan"))
