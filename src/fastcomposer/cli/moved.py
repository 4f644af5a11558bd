"""Targets in what earlier versions saved: the configuration of a run, the record of a sweep's job."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf

MOVED = {
    "fastcomposer.models.composer.FastComposer.from_pretrained": "fastcomposer.FastComposer.from_pretrained",
    "fastcomposer.evaluation.speed_step.StepSettings": "fastcomposer.evaluation.speed.step.StepSettings",
    "fastcomposer.evaluation.search.load_search": "fastcomposer.evaluation.sweeps.grid_search.load_search",
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


def with_present_targets(settings: Any) -> Any:
    """The same for settings in plain values, which stay as they are."""
    if isinstance(settings, Mapping):
        renamed = {key: with_present_targets(value) for key, value in settings.items()}
        if "_target_" in renamed:
            renamed["_target_"] = MOVED.get(renamed["_target_"], renamed["_target_"])
        return renamed
    return [with_present_targets(entry) for entry in settings] if isinstance(settings, list) else settings
