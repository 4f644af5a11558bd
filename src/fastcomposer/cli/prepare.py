"""Prepare data: ``python -m fastcomposer.cli.prepare data=avatars``."""

from __future__ import annotations

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

    made = instantiate(config.data.prepare)
    print(f"{made} records made; the data folder is {config.data.root}")


if __name__ == "__main__":
    main()
