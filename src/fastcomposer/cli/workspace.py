"""Create the panels of a project at Weights & Biases: ``fastcomposer workspace project=…``."""

from __future__ import annotations

from omegaconf import DictConfig

from fastcomposer.cli.common import command


@command("workspace")
def main(config: DictConfig) -> None:
    """Create them, and print where they are."""
    from fastcomposer.training.wandb_workspace import save_workspace

    print(save_workspace(config.project, config.entity))


if __name__ == "__main__":
    main()
