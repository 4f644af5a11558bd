"""Sweeps: every job on its own, those that did not finish listed, and only these run again."""

from __future__ import annotations

import json
import multiprocessing
import os
import shlex
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf, open_dict, read_write

from fastcomposer.cli.lock import is_first_process, sole_run
from fastcomposer.cli.moved import with_present_targets
from fastcomposer.cli.processes import check_processes
from fastcomposer.cli.search import chosen_overrides, go_on_with, read_goal
from fastcomposer.cli.sweep_jobs import evaluation_call, report_folder, unchanging_job
from fastcomposer.jobs import JOB_NAME, TRACE_NAME, Job, Plan, read_job, read_jobs, read_plan, swept_keys

_FLAGS = ("-m", "--multirun")
_OTHER_FLAGS = ("-h", "--help", "--hydra-help", "-c", "--cfg", "-i", "--info")
_DIRS = ("--config-dir", "-cd")
_DECIDES_NOTHING = ("resume", "threads")
_REPORTED = ("train", "evaluate")
_BY_NUMBER = "${hydra.job.num}"
_GRID, _SEARCH = ".BasicSweeper", ".SearchSweeper"


@contextmanager
def watched(
    command: str, config_folder: Path, check_objective: Callable[[DictConfig], None] | None = None
) -> Iterator[None]:
    """Keep an eye on a sweep, where the process was called for one; else do nothing.

    Before its first job the plan is written; whatever ends it, jobs that did not finish are listed with the
    call that runs only them, and the process ends with a status other than 0.

    Args:
        command: Name of the command and of its configuration.
        config_folder: Where that is.
        check_objective: Refuses an objective that jobs will not measure; ``None`` where they measure nothing.
    """
    arguments = sys.argv[1:]
    if not is_first_process() or not _is_sweep(arguments):
        yield
        return
    given = [word for word in arguments if "=" in word or word.startswith("~")]
    if folders := [
        Path(at).absolute() for at, flag in zip(arguments[1:], arguments, strict=False) if flag in _DIRS
    ]:
        given.append(f"hydra.searchpath=[{','.join(f'file://{folder}' for folder in folders)}]")
    try:
        config = _composed(command, config_folder, given)
    except Exception:  # Hydra finds the same and says it better
        yield
        return
    folder = Path(config.hydra.sweep.dir)
    call = shlex.join(["python", "-m", f"fastcomposer.cli.{command}", *arguments])
    resume = config.get("resume", "auto")
    try:
        plan = _plan(command, call, config, given, check_objective)
        check_processes(config, config.hydra, visible=lambda: 1)  # "all of them" is for the jobs to count
        if plan.goal is None:
            plan = replace(plan, evaluation=evaluation_call(folder, config))
        with sole_run(folder):
            begin_sweep(folder, plan, resume, _by_number(config))
            try:
                with _arguments([*arguments, f"hydra.sweep.dir={_quoted(folder)}"]):  # the time names it once
                    yield
            except BaseException:
                list_undone(folder, call)
                raise
            undone = list_undone(folder, call)
            if best := plan.best(read_jobs(folder)):
                print(*best, sep="\n  ")
            if undone:
                sys.exit(1)
    except (ValueError, RuntimeError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
    if command in _REPORTED:
        print("All jobs have finished.")
        if plan.evaluation:
            print(f"What they draw, scored on the same cases: {plan.evaluation}")
        print(f"Their table: python -m fastcomposer.cli.report sweep={report_folder(folder)}")


def begin_sweep(folder: Path, plan: Plan, resume: str | None, by_number: bool = True) -> None:
    """Look at what an earlier sweep has left, and write the plan.

    Args:
        folder: Of the sweep.
        plan: What is to be done.
        resume: ``auto`` goes on with an earlier sweep, ``restart`` forgets it.
        by_number: Whether the jobs' folders are named by their places.

    Raises:
        ValueError: If there is an earlier sweep, and it is not to be gone on with or is another one.
    """
    earlier = [job for job in read_jobs(folder) if job.status != "waiting"]
    if plan.goal is not None and not by_number:
        raise ValueError("hydra.sweep.subdir: a search names the folders of its jobs by their numbers alone")
    if earlier and resume not in ("auto", "restart"):
        finished = sum(job.status == "finished" for job in earlier)
        raise ValueError(
            f"{folder} holds an earlier sweep, of which {finished} jobs have finished; resume=auto runs the "
            "others, name=<other> starts beside it, resume=restart forgets it"
        )
    if plan.goal is not None:
        go_on_with(folder, plan.goal, earlier, restart=resume == "restart")
    elif resume == "restart":
        for job in earlier:
            (job.folder / JOB_NAME).unlink(missing_ok=True)
    else:
        for job in earlier if by_number and plan.jobs else ():
            _check_place(job, plan)
    plan.write(folder)


def _check_place(job: Job, plan: Plan) -> None:
    """Refuse to go on from what a job has done under other values than are planned for its place."""
    if job.status != "finished" and not any((job.folder / "checkpoints").glob("*.ckpt")):
        return
    planned = plan.jobs[job.number] if job.number < len(plan.jobs) else ()
    wanted = {key: value for key, _, value in (text.lstrip("+").partition("=") for text in planned)}
    stored = {key: job.chosen.get(key) for key in wanted}
    if stored != wanted:
        was, now = (" ".join(f"{key}={value}" for key, value in one.items()) for one in (stored, wanted))
        raise ValueError(
            f"{job.folder} holds work of {was or 'another sweep'}, not of {now or 'this one'}: leave the "
            "values of jobs that have begun in their places, or name=<other> starts beside it"
        )


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
    overrides = tuple(text for text in hydra.overrides.task if text.partition("=")[0] not in _DECIDES_NOTHING)
    job = Job(int(hydra.job.num), folder, overrides, _settings(config))
    plan = read_plan(hydra.sweep.dir)
    name = job.named(() if plan is None else plan.swept)
    earlier = read_job(folder) if config.get("resume", "auto") == "auto" else None
    if (
        earlier is not None
        and earlier.status == "finished"
        and with_present_targets(earlier.settings) == job.settings
    ):
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
        with _alone(list(hydra.overrides.task), folder):
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


def list_undone(folder: Path, call: str) -> list[Job]:
    """Print the jobs that did not finish, and how to run only these again.

    Args:
        folder: Of the sweep.
        call: How it was called.

    Returns:
        These jobs.
    """
    jobs = read_jobs(folder)
    undone = [job for job in jobs if job.status != "finished"]
    if not undone or all(job.status == "waiting" for job in jobs):  # none has begun: Hydra has said why
        return undone
    keys = swept_keys(folder, jobs)
    lines = [f"\n{len(undone)} of {len(jobs)} jobs in {folder} did not finish:"]
    for job in undone:
        said = {"waiting": "has not begun", "running": "ended without a word"}.get(job.status, job.reason)
        lines += [f"  {job.named(keys)}: {said}"]
        lines += [f"    {job.log}"] * (job.log is not None)
    lines += ["When the cause is mended, this runs only these, each from where it stopped:"]
    lines += [f"  {resumed(call)}"]
    print("\n".join(lines), file=sys.stderr)
    return undone


def resumed(call: str) -> str:
    """The call that goes on with a sweep."""
    words = (word for word in shlex.split(call) if not word.startswith("resume="))
    return shlex.join([*words, "resume=auto"])


def _is_sweep(arguments: Sequence[str]) -> bool:
    asked = any(word in _FLAGS or word == "hydra.mode=MULTIRUN" for word in arguments)
    return asked and not any(word in _OTHER_FLAGS for word in arguments)


def _composed(command: str, config_folder: Path, given: Sequence[str]) -> DictConfig:
    """What the jobs of a sweep have in common."""
    parsed = OverridesParser.create().parse_overrides(list(given))
    fixed = [str(one.input_line) for one in parsed if not one.is_sweep_override()]
    with initialize_config_dir(str(config_folder), version_base="1.3"):
        return compose(command, fixed, return_hydra_config=True)


def _plan(
    command: str,
    call: str,
    config: DictConfig,
    given: Sequence[str],
    check_objective: Callable[[DictConfig], None] | None,
) -> Plan:
    """All jobs of a grid in the order of Hydra's basic sweeper; of a search, what it looks for."""
    sweeper = config.hydra.sweeper
    chosen = chosen_overrides(sweeper.get("params") or {}, given)
    swept = {key: one for key, one in chosen.items() if one.is_sweep_override()}
    names = tuple(key.lstrip("+") for key in swept)
    if str(sweeper._target_).endswith(_SEARCH):
        if check_objective is None or config.objective is None:
            raise ValueError(f"objective: {command} needs one to search by")
        check_objective(config)
        common = {key: value for key, value in _settings(config).items() if key != "hydra"}
        return Plan(command, call, names, goal=read_goal(config, chosen, common))
    if not str(sweeper._target_).endswith(_GRID):
        return Plan(command, call, names)
    choices = ([f"{key}={value}" for value in one.sweep_string_iterator()] for key, one in swept.items())
    jobs = tuple(product(*choices))
    return Plan(command, call, names, jobs, baseline=unchanging_job(config, jobs))


def _by_number(config: DictConfig) -> bool:
    sweep = OmegaConf.to_container(config.hydra.sweep, resolve=False)
    return isinstance(sweep, dict) and sweep["subdir"] == _BY_NUMBER


def _settings(config: DictConfig) -> dict[str, Any]:
    """What decides a job's results; where a setting cannot be resolved, the job itself will say so."""
    try:
        plain = OmegaConf.to_container(config, resolve=True)
    except Exception:
        plain = OmegaConf.to_container(config)
    assert isinstance(plain, dict)
    kept = {name: value for name, value in plain.items() if name not in _DECIDES_NOTHING}
    return json.loads(json.dumps(kept, default=str))


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
        with _arguments(overrides):
            yield
    finally:
        if foreign:
            multiprocessing.set_start_method(method, force=True)
        os.environ.clear()
        os.environ.update(variables)
        _leave_processes()


@contextmanager
def _arguments(arguments: Sequence[str]) -> Iterator[None]:
    before = sys.argv
    sys.argv = [before[0], *arguments]
    try:
        yield
    finally:
        sys.argv = before


def _visible_gpus() -> int:
    import torch

    return torch.cuda.device_count()


def _leave_processes() -> None:
    """Forget the processes that a job has worked with."""
    if "torch.distributed" in sys.modules:
        from torch import distributed

        if distributed.is_available() and distributed.is_initialized():
            distributed.destroy_process_group()


def _quoted(folder: Path) -> str:
    return "'" + str(folder).replace("\\", "\\\\").replace("'", "\\'") + "'"
