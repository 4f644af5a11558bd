"""Searches: settings that optuna chooses, each tried once, however often the search is interrupted."""

from __future__ import annotations

import math
import os
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep, Override, RangeSweep
from omegaconf import DictConfig

from fastcomposer.sweeps.jobs import Goal, Job, read_plan
from fastcomposer.utils.files import existing_file
from fastcomposer.utils.settings import differences

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution
    from optuna.trial import FrozenTrial

STUDY_NAME = "search.db"
"""File with the study of a search."""
_DIRECTIONS = ("minimize", "maximize")
_JOB = "job"  # a trial's attribute: number of the job that runs it
_FEW = 3  # failures that do not end a search yet
_DIGITS = 4  # of a number that is chosen between two
_NAMED = 3  # differences that a message names

_WITHOUT_EFFECT = ("logger", "callbacks", "data.module.num_workers")  # on what is measured

Launch = Callable[[Sequence[Sequence[str]], int], Sequence[float | None]]
"""Runs jobs, each by its overrides, numbered from a first one; returns the objective of each that has one."""


class Search:
    """Chooses settings, runs them as jobs, and remembers their objectives.

    The settings of a job depend on the seed, its number and earlier objectives alone, so that an interrupted
    search continues as if it had not been interrupted. A running trial continues in its own folder; a failed
    one is tried once more when the search is called again. The settings are those of
    :class:`~hydra_plugins.fastcomposer_search.SearchSweeper`.
    """

    def __init__(self, folder: Path, chosen: Mapping[str, Override], settings: Any) -> None:
        import optuna

        self.settings, self.states = settings, optuna.trial.TrialState
        self.space = {key: distribution(one) for key, one in chosen.items() if one.is_sweep_override()}
        fixed = {key: one for key, one in chosen.items() if key not in self.space}
        self.fixed = [f"{key}={one.get_value_element_as_str()}" for key, one in fixed.items()]
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        file = (folder / STUDY_NAME).absolute()
        if os.path.lexists(file):
            existing_file(file, "study")
        try:
            self.study = optuna.create_study(
                study_name="search",
                storage=f"sqlite:///{file}",
                direction=settings.direction,
                load_if_exists=True,
            )
            self._latest()
        except Exception as error:  # whatever optuna and its database raise for damaged content
            reason = str(error).partition("\n")[0]
            raise ValueError(f"{file}: {reason}; resume=restart discards the search") from error

    def run(self, launch: Launch) -> None:
        """Run the trials that remain."""
        self._tidy()
        while batch := self._next():
            for first, jobs in _neighbours(batch):
                overrides = [[*_written(trial.params), *self.fixed] for trial in jobs]
                for trial, value in zip(jobs, launch(overrides, first), strict=True):
                    if value is None or not math.isfinite(value):
                        self.study.tell(trial.number, state=self.states.FAIL)
                    else:
                        self.study.tell(trial.number, value)
                        best = self.study.best_trial
                        print(f"job {_job(trial)}: {value:.5g}; best {best.value:.5g} of job {_job(best)}")
            if self._fails_too_often():
                return

    def _tidy(self) -> None:
        """Drop trials that were not fully chosen; have failed ones tried once more."""
        from optuna.trial import create_trial

        for trial in self.study.get_trials(states=(self.states.RUNNING,)):
            if _JOB not in trial.user_attrs:
                self.study.tell(trial.number, state=self.states.FAIL)
        for job, trial in self._latest().items():
            if trial.state == self.states.FAIL:
                chosen: dict[str, Any] = {"params": trial.params, "distributions": trial.distributions}
                again = create_trial(state=self.states.RUNNING, user_attrs={_JOB: job}, **chosen)
                self.study.add_trial(again)

    def _next(self) -> list[FrozenTrial]:
        """What to run together: running trials, then new ones; by number of the job."""
        settings, latest = self.settings, self._latest()
        found = [latest[job] for job in sorted(latest) if latest[job].state == self.states.RUNNING]
        found = found[: settings.n_jobs]
        begun = len(latest)
        for job in range(begun, min(begun + settings.n_jobs - len(found), settings.n_trials)):
            self.study.sampler = settings.sampler(seed=(settings.seed * 1_000_003 + job) % 2**32)
            trial = self.study.ask(self.space)
            trial.set_user_attr(_JOB, job)
            found.append(self._latest()[job])
        return found

    def _latest(self) -> dict[int, FrozenTrial]:
        """The last trial of each job."""
        trials = self.study.get_trials(deepcopy=False)
        return {_job(trial): trial for trial in trials if _JOB in trial.user_attrs}

    def _fails_too_often(self) -> bool:
        states = [trial.state for trial in self._latest().values()]
        failed = states.count(self.states.FAIL)
        ended = failed + states.count(self.states.COMPLETE)
        rate = self.settings.max_failure_rate
        if failed < _FEW or failed <= rate * ended:
            return False
        message = f"{failed} of {ended} trials have failed, more than hydra.sweeper.max_failure_rate={rate}"
        print(f"error: {message}: the search ends", file=sys.stderr)
        return True


