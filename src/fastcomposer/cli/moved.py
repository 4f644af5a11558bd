"""Targets in configurations that earlier versions saved, such as a run's ``.hydra/config.yaml``."""

from __future__ import annotations

from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf

MOVED = {
    "fastcomposer.models.composer.FastComposer.from_pretrained": "fastcomposer.FastComposer.from_pretrained",
    "fastcomposer.evaluation.speed_step.StepSettings": "fastcomposer.evaluation.speed.step.StepSettings",
    "fastcomposer.evaluation.growth.Machines": "fastcomposer.evaluation.speed.growth.Machines",
}
"""What a target was called, and what it is called now."""


def rename_targets(config: DictConfig | ListConfig) -> None:
    """Put present names in the place of those that targets had once, everywhere in a configuration."""
    keys: Any = config.keys() if isinstance(config, DictConfig) else range(len(config))
    for key in keys:
        if OmegaConf.is_interpolation(config, key) or OmegaConf.is_missing(config, key):
            continue
        value = config[key]
        if isinstance(value, DictConfig | ListConfig):
            rename_targets(value)
        elif key == "_target_" and value in MOVED:
            config[key] = MOVED[value]
