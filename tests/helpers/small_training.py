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


def bare_training(base: Path | str, world: Path | str, steps: int, *more: str) -> list[str]:
    """A small training of so many steps and nothing beside them: no samples, no validation.

    Args:
        base: Base model.
        world: Data folder.
        steps: How many.
        *more: Further settings.
    """
    return small_training(
        base,
        world,
        "~callbacks.samples",
        "data.module.batch_size=2",
        "data.module.num_workers=0",
        f"trainer.max_steps={steps}",
        "trainer.limit_val_batches=0",
        *more,
    )
