"""Searches: settings that optuna chooses, each tried once, whatever comes between."""

from __future__ import annotations

import math
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep, Override, RangeSweep
from omegaconf import DictConfig

from fastcomposer.sweeps.jobs import Goal, Job, read_plan

if TYPE_CHECKING:
    from optuna import Study
    from optuna.distributions import BaseDistribution
    from optuna.samplers import BaseSampler
    from optuna.trial import FrozenTrial

STUDY_NAME = "search.db"
"""Where a search keeps what it has tried."""
DIRECTIONS = ("minimize", "maximize")
_JOB = "job"  # a trial's attribute: number of the job that it is tried by
_FEW = 3  # failures that do not end a search yet
_DIGITS = 4  # of a number that is chosen between two
_NAMED = 3  # differences that a message names

_WATCHING = ("logger", "callbacks", "data.module.num_workers")  # what changes nothing that is measured

Launch = Callable[[Sequence[Sequence[str]], int], Sequence[float | None]]
"""Runs jobs, each by its overrides, numbered from a first one; gives what each measured, if it did."""


class Search:
    """Chooses settings, has them tried, and remembers what came of it.

    What is chosen for a job follows from the seed, its number and what was measured before alone, so that a
    search that was interrupted goes on as if it had not been. A trial that was under way is gone on with in
    its own folder; one that failed is tried once more when the search is called again.

    Args:
        folder: Of the sweep.
        chosen: Overrides by key, those that are searched among them.
        direction: ``minimize`` or ``maximize``.
        trials: How many jobs there are to be, those of earlier calls among them.
        at_once: How many are chosen and launched together.
        max_failure_rate: The search ends when more than this share of its trials has failed, three at least.
        seed: Of what is chosen.
        sampler: Makes a sampler of optuna of a ``seed``.
    """

    def __init__(
        self,
        folder: Path,
        chosen: Mapping[str, Override],
        direction: str,
        trials: int,
        at_once: int,
        max_failure_rate: float,
        seed: int,
        sampler: Callable[..., BaseSampler],
    ) -> None:
        self.space = {key: distribution(one) for key, one in chosen.items() if one.is_sweep_override()}
        self.fixed = [
            f"{key}={one.get_value_element_as_str()}"
            for key, one in chosen.items()
            if not one.is_sweep_override()
        ]
        self.trials, self.at_once, self.max_failure_rate = trials, at_once, max_failure_rate
        self.seed, self.sampler = seed, sampler
        self.study = _study(folder, direction)

    def run(self, launch: Launch) -> None:
        """Try what is to be tried yet."""
        from optuna.trial import TrialState

        self._tidy()
        while batch := self._next():
            for first, jobs in _neighbours(batch):
                overrides = [[*_written(trial.params), *self.fixed] for trial in jobs]
                for trial, value in zip(jobs, launch(overrides, first), strict=True):
                    if value is None or not math.isfinite(value):
                        self.study.tell(trial.number, state=TrialState.FAIL)
                    else:
                        self.study.tell(trial.number, value)
                        best = self.study.best_trial
                        print(f"job {_job(trial)}: {value:.5g}; best {best.value:.5g} of job {_job(best)}")
            if self._fails_too_often():
                return

    def _tidy(self) -> None:
        """Give up what had not been chosen to the end; have what failed tried once more."""
        from optuna.trial import TrialState, create_trial

        for trial in self.study.get_trials(states=(TrialState.RUNNING,)):
            if _JOB not in trial.user_attrs:
                self.study.tell(trial.number, state=TrialState.FAIL)
        for job, trial in self._latest().items():
            if trial.state == TrialState.FAIL:
                again = create_trial(
                    state=TrialState.RUNNING,
                    params=trial.params,
                    distributions=trial.distributions,
                    user_attrs={_JOB: job},
                )
                self.study.add_trial(again)

    def _next(self) -> list[FrozenTrial]:
        """What to run together: what is under way, then what is chosen now; by number of the job."""
        from optuna.trial import TrialState

        latest = self._latest()
        found = [latest[job] for job in sorted(latest) if latest[job].state == TrialState.RUNNING]
        found = found[: self.at_once]
        begun = len(latest)
        for job in range(begun, min(begun + self.at_once - len(found), self.trials)):
            self.study.sampler = self.sampler(seed=(self.seed * 1_000_003 + job) % 2**32)
            trial = self.study.ask(self.space)
            trial.set_user_attr(_JOB, job)
            found.append(self._latest()[job])
        return found

    def _latest(self) -> dict[int, FrozenTrial]:
        """Of each job the trial that counts."""
        trials = self.study.get_trials(deepcopy=False)
        return {_job(trial): trial for trial in trials if _JOB in trial.user_attrs}

    def _fails_too_often(self) -> bool:
        from optuna.trial import TrialState

        states = [trial.state for trial in self._latest().values()]
        failed = states.count(TrialState.FAIL)
        ended = failed + states.count(TrialState.COMPLETE)
        if failed < _FEW or failed <= self.max_failure_rate * ended:
            return False
        print(
            f"error: {failed} of {ended} trials have failed, more than a share of "
            f"hydra.sweeper.max_failure_rate={self.max_failure_rate}: the search ends",
            file=sys.stderr,
        )
        return True


