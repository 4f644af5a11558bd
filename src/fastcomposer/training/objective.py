"""The objective of a search of training settings: a metric that is logged."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback


def check_logged(objective: str, classes: Iterable[type]) -> None:
    """Refuse a metric that is in no ``LOGGED`` of the module and the callbacks.

    Where a class is neither of this package nor of Lightning and has no such list, any name may be right.
    """
    found = list(classes)
    names = {name for cls in found for base in cls.__mro__ for name in vars(base).get("LOGGED", ())}
    ours = ("fastcomposer.", "lightning.")
    known = all(cls.__module__.startswith(ours) or "LOGGED" in vars(cls) for cls in found)
    if known and objective not in names:
        raise ValueError(f"objective={objective}: not logged; there is {', '.join(sorted(names))}")


class Objective(Callback):
    """Remember the last value of a metric, through interruptions: a training may end before the next one."""

    def __init__(self, name: str) -> None:
        self.name, self._earlier = name, None
        self._metrics: Callable[[], Mapping[str, Any]] = dict

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Take the metrics from this trainer."""
        self._metrics = lambda: trainer.callback_metrics

    def state_dict(self) -> dict[str, Any]:
        """The last value so far."""
        return {"name": self.name, "value": self._last()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over the last value of the interrupted training."""
        if state_dict["name"] == self.name:
            self._earlier = state_dict["value"]

    def measured(self) -> float:
        """The last value; refused if the metric was never logged or is not finite."""
        value = self._last()
        if value is None:
            there = ", ".join(sorted(self._metrics()))
            raise ValueError(f"objective={self.name}: never logged in so few steps; there is {there}")
        if not math.isfinite(value):
            raise ValueError(f"objective={self.name}: the training ended at {value}")
        return value

    def _last(self) -> float | None:
        value = self._metrics().get(self.name)
        return self._earlier if value is None else float(value)
