"""Prepare data: ``python -m fastcomposer.cli.prepare data=avatars``."""

from __future__ import annotations

import logging
from collections.abc import Callable

from omegaconf import DictConfig

from fastcomposer.cli.common import command


@command("prepare")
def main(config: DictConfig) -> None:
    """Call what the data configuration names under ``prepare``."""
    if config.data.prepare is None:
        raise ValueError(
            "this data choice is ready-made: data.prepare is null, so there is nothing to prepare"
        )

    from hydra.utils import instantiate

    say: Callable[[str], None] = print
    if "trainer" in config.data.prepare:  # several processes may be at work
        from lightning.pytorch.utilities import rank_zero_only

        for name in ("lightning.pytorch", "lightning.fabric"):  # importing Lightning has set these levels
            logging.getLogger(name).setLevel(logging.WARNING)
        say = rank_zero_only(print)
    made = instantiate(config.data.prepare)
    say(f"{made} records made; the data folder is {config.data.root}")


if __name__ == "__main__":
    main()