def chosen_overrides(params: Mapping[str, Any], given: Sequence[str]) -> dict[str, Override]:
    """Bring together what a sweep is to set.

    Args:
        params: Of the configuration, by key.
        given: Of the command line; these go before.

    Returns:
        By key, with a ``+`` where it has one.
    """
    parser = OverridesParser.create()
    chosen = {}
    for text in [*(f"{key!s}={value}" for key, value in params.items()), *given]:
        override = parser.parse_override(text)
        chosen[override.get_key_element()] = override
    return chosen


def distribution(override: Override) -> BaseDistribution:
    """What a key is chosen from: two numbers that it lies between, evenly spaced numbers, or choices.

    Raises:
        ValueError: If nothing can be chosen from it.
    """
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
    """What a search is for, once it is sure that it can be begun.

    Args:
        config: Of the sweep.
        chosen: Overrides by key.
        common: See :class:`~fastcomposer.sweeps.jobs.Goal`.

    Raises:
        ValueError: If a setting is wrong, with its key.
    """
    sweeper = config.hydra.sweeper
    swept = {key: one for key, one in chosen.items() if one.is_sweep_override()}
    for key, least in (("n_trials", 1), ("n_jobs", 1)):
        if int(sweeper[key]) < least:
            raise ValueError(f"hydra.sweeper.{key}={sweeper[key]}: {least} at least")
    if not 0 <= sweeper.max_failure_rate <= 1:
        raise ValueError(f"hydra.sweeper.max_failure_rate={sweeper.max_failure_rate}: a share, from 0 to 1")
    if sweeper.direction not in DIRECTIONS:
        raise ValueError(f"hydra.sweeper.direction={sweeper.direction}: one of {', '.join(DIRECTIONS)}")
    if not swept:
        raise ValueError("hydra.sweeper.params: no key has a range or choices, there is nothing to search")
    for one in swept.values():
        distribution(one)
    ranges = {key.lstrip("+"): str(one.input_line).partition("=")[2] for key, one in swept.items()}
    return Goal(str(config.objective), sweeper.direction, int(sweeper.n_trials), ranges, common)


def go_on_with(folder: Path, goal: Goal, jobs: Sequence[Job], *, restart: bool) -> None:
    """Look at what an earlier search has left.

    Args:
        folder: Of the sweep.
        goal: Of the present search.
        jobs: Jobs that have begun.
        restart: Whether to forget them.

    Raises:
        ValueError: If what is there cannot be gone on with.
    """
    if restart:
        for job in jobs:
            shutil.rmtree(job.folder)
    if restart or not jobs:
        (folder / STUDY_NAME).unlink(missing_ok=True)
        return
    earlier = read_plan(folder)
    if earlier is None or earlier.goal is None or not (folder / STUDY_NAME).is_file():
        raise ValueError(f"{folder} holds jobs of a sweep that was no search: name=<other> starts beside it")
    differ = _differences(_definition(earlier.goal), _definition(goal))
    differ = {name: said for name, said in differ.items() if _matters(name, goal.objective)}
    if differ:
        said = "; ".join([*differ.values()][:_NAMED]) + "; …" * (len(differ) > _NAMED)
        raise ValueError(
            f"{folder} holds a search under other settings, whose figures cannot be compared ({said}): "
            "name=<other> starts beside it, resume=restart forgets it"
        )


def _study(folder: Path, direction: str) -> Study:
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    file = f"sqlite:///{(folder / STUDY_NAME).absolute()}"
    return optuna.create_study(study_name="search", storage=file, direction=direction, load_if_exists=True)


def _written(chosen: Mapping[str, Any]) -> list[str]:
    """What was chosen as overrides, in digits that a reader can take over."""
    return [
        f"{key}={value:.{_DIGITS}g}" if isinstance(value, float) else f"{key}={value}"
        for key, value in chosen.items()
    ]


def _job(trial: FrozenTrial) -> int:
    return int(trial.user_attrs[_JOB])


def _neighbours(batch: Sequence[FrozenTrial]) -> list[tuple[int, list[FrozenTrial]]]:
    """Trials whose jobs have consecutive numbers together, as launchers count, with the first number."""
    groups: list[tuple[int, list[FrozenTrial]]] = []
    for trial in batch:
        if groups and groups[-1][0] + len(groups[-1][1]) == _job(trial):
            groups[-1][1].append(trial)
        else:
            groups.append((_job(trial), [trial]))
    return groups


def _definition(goal: Goal) -> dict[str, Any]:
    return {
        "objective": goal.objective,
        "hydra.sweeper.direction": goal.direction,
        **{f"range of {key}": text for key, text in goal.ranges.items()},
        **goal.common,
    }


def _differences(was: Mapping[str, Any], now: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """What is not the same, by dotted name."""
    found: dict[str, str] = {}
    for name in dict.fromkeys([*was, *now]):
        one, other = was.get(name), now.get(name)
        if isinstance(one, Mapping) and isinstance(other, Mapping):
            found |= _differences(one, other, f"{prefix}{name}.")
        elif one != other:
            found[f"{prefix}{name}"] = f"{prefix}{name}: {one}, now {other}"
    return found


def _matters(name: str, objective: str) -> bool:
    """Whether a setting may change what is measured."""
    if name.startswith("callbacks.samples"):
        return objective.startswith("samples/")
    return not name.startswith(_WATCHING)
