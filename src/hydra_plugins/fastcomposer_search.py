"""Hydra's way to a search with optuna: it takes sweepers from this package only."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig


class SearchSweeper(Sweeper):
    """Chooses the settings of jobs by what earlier ones have measured.

    Args:
        params: What each key is chosen from, as on the command line.
        direction: ``minimize`` or ``maximize``.
        n_trials: How many jobs there are to be, those of earlier calls among them.
        n_jobs: How many are chosen at once, for a launcher that runs several at a time.
        max_failure_rate: The search ends when more than this share of its trials has failed, three at least.
        seed: Of what is chosen.
        sampler: Makes a sampler of optuna of a seed.
    """

    def __init__(
        self,
        params: Mapping[str, str],
        direction: str,
        n_trials: int,
        n_jobs: int,
        max_failure_rate: float,
        seed: int,
        sampler: Callable[..., Any],
    ) -> None:
        self.params = params
        self.direction, self.n_trials, self.n_jobs = direction, n_trials, n_jobs
        self.max_failure_rate, self.seed, self.sampler = max_failure_rate, seed, sampler

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Make the launcher."""
        self.folder = Path(config.hydra.sweep.dir)
        self.launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments: list[str]) -> None:
        """Run the jobs; the arguments are those of the command."""
        from fastcomposer.sweeps.search import Search, chosen_overrides

        def launch(jobs: Sequence[Sequence[str]], first: int) -> list[float | None]:
            assert self.launcher is not None  # by setup
            results: Sequence[JobReturn] = self.launcher.launch(jobs, initial_job_idx=first)
            return [_value(result) for result in results]

        Search(
            self.folder,
            chosen_overrides(self.params, arguments),
            self.direction,
            self.n_trials,
            self.n_jobs,
            self.max_failure_rate,
            self.seed,
            self.sampler,
        ).run(launch)


def _value(result: JobReturn) -> float | None:
    """What a job has measured; ``None`` where it failed, which it has said itself, or its process ended."""
    try:
        value = result.return_value
    except Exception as error:
        print(f"error: {type(error).__name__}: {error}")
        return None
    return None if value is None else float(value)
