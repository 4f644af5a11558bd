"""Where a training resumes, and whether its checkpoint was made with the present settings."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

FIXED = ("method", "data.module", "seed", "trainer.gradient_clip_val", "trainer.gradient_clip_algorithm")
"""What a checkpoint records; groups such as ``model`` and ``localization`` are interpolated into these."""
FREE = (
    # The records are compared by their digest, wherever they lie and whatever reads them.
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
"""What may change in silence, as everything outside :data:`FIXED` may."""
APPLIED = (
    *("method.optimizer", "method.warmup_steps", "method.cooldown"),
    *("trainer.gradient_clip_val", "trainer.gradient_clip_algorithm"),
)
"""What may change with a message: how the optimizer uses gradients from the next step on."""
SAMPLES = "data.module.batch_size × trainer.accumulate_grad_batches × processes"
"""Samples in a step."""
RECORDS = "data.root"
"""The training records: a digest of them, ``None`` where some are skipped; or else the folder."""
_SOURCE = re.compile(r"\$\{(?:oc\.select:)?([\w.]+)(?:,[^}]*)?\}")


def find_checkpoint(resume: str | None, folder: Path) -> Path | None:
    """Find the checkpoint to resume from in a run's folder of checkpoints; ``None`` for a new training.

    Args:
        resume: ``None`` for a new run, ``auto``, ``restart``, which removes the checkpoints, or a file.
        folder: The folder.
    """
    if resume == "auto":
        from fastcomposer.training.checkpoints import newest_complete

        return newest_complete(folder)
    if resume == "restart":
        shutil.rmtree(folder, ignore_errors=True)
        return None
    if resume is not None:
        if not Path(resume).is_file():
            raise FileNotFoundError(f"resume={resume}: no such checkpoint file (or auto, restart, null)")
        from fastcomposer.training.checkpoints import check_complete

        check_complete(Path(resume))
        return Path(resume)
    if any(folder.glob("*.ckpt")):
        raise ValueError(
            f"{folder.parent} holds an earlier run; resume=auto continues it, name=<other> starts beside it, "
            "resume=restart forgets it"
        )
    return None


def training_settings(config: Mapping[str, Any], trainer: Any, data: Any) -> dict[str, Any]:
    """Collect the settings that a checkpoint records, as plain values by configuration key."""
    found: dict[str, Any] = {}
    for key in FIXED:
        found[key] = config
        for part in key.split("."):
            found[key] = (found[key] or {}).get(part)
    processes = trainer.num_devices * trainer.num_nodes
    batch_size = config["data"]["module"].get("batch_size", 1)  # of other data it is a setting of the method
    found[SAMPLES] = batch_size * trainer.accumulate_grad_batches * processes
    found[RECORDS] = config["data"].get("root")
    if hasattr(data, "manifest"):
        records = data.manifest()[data.train_split]
        found[RECORDS] = None if records["bad_records"] else records["digest"]
    return found


def check_resumable(checkpoint: Path, settings: Mapping[str, Any], config: Mapping[str, Any]) -> list[str]:
    """Compare a training with its checkpoint; returns the changes that are applied from now on.

    A value that ``config`` interpolates is named by the key it comes from.

    Raises:
        ValueError: If anything else differs, with all keys and both values.
    """
    from fastcomposer.training.checkpoints import read_settings

    old, new = (dict(_leaves(one)) for one in (read_settings(checkpoint), settings))
    applied: dict[str, str] = {}
    refused: dict[str, str] = {}
    for key in dict.fromkeys([*old, *new]):
        was, now = old.get(key), new.get(key)
        if was == now or _within(key, FREE):
            continue
        if key == RECORDS:
            if None in (was, now):  # some are damaged since, or mended: the data module reports them
                continue
            was, now = (f"{one.get('data.module.root')} (records {one[key]})" for one in (old, new))
        # The optimizer's states fit neither another class nor 8 bits.
        fits = key != "method.optimizer._target_" and "8bit" not in (was, now)
        changes = applied if fits and _within(key, APPLIED) else refused
        changes[_source(config, key)] = f"{was}, now {now}"
    if refused:
        listed = "; ".join(f"{key}: {change}" for key, change in refused.items())
        raise ValueError(
            f"{checkpoint} was trained with other settings: {listed}. Give the old values, or resume=restart "
            "to begin anew (name=<other> beside it)"
        )
    return [f"{key}: {change}, applied from here on" for key, change in applied.items()]


def _within(key: str, prefixes: tuple[str, ...]) -> bool:
    return any(key == prefix or key.startswith(f"{prefix}.") for prefix in prefixes)


def _leaves(value: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    if not isinstance(value, Mapping) or not value:
        yield key, value
        return
    for part, one in value.items():
        yield from _leaves(one, f"{key}.{part}".lstrip("."))


def _source(node: Any, key: str) -> str:
    """Key that a value comes from: another than its own where it is interpolated."""
    parts = key.split(".")
    for depth, part in enumerate(parts, start=1):
        node = node.get(part) if isinstance(node, Mapping) else None
        if isinstance(node, str) and (found := _SOURCE.fullmatch(node)):
            return ".".join([found[1], *parts[depth:]])
    return key
