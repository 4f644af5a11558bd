"""From a sweep of trainings to the evaluations of these trainings."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, Quote, QuotedString
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from fastcomposer.sweeps.jobs import JOB_NAME, evaluation_of, read_job, read_jobs
from fastcomposer.utils.settings import differences

_CHOICE = "sweep=jobs"


def with_jobs(arguments: Sequence[str], *more: str) -> list[str]:
    """Name all jobs of the sweep that ``sweep=jobs jobs=<folder>`` refers to.

    Unfinished ones are among them, so that each keeps its number. Where a job was trained again after its
    evaluation, the record of the evaluation is removed, so that it is evaluated again. ``more`` are overrides
    for such a call, unless it has its own.

    Raises:
        ValueError: If the sweep is not named, or the call is for one run.
        FileNotFoundError: If there are no jobs in its folder.
    """
    given = {key: text for key, _, text in (word.partition("=") for word in arguments)}
    if _CHOICE not in arguments or "job" in given:
        return list(arguments)
    if "jobs" not in given:
        raise ValueError("sweep=jobs: jobs=<folder> names the sweep whose jobs are evaluated")
    if not {"-m", "--multirun"} & set(arguments):
        raise ValueError("sweep=jobs is an evaluation of each job: call evaluate with -m")
    folder = Path(given["jobs"].strip("\"'"))
    jobs = read_jobs(folder)
    if not jobs:
        raise FileNotFoundError(f"jobs={folder}: no jobs in it; train -m leaves them")
    for job in jobs:
        record, trained = evaluation_of(folder, job) / JOB_NAME, job.folder / JOB_NAME
        if record.is_file() and trained.is_file() and record.stat().st_mtime < trained.stat().st_mtime:
            record.unlink()
    names = [str(job.folder.relative_to(folder)) for job in jobs]
    more = tuple(one for one in more if one.partition("=")[0] not in given)
    return [*arguments, *more, f"job={','.join(name if name.isdigit() else quoted(name) for name in names)}"]


def check_trained(config: DictConfig) -> None:
    """Refuse to evaluate an unfinished training of a sweep, or one of another model, by ``ValueError``."""
    if config.get("job") is None:
        return
    folder = Path(config.checkpoint)
    job = read_job(folder)
    if job is None or job.status != "finished":
        how = "has not begun" if job is None else {"running": "is not done"}.get(job.status, job.status)
        raise ValueError(f"{folder}: its training {how}; train -m ... resume=auto finishes it")
    model: Any = OmegaConf.to_container(config.model, resolve=True)
    # model.checkpoint is what generate loads by default, not what was trained.
    trained = {**job.settings.get("model", model), "checkpoint": model["checkpoint"]}
    if other := differences(trained, model, "model"):
        raise ValueError(f"{folder} was trained on another model than this evaluation: {'; '.join(other)}")


def trains_fastcomposer(config: DictConfig) -> bool:
    """Whether the jobs of a sweep train weights that an evaluation can score."""
    method = config.get("method")
    return method is not None and str(method.get("_target_", "")).endswith(".FastComposerModule")


def quoted(text: str | Path) -> str:
    """A path or a sentence as a value on the command line, in Hydra's quotes."""
    return str(QuotedString(str(text), Quote.single).with_quotes())


def unchanging_job(config: DictConfig, jobs: Iterable[Sequence[str]]) -> int | None:
    """The first job whose swept values are those of ``config``, which all jobs have in common."""
    parser = OverridesParser.create()
    for number, overrides in enumerate(jobs):
        if all(_changes_nothing(config, one) for one in parser.parse_overrides(list(overrides))):
            return number
    return None


def _changes_nothing(config: DictConfig, override: Override) -> bool:
    choices = config.hydra.runtime.choices
    if override.key_or_group in choices:
        return str(choices[override.key_or_group]) == str(override.value())
    before = OmegaConf.select(config, override.key_or_group)
    try:
        if OmegaConf.is_config(before):
            before = OmegaConf.to_container(before, resolve=True)
        after = OmegaConf.create({"value": before})
        OmegaConf.update(after, "value", override.value(), merge=True, force_add=True)
    except OmegaConfBaseException:  # what only a job can resolve, or another choice of several
        return False
    return bool(after == OmegaConf.create({"value": before}))