def chosen_overrides(params: Mapping[str, Any], given: Sequence[str]) -> dict[str, Override]:
    """Overrides of a sweep by key (with its ``+``): those of the command line replace ``params``."""
    parser = OverridesParser.create()
    chosen = {}
    for text in [*(f"{key!s}={value}" for key, value in params.items()), *given]:
        override = parser.parse_override(text)
        chosen[override.get_key_element()] = override
    return chosen


def distribution(override: Override) -> BaseDistribution:
    """What a key is chosen from: an interval, evenly spaced numbers, or choices."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    value = override.value()
    try:
        if isinstance(value, IntervalSweep):
            low, high, log = value.start, value.end, "log" in value.tags
            if isinstance(low, int) and isinstance(high, int):
                return IntDistribution(low, high, log=log)
            assert low is not None and high is not None
            return FloatDistribution(float(low), float(high), log=log)
        texts = list(override.sweep_string_iterator())
        if isinstance(value, RangeSweep) and not value.shuffle:
            numbers = sorted(float(text) for text in texts)
            step = abs(float(value.step or 1))
            if all(float(n).is_integer() for n in (*numbers, step)) and not any("." in t for t in texts):
                return IntDistribution(int(numbers[0]), int(numbers[-1]), step=int(step))
            return FloatDistribution(numbers[0], numbers[-1], step=step)
        return CategoricalDistribution(texts)
    except (ValueError, IndexError) as error:
        raise ValueError(f"{override.input_line}: nothing can be chosen from it ({error})") from error


def read_goal(config: DictConfig, chosen: Mapping[str, Override], common: Mapping[str, Any]) -> Goal:
    """The goal of a search; a wrong setting raises ``ValueError`` with its key."""
    sweeper = config.hydra.sweeper
    swept = {key: one for key, one in chosen.items() if one.is_sweep_override()}
    for key in ("n_trials", "n_jobs"):
        if int(sweeper[key]) < 1:
            raise ValueError(f"hydra.sweeper.{key}={sweeper[key]}: 1 at least")
    if not 0 <= sweeper.max_failure_rate <= 1:
        raise ValueError(f"hydra.sweeper.max_failure_rate={sweeper.max_failure_rate}: must lie in 0 to 1")
    if sweeper.direction not in _DIRECTIONS:
        raise ValueError(f"hydra.sweeper.direction={sweeper.direction}: one of {', '.join(_DIRECTIONS)}")
    if not swept:
        raise ValueError("hydra.sweeper.params: no key has a range or choices, there is nothing to search")
    for one in swept.values():
        distribution(one)
    ranges = {key.lstrip("+"): str(one.input_line).partition("=")[2] for key, one in swept.items()}
    return Goal(str(config.objective), sweeper.direction, int(sweeper.n_trials), ranges, common)


def resume_search(folder: Path, goal: Goal, jobs: Sequence[Job], *, restart: bool) -> None:
    """Remove what an earlier search has left, or raise ``ValueError`` where it cannot be continued."""
    if restart:
        for job in jobs:
            shutil.rmtree(job.folder)
    if restart or not jobs:
        (folder / STUDY_NAME).unlink(missing_ok=True)
        return
    earlier = read_plan(folder)
    if earlier is None or earlier.goal is None or not (folder / STUDY_NAME).is_file():
        raise ValueError(f"{folder} holds jobs of a sweep that was no search: name=<other> starts beside it")
    found = differences(_definition(earlier.goal), _definition(goal))
    if differ := [line for line in found if _matters(line.partition(":")[0], goal.objective)]:
        named = "; ".join(differ[:_NAMED]) + "; …" * (len(differ) > _NAMED)
        raise ValueError(
            f"{folder} holds a search under other settings, whose figures cannot be compared ({named}): "
            "name=<other> starts beside it, resume=restart discards it"
        )


def _written(chosen: Mapping[str, Any]) -> list[str]:
    """Chosen values as overrides, in few digits."""
    texts = (f"{value:.{_DIGITS}g}" if isinstance(value, float) else value for value in chosen.values())
    return [f"{key}={text}" for key, text in zip(chosen, texts, strict=True)]


def _job(trial: FrozenTrial) -> int:
    return int(trial.user_attrs[_JOB])


def _neighbours(batch: Sequence[FrozenTrial]) -> list[tuple[int, list[FrozenTrial]]]:
    """Trials whose jobs have consecutive numbers together, as launchers count, with the first number."""
    numbered = groupby(enumerate(batch), key=lambda pair: _job(pair[1]) - pair[0])
    groups = [[trial for _, trial in group] for _, group in numbered]
    return [(_job(group[0]), group) for group in groups]


def _definition(goal: Goal) -> dict[str, Any]:
    ranges = {f"range of {key}": text for key, text in goal.ranges.items()}
    settings = {"objective": goal.objective, "hydra.sweeper.direction": goal.direction}
    return {**settings, **ranges, **goal.common}


def _matters(name: str, objective: str) -> bool:
    """Whether a setting may change what is measured."""
    if name.startswith("callbacks.samples"):
        return objective.startswith("samples/")
    return not name.startswith(_WITHOUT_EFFECT)
