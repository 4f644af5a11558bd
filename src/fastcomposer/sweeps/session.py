"""A sweep from its first job to its last: planned, unfinished jobs listed, only these run again."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise, product
from pathlib import Path

from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf

from fastcomposer.sweeps.job import arguments_replaced, check_processes, settings_of
from fastcomposer.sweeps.jobs import EVALUATION, JOB_NAME, Job, Plan, key_and_value, read_jobs, swept_keys
from fastcomposer.sweeps.search import chosen_overrides, read_goal, resume_search
from fastcomposer.sweeps.trained_jobs import quoted, trains_fastcomposer, unchanging_job
from fastcomposer.utils.files import check_folder
from fastcomposer.utils.lock import is_first_process, sole_run
from fastcomposer.utils.texts import keep_texts

_FLAGS = {"-m", "--multirun", "hydra.mode=MULTIRUN"}
_QUERIES = {"-h", "--help", "--hydra-help", "-c", "--cfg", "-i", "--info"}  # which run nothing
_DIRS = ("--config-dir", "-cd")
_REPORTED = ("train", "evaluate")
_BY_NUMBER = "${hydra.job.num}"
_GRID, _SEARCH = ".BasicSweeper", ".SearchSweeper"


@contextmanager
def watched(
    command: str, config_folder: Path, check_objective: Callable[[DictConfig], None] | None = None
) -> Iterator[None]:
    """Plan a sweep and report what it leaves undone, where the process was called for one; else do nothing.

    Before its first job the plan is written; however it ends, unfinished jobs are listed with the call that
    runs only them, and the process ends with a status other than 0. ``check_objective`` refuses an objective
    that jobs will not measure; it is ``None`` where they measure nothing.
    """
    arguments = sys.argv[1:]
    if not is_first_process() or _FLAGS.isdisjoint(arguments) or not _QUERIES.isdisjoint(arguments):
        yield
        return
    given = [word for word in arguments if "=" in word or word.startswith("~")]
    pairs = pairwise(arguments)
    if folders := [f"file://{Path(value).absolute()}" for flag, value in pairs if flag in _DIRS]:
        given.append(f"hydra.searchpath=[{','.join(folders)}]")
    try:
        config = _composed(command, config_folder, given)
    except Exception:  # Hydra finds the same and explains it better
        yield
        return
    folder = Path(config.hydra.sweep.dir)
    call = shlex.join(["fastcomposer", command, *arguments])
    try:
        plan = _plan(command, call, config, given, check_objective)
        check_processes(config, config.hydra, visible=lambda: 1)  # "all of them" is for the jobs to count
        check_folder("hydra.sweep.dir", str(folder))
        with sole_run(folder):
            begin_sweep(folder, plan, config.get("resume", "auto"), _by_number(config))
            try:
                # The name of a folder by time is given to all jobs.
                with arguments_replaced([*arguments, f"hydra.sweep.dir={quoted(folder)}"]):
                    yield
            finally:
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
        shown = folder.parent if folder.name == EVALUATION else folder  # evaluations of jobs, with these
        print(f"Their table: fastcomposer report sweep={shown}")


def begin_sweep(folder: Path, plan: Plan, resume: str | None, by_number: bool = True) -> None:
    """Write the plan; ``ValueError`` where an earlier sweep is not to be continued, or is another one."""
    earlier = [job for job in read_jobs(folder) if job.status != "waiting"]
    if plan.goal is not None and not by_number:
        raise ValueError("hydra.sweep.subdir: a search names the folders of its jobs by their numbers alone")
    if earlier and resume not in ("auto", "restart"):
        finished = sum(job.status == "finished" for job in earlier)
        raise ValueError(
            f"{folder} holds an earlier sweep, of which {finished} jobs have finished; resume=auto runs the "
            "others, name=<other> starts beside it, resume=restart discards it"
        )
    if plan.goal is not None:
        resume_search(folder, plan.goal, earlier, restart=resume == "restart")
    elif resume == "restart":
        for job in earlier:
            (job.folder / JOB_NAME).unlink(missing_ok=True)
    elif by_number and plan.jobs:
        for job in earlier:
            _check_values(job, plan)
    plan.write(folder)


def _check_values(job: Job, plan: Plan) -> None:
    """Refuse to continue a job under other values than it began with."""
    if job.status != "finished" and not any((job.folder / "checkpoints").glob("*.ckpt")):
        return
    planned = plan.jobs[job.number] if job.number < len(plan.jobs) else ()
    wanted = dict(map(key_and_value, planned))
    stored = {key: job.chosen.get(key) for key in wanted}
    if stored != wanted:
        was, now = (" ".join(f"{key}={value}" for key, value in one.items()) for one in (stored, wanted))
        raise ValueError(
            f"{job.folder} holds work of {was or 'another sweep'}, not of {now or 'this one'}: leave the "
            "values of jobs that have begun in their order, or name=<other> starts beside it"
        )


def list_undone(folder: Path, call: str) -> list[Job]:
    """Print the jobs of a sweep that did not finish, and the call that runs only these; returns them."""
    jobs = read_jobs(folder)
    undone = [job for job in jobs if job.status != "finished"]
    if not undone or all(job.status == "waiting" for job in jobs):  # none has begun: Hydra has reported why
        return undone
    keys = swept_keys(folder, jobs)
    lines = [f"\n{len(undone)} of {len(jobs)} jobs in {folder} did not finish:"]
    for job in undone:
        reason = {"waiting": "has not begun", "running": "ended without a record"}.get(job.status, job.reason)
        lines += [f"  {job.named(keys)}: {reason}", *([f"    {job.log}"] if job.log else [])]
    lines += ["When the cause is fixed, this runs only these, each from where it stopped:"]
    print("\n".join([*lines, f"  {resumed(call)}"]), file=sys.stderr)
    return undone


def resumed(call: str) -> str:
    """The call that continues a sweep."""
    words = (word for word in shlex.split(call) if not word.startswith("resume="))
    return shlex.join([*words, "resume=auto"])


def _composed(command: str, config_folder: Path, given: Sequence[str]) -> DictConfig:
    """What the jobs of a sweep have in common."""
    parsed = OverridesParser.create().parse_overrides(list(given))
    fixed = [str(one.input_line) for one in parsed if not one.is_sweep_override()]
    with initialize_config_dir(str(config_folder), version_base="1.3"):
        config = compose(command, fixed, return_hydra_config=True)
    keep_texts(config)
    return config


def _plan(
    command: str,
    call: str,
    config: DictConfig,
    given: Sequence[str],
    check_objective: Callable[[DictConfig], None] | None,
) -> Plan:
    """All jobs of a grid in the order of Hydra's basic sweeper; of a search, its goal."""
    sweeper = config.hydra.sweeper
    chosen = chosen_overrides(sweeper.get("params") or {}, given)
    swept = {key: one for key, one in chosen.items() if one.is_sweep_override()}
    names = tuple(key.lstrip("+") for key in swept)
    if str(sweeper._target_).endswith(_SEARCH):
        if check_objective is None or config.objective is None:
            raise ValueError(f"objective: {command} needs one to search by")
        check_objective(config)
        common = {key: value for key, value in settings_of(config).items() if key != "hydra"}
        return Plan(command, call, names, goal=read_goal(config, chosen, common))
    if not str(sweeper._target_).endswith(_GRID):
        return Plan(command, call, names)
    choices = ([f"{key}={value}" for value in one.sweep_string_iterator()] for key, one in swept.items())
    jobs = tuple(product(*choices))
    baseline, scorable = unchanging_job(config, jobs), trains_fastcomposer(config)
    return Plan(command, call, names, jobs, baseline=baseline, scorable=scorable)


def _by_number(config: DictConfig) -> bool:
    sweep = OmegaConf.to_container(config.hydra.sweep, resolve=False)
    return isinstance(sweep, dict) and sweep["subdir"] == _BY_NUMBER
