"""Hydra's entry to a search with optuna: it takes sweepers from this package only."""

# No annotations from __future__: Hydra loads this file without a name in sys.modules, where dataclasses look.
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig


@dataclass(eq=False)
class SearchSweeper(Sweeper):
    """Chooses the settings of jobs by the objectives of earlier ones.

    Args:
        params: What each key is chosen from, as on the command line.
        direction: ``minimize`` or ``maximize``.
        n_trials: Number of jobs, those of earlier calls among them.
        n_jobs: How many are chosen at once, for a launcher that runs several at a time.
        max_failure_rate: The search ends when more than this fraction of its trials failed, three at least.
        seed: Of what is chosen.
        sampler: Makes a sampler of optuna from a ``seed``.
    """

    params: Mapping[str, str]
    direction: str
    n_trials: int
    n_jobs: int
    max_failure_rate: float
    seed: int
    sampler: Callable[..., Any]

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

        Search(self.folder, chosen_overrides(self.params, arguments), self).run(launch)


def _value(result: JobReturn) -> float | None:
    """The objective of a job; ``None`` where it failed, which it has reported, or its process ended."""
    try:
        value = result.return_value
    except Exception as error:
        print(f"error: {type(error).__name__}: {error}")
        return None
    return None if value is None else float(value)
