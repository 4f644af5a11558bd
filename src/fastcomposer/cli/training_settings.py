"""What decides a training: kept in its checkpoints, and compared before it is resumed."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

DECIDING = ("method", "data.module", "seed", "trainer.gradient_clip_val", "trainer.gradient_clip_algorithm")
"""What a training is made of; groups such as ``model`` and ``localization`` are interpolated into these."""
FREE = (
    # Which records there are is compared by their digest, wherever they lie and whatever reads them.
    *("data.module._target_", "data.module.root", "data.module.local"),
    *("data.module.num_workers", "data.module.pin_memory", "data.module.cache"),
    *("data.module.val_split", "data.module.num_validation"),
    # What helps a training over a fault has to be changeable after it.
    *("data.module.on_bad_record", "method.max_bad_steps"),
    # Rounding and memory, as devices, strategy and precision are: a training may move to other machines.
    *("method.compile", "method.gradient_checkpointing"),
    # Length and what is left at the end.
    *("method.steps", "method.export_precision"),
    # Counted over all processes and accumulated batches, see SAMPLES.
    "data.module.batch_size",
)
"""What may change within a training without a word; everything outside :data:`DECIDING` may, too."""
APPLIED = (
    *("method.optimizer", "method.warmup_steps", "method.cooldown"),
    *("trainer.gradient_clip_val", "trainer.gradient_clip_algorithm"),
)
"""What may change on purpose: how the optimizer uses gradients from the next step on."""
SAMPLES = "data.module.batch_size × trainer.accumulate_grad_batches × processes"
"""Samples in a step."""
RECORDS = "data.root"
"""The training records: a digest of them, ``None`` where some are skipped; or else the folder."""
_SOURCE = re.compile(r"\$\{(?:oc\.select:)?([\w.]+)(?:,[^}]*)?\}")


def training_settings(config: DictConfig, trainer: Any, data: Any) -> dict[str, Any]:
    """Collect what a training is made of.

    Args:
        config: Of the training.
        trainer: Its trainer, which knows how many processes there are.
        data: Its data module; the training records are told by a digest where it has a ``manifest()``.

    Returns:
        Plain values by configuration key.
    """
    found: dict[str, Any] = {}
    for key in DECIDING:
        node = OmegaConf.select(config, key)
        found[key] = OmegaConf.to_container(node, resolve=True) if OmegaConf.is_config(node) else node
    processes = trainer.num_devices * trainer.num_nodes
    batch_size = config.data.module.get("batch_size", 1)  # of other data it is a setting of the method
    found[SAMPLES] = batch_size * trainer.accumulate_grad_batches * processes
    found[RECORDS] = config.data.get("root")
    if hasattr(data, "manifest"):
        records = data.manifest()[data.train_split]
        found[RECORDS] = None if records["bad_records"] else records["digest"]
    return found


def check_resumable(checkpoint: Path, settings: Mapping[str, Any], config: DictConfig) -> list[str]:
    """Compare a training with the checkpoint that it is to resume from.

    Args:
        checkpoint: The file.
        settings: See :func:`training_settings`.
        config: Of the training; a value that is interpolated is named by the key it comes from.

    Returns:
        The changes that are applied from now on.

    Raises:
        ValueError: If anything else differs, with all keys and both values.
        FaultError: If the checkpoint does not record its settings.
    """
    from fastcomposer.training.checkpoints import read_settings

    old, new = (dict(_leaves(one)) for one in (read_settings(checkpoint), settings))
    raw = OmegaConf.to_container(config, resolve=False)
    applied: dict[str, str] = {}
    refused: dict[str, str] = {}
    for key in dict.fromkeys([*old, *new]):
        was, now = old.get(key), new.get(key)
        if was == now or _within(key, FREE):
            continue
        if key == RECORDS:
            if None in (was, now):  # damaged since, or mended: the data module says so
                continue
            was, now = (f"{one.get('data.module.root')} (records {one[key]})" for one in (old, new))
        changes = applied if _is_applied(key, was, now) else refused
        changes[_source(raw, key)] = f"{was}, now {now}"
    if refused:
        listed = "; ".join(f"{key}: {change}" for key, change in refused.items())
        raise ValueError(
            f"{checkpoint} was trained with other settings: {listed}. Give the old values, or resume=restart "
            "to begin anew (name=<other> beside it)"
        )
    return [f"{key}: {change}, applied from here on" for key, change in applied.items()]


def _is_applied(key: str, old: Any, new: Any) -> bool:
    if key == "method.optimizer._target_" or "8bit" in (old, new):  # its states do not fit another one
        return False
    return _within(key, APPLIED)


def _within(key: str, prefixes: tuple[str, ...]) -> bool:
    return any(key == prefix or key.startswith(f"{prefix}.") for prefix in prefixes)


def _leaves(value: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    if not isinstance(value, Mapping) or not value:
        yield key, value
        return
    for part, one in value.items():
        yield from _leaves(one, f"{key}.{part}".lstrip("."))


def _source(raw: Any, key: str) -> str:
    """Where in a configuration a value comes from: another key than its own where it is interpolated."""
    node, parts = raw, key.split(".")
    for place, part in enumerate(parts):
        node = node.get(part) if isinstance(node, Mapping) else None
        if isinstance(node, str) and (found := _SOURCE.fullmatch(node)):
            return ".".join([found[1], *parts[place + 1 :]])
    return key
