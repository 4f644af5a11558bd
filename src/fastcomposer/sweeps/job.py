"""One job of a sweep: done as if it had been called by itself, with how it ended kept in its folder."""

from __future__ import annotations

import json
import multiprocessing
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf, open_dict, read_write

from fastcomposer.sweeps.jobs import TRACE_NAME, Job, read_job, read_plan
from fastcomposer.sweeps.processes import check_processes
from fastcomposer.utils.lock import is_first_process
from fastcomposer.utils.texts import given_overrides

_DECIDES_NOTHING = ("resume", "threads")


def as_job(work: Callable[[], Any], config: DictConfig, told: Callable[[Exception], str | None]) -> Any:
    """Do one job of a sweep, and keep in its folder how it ended.

    A job that fails leaves the others alone: its reason is kept, and its trace in ``error.log``. With
    ``resume=auto`` a job that has finished under the same settings is skipped.

    Args:
        work: What the command does.
        config: Of the job.
        told: What to say of an error; ``None`` where that is a defect of ours.

    Returns:
        What the work returned; ``None`` where it failed.
    """
    hydra = HydraConfig.get()
    if not is_first_process():
        return work()
    if os.environ.get("SLURM_RESTART_COUNT", "0") != "0" and "resume" in config:
        config.resume = "auto"  # SLURM has put the job into its queue again
    folder = Path(hydra.runtime.output_dir)
    task = given_overrides(hydra)
    overrides = tuple(text for text in task if text.partition("=")[0] not in _DECIDES_NOTHING)
    job = Job(int(hydra.job.num), folder, overrides, settings_of(config))
    plan = read_plan(hydra.sweep.dir)
    name = job.named(() if plan is None else plan.swept)
    earlier = read_job(folder) if config.get("resume", "auto") == "auto" else None
    if earlier is not None and earlier.status == "finished" and earlier.settings == job.settings:
        print(f"{name} has finished before: skipped")
        if earlier.number != job.number:  # in a call for other jobs
            replace(earlier, number=job.number).write()
        return earlier.value
    job.write()
    (folder / TRACE_NAME).unlink(missing_ok=True)
    began = time.monotonic()
    reason, value = "", None
    try:
        check_processes(config, hydra, _visible_gpus)
        with _alone(task, folder):
            value = work()
    except Exception as error:
        reason = told(error) or f"{type(error).__name__}: {error}"
        (folder / TRACE_NAME).write_text(traceback.format_exc(), encoding="utf-8")
    except SystemExit as end:
        if isinstance(end.code, int) and end.code > 128:
            job.ended("stopped", reason=f"stopped by signal {end.code - 128}").write()
            raise
        if isinstance(end.code, int) and end.code < 0:  # so submitit leaves a job that SLURM will start again
            job.ended("stopped", reason="put into the queue again").write()
            raise
        reason = f"ended with status {end.code}" if end.code else ""
    except BaseException as end:
        job.ended("stopped", reason=type(end).__name__).write()
        raise
    seconds = time.monotonic() - began
    if reason:
        print(f"error: {name}: {reason}", file=sys.stderr)
        job.ended("failed", reason=reason, seconds=seconds).write()
        return None
    job.ended("finished", seconds=seconds, value=value).write()
    return value


def settings_of(config: DictConfig) -> dict[str, Any]:
    """What decides a job's results; where a setting cannot be resolved, the job itself will say so."""
    try:
        plain = OmegaConf.to_container(config, resolve=True)
    except Exception:
        plain = OmegaConf.to_container(config)
    assert isinstance(plain, dict)
    kept = {name: value for name, value in plain.items() if name not in _DECIDES_NOTHING}
    return json.loads(json.dumps(kept, default=str))


@contextmanager
def arguments_replaced(arguments: Sequence[str]) -> Iterator[None]:
    """Within the block, the process was called with other arguments."""
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
    method = multiprocessing.get_start_method(allow_none=True)
    with read_write(config.hydra), open_dict(config.hydra):
        config.hydra.run.dir = str(folder)
    known = multiprocessing.get_all_start_methods()
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
        _leave_processes()


def _visible_gpus() -> int:
    import torch

    return torch.cuda.device_count()


def _leave_processes() -> None:
    """Forget the processes that a job has worked with."""
    if "torch.distributed" in sys.modules:
        from torch import distributed

        if distributed.is_available() and distributed.is_initialized():
            distributed.destroy_process_group()
