"""Jobs of several processes, and launchers that have no place for them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from omegaconf import DictConfig, OmegaConf

_IN_PLACE = ("BasicLauncher", "SlurmLauncher")  # in this process, or with a task for each device
_ALL = ("-1", "auto")


def check_processes(config: DictConfig, hydra: Any, visible: Callable[[], int]) -> None:
    """Refuse jobs of several processes in workers of a launcher.

    Lightning starts the other processes of a job by calling the program again, which in such a worker is the
    launcher's: they would end at once, or the job would wait for them without end.

    Args:
        config: Of the job; with or without a ``trainer``.
        hydra: Hydra's own part of it.
        visible: Counts the GPUs that a job sees.

    Raises:
        ValueError: If a job would be several processes.
    """
    launcher = hydra.launcher
    if str(launcher._target_).endswith(_IN_PLACE) or launcher.get("n_jobs") == 1:  # joblib's one is this one
        return
    trainer = config.get("trainer") or {}
    devices, nodes = trainer.get("devices", 1), int(trainer.get("num_nodes", 1))
    if OmegaConf.is_config(devices):
        devices = OmegaConf.to_container(devices)
    if nodes * devices_of(devices, str(trainer.get("accelerator")), visible) > 1:
        choice = hydra.runtime.choices.get("hydra/launcher")
        raise ValueError(
            f"hydra/launcher={choice} with trainer.devices={devices} and trainer.num_nodes={nodes}: its "
            "workers cannot start the further processes of a job. Give a job one device (trainer.devices=1), "
            "leave the launcher out, which runs one job after the other, or take hydra/launcher=slurm"
        )


def devices_of(devices: Any, accelerator: str, visible: Callable[[], int]) -> int:
    """How many devices Lightning takes: a number of them, their places, or all (``-1``, ``auto``)."""
    if str(devices) in _ALL:
        return 1 if accelerator == "cpu" else visible()
    if isinstance(devices, str):
        places = [place for place in devices.split(",") if place]
        return int(devices) if devices.isdigit() else len(places)
    return len(devices) if isinstance(devices, Sequence) else int(devices)
