"""One job of a sweep: run as if it had been called by itself, with its outcome kept in its folder."""

from __future__ import annotations

import json
import multiprocessing
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf, open_dict, read_write

from fastcomposer.sweeps.jobs import TRACE_NAME, Job, Status, read_job, read_plan
from fastcomposer.utils.lock import is_first_process
from fastcomposer.utils.texts import given_overrides

_WITHOUT_EFFECT = ("resume", "threads")  # on a job's results
_IN_PLACE = ("BasicLauncher", "SlurmLauncher")  # in this process, or with a task for each device


def as_job(work: Callable[[], Any], config: DictConfig, explain: Callable[[Exception], str | None]) -> Any:
    """Run the work of one job of a sweep, and record its outcome in its folder.

    A job that fails leaves the others alone: its reason is kept, and its trace in ``error.log``; it returns
    ``None``. With ``resume=auto`` a job that has finished under the same settings is skipped. ``explain``
    gives the message of an error, or ``None`` where it is a defect of this package.
    """
    hydra = HydraConfig.get()
    if not is_first_process():
        return work()
    if os.environ.get("SLURM_RESTART_COUNT", "0") != "0" and "resume" in config:
        config.resume = "auto"  # SLURM has requeued the job
    folder = Path(hydra.runtime.output_dir)
    task = given_overrides(hydra)
    overrides = tuple(text for text in task if text.partition("=")[0] not in _WITHOUT_EFFECT)
    job = Job(int(hydra.job.num), folder, overrides, settings_of(config))
    plan = read_plan(hydra.sweep.dir)
    name = job.named(() if plan is None else plan.swept)
    earlier = None
    if config.get("resume", "auto") == "auto":
        with suppress(ValueError):  # a damaged record is that of no job
            earlier = read_job(folder)
    if earlier is not None and earlier.status == "finished" and earlier.settings == job.settings:
        print(f"{name} has finished before: skipped")
        if earlier.number != job.number:  # in a call for other jobs
            replace(earlier, number=job.number).write()
        return earlier.value
    job.write()
    (folder / TRACE_NAME).unlink(missing_ok=True)
    began = time.monotonic()
    status: Status = "stopped"
    reason, value = "", None
    try:
        import torch

        check_processes(config, hydra, torch.cuda.device_count)
        with _alone(task, folder):
            value = work()
        status = "finished"
    except Exception as error:
        status, reason = "failed", explain(error) or f"{type(error).__name__}: {error}"
        (folder / TRACE_NAME).write_text(traceback.format_exc(), encoding="utf-8")
    except SystemExit as end:
        if isinstance(end.code, int) and not 0 <= end.code <= 128:
            # Below 0: submitit leaves so a job that SLURM starts again.
            reason = f"stopped by signal {end.code - 128}" if end.code > 0 else "put into the queue again"
            raise
        status, reason = ("failed", f"ended with status {end.code}") if end.code else ("finished", "")
    except BaseException as end:
        reason = type(end).__name__
        raise
    finally:
        job.ended(status, reason=reason, seconds=time.monotonic() - began, value=value).write()
    if status == "failed":
        print(f"error: {name}: {reason}", file=sys.stderr)
    return value


def settings_of(config: DictConfig) -> dict[str, Any]:
    """Settings that a job's results depend on; unresolved where they cannot be, which the job reports."""
    try:
        plain: Any = OmegaConf.to_container(config, resolve=True)
    except Exception:
        plain = OmegaConf.to_container(config)
    kept = {name: value for name, value in plain.items() if name not in _WITHOUT_EFFECT}
    return json.loads(json.dumps(kept, default=str))


def check_processes(config: DictConfig, hydra: Any, visible: Callable[[], int]) -> None:
    """Refuse jobs of several processes in workers of a launcher.

    Lightning starts the other processes of a job by calling the program again, which in such a worker is the
    launcher's: they would end at once, or the job would wait for them without end. ``visible`` counts GPUs.
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
    """How many devices Lightning takes: a number of them, their indices, or all (``-1``, ``auto``)."""
    if str(devices) in ("-1", "auto"):
        return 1 if accelerator == "cpu" else visible()
    if isinstance(devices, str) and not devices.isdigit():
        return len([index for index in devices.split(",") if index])
    return int(devices) if isinstance(devices, int | str) else len(devices)


@contextmanager
def arguments_replaced(arguments: Sequence[str]) -> Iterator[None]:
    """Give the process other arguments within the block."""
    before = sys.argv
    sys.argv = [before[0], *arguments]
    try:
        yield
    finally:
        sys.argv = before


@contextmanager
def _alone(overrides: Sequence[str], folder: Path) -> Iterator[None]:
    """Let a job be as if called by itself: Lightning starts further processes by the same call."""
    config: Any = HydraConfig.instance().cfg
    variables = dict(os.environ)
    with read_write(config.hydra), open_dict(config.hydra):
        config.hydra.run.dir = str(folder)
    method, known = multiprocessing.get_start_method(allow_none=True), multiprocessing.get_all_start_methods()
    foreign = method is not None and method not in known  # joblib's, which cannot start torch's data workers
    if foreign:
        multiprocessing.set_start_method(known[0], force=True)
    try:
        with arguments_replaced(overrides):
            yield
    finally:
        if foreign:
            multiprocessing.set_start_method(method, force=True)
        os.environ.clear()
        os.environ.update(variables)
        if "torch.distributed" in sys.modules:
            from torch import distributed

            if distributed.is_available() and distributed.is_initialized():
                distributed.destroy_process_group()
