"""Trainers of two processes on the CPU."""

from __future__ import annotations

from typing import Any

from configurations import composed
from hydra.utils import instantiate


def two() -> dict[str, Any]:
    """Settings of a trainer with two processes, in the way of ``trainer=ddp``."""
    strategy = composed("train", "trainer=ddp").trainer.strategy
    return {"strategy": instantiate(strategy, start_method="fork"), "devices": 2}
