"""Configurations as a command composes them."""

from __future__ import annotations

from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from fastcomposer.cli.common import CONFIG_FOLDER


def composed(command: str, *overrides: str) -> DictConfig:
    """The configuration of a command with overrides."""
    with initialize_config_dir(str(CONFIG_FOLDER), version_base="1.3"):
        config = compose(
            command, [*overrides, "hydra.runtime.output_dir=outputs/test"], return_hydra_config=True
        )
    HydraConfig.instance().set_config(config)
    return config
