"""Settings of trainings of seconds, of the tests' small base on their small world."""

from __future__ import annotations

from pathlib import Path


def small_training(base: Path | str, world: Path | str, *more: str) -> list[str]:
    """What all small trainings have in common.

    Args:
        base: Base model.
        world: Data folder.
        *more: Further settings.
    """
    return [
        "experiment=mini",
        f"model.base={base}",
        "model.resolution=32",
        "model.reference_size=56",
        f"data.root={world}",
        "method.vision_layers=1",
        "trainer.max_time=null",
        *more,
    ]
