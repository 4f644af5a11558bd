"""Evaluate methods on benchmarks: ``fastcomposer evaluate checkpoint=…``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from fastcomposer.cli.common import command, conclude, quieten_lightning, show_table

ALIAS = ("methods", "compared")
"""``methods=[...]`` chooses from the group ``compared``: the configurations of the methods to compare."""


def check_objective(config: DictConfig) -> None:
    """Refuse an objective that the evaluation does not measure, by ``ValueError``."""
    if config.objective is None:
        return
    from fastcomposer.sweeps.report.sampling_objective import SamplingObjective

    SamplingObjective.read(config.objective, list(config.metrics.measures))


@command("evaluate", alias=ALIAS, check_objective=check_objective, sweep_jobs=(f"{ALIAS[1]}=[fastcomposer]",))
def main(config: DictConfig) -> float | None:
    """Sample, score, print the scores, and write them; returns the objective."""
    check_objective(config)

    from fastcomposer.sweeps.trained_jobs import check_trained
    from fastcomposer.utils.lock import sole_run

    check_trained(config)
    with sole_run(config.run_dir):
        return measure_scores(config)


def measure_scores(config: DictConfig) -> float | None:
    """Sample, score, and write ``results.json``, in a folder that no other run uses."""
    from hydra.utils import instantiate

    benchmarks = instantiate(config.benchmark)
    work = [(instantiate(method, _convert_="all"), benchmarks) for method in config.methods.values()]
    objective = _objective(config, [method for method, _ in work], benchmarks)
    rows = score_methods(config, work)
    return None if objective is None or rows is None else objective(rows)


def score_methods(config: DictConfig, work: list[tuple[Any, Any]]) -> list[Any] | None:
    """Sample and score each method on its benchmarks, with ``results.json``; rows on the first process.

    The list is emptied.
    """
    from hydra.utils import instantiate

    from fastcomposer.evaluation.generation import GenerationStage, open_runs, plan_runs, planned_folders
    from fastcomposer.evaluation.results import write_results
    from fastcomposer.evaluation.summary import describe_environment, result_rows

    quieten_lightning()
    output = Path(config.run_dir)
    scoring = instantiate(config.scoring)
    distances = instantiate(config.distances) if config.get("fid") else None
    stages = [stage for stage in (scoring, distances) if stage is not None]
    folders = {one for method, benchmarks in work for one in planned_folders([method], benchmarks, output)}
    for stage in stages:
        stage.check_others(output, folders)
    loggers = [instantiate(logger) for logger in (config.get("logger") or {}).values()]
    trainer = instantiate(config.trainer)
    scorer = instantiate(config.trainer, precision="32-true")  # whatever precision images are sampled in
    runs: list[Any] = []
    while work:  # one at a time in memory
        method, benchmarks = work.pop(0)
        concepts = output / "concepts" / method.name
        planned = plan_runs(method, benchmarks, output, config.trainer.precision)
        left_out = {benchmark.name for benchmark in benchmarks} - {run.benchmark.name for run in planned}
        if left_out and trainer.is_global_zero:
            print(
                f"{method.name} cannot sample so many subjects together: without "
                f"{', '.join(sorted(left_out))} (methods.{method.name}.max_subjects={method.max_subjects})"
            )
        open_runs(planned, concepts, config.resume == "restart")
        stage = GenerationStage(method, planned, concepts, config.get("save_attention", False))
        trainer.predict(stage, return_predictions=False)
        runs += planned
    for stage in stages:
        stage.runs = runs
        scorer.predict(stage, return_predictions=False)
    if not scorer.is_global_zero:
        return None
    rows = result_rows(output)
    file = output / "results.json"
    write_results(file, rows, describe_environment())
    if loggers:
        _log_scores(config, loggers, rows, file)
    _show_scores(rows)
    print(file)
    conclude({"scores": file, "images and their scores": output})
    return rows


def _objective(
    config: DictConfig, methods: Sequence[Any], benchmarks: Sequence[Any]
) -> Callable[[Sequence[Any]], float] | None:
    """Make the function from rows of results to the objective; refuse one of several methods or settings."""
    if config.objective is None:
        return None
    from fastcomposer.sweeps.report.sampling_objective import SamplingObjective

    objective = SamplingObjective.read(config.objective, list(config.metrics.measures))
    method, settings = objective.chosen(methods, [benchmark.name for benchmark in benchmarks])
    return lambda rows: objective.value(rows, method, settings)


def _log_scores(config: DictConfig, loggers: list[Any], rows: list[Any], file: Path) -> None:
    if not loggers:
        return
    from fastcomposer.evaluation.summary import log_rows
    from fastcomposer.training.loggers import kept_open
    from fastcomposer.training.wandb_artifacts import log_evaluation
    from fastcomposer.utils.texts import plain

    with kept_open(loggers) as runs:
        for logger in loggers:
            logger.log_hyperparams(plain(config))
        log_rows(loggers, rows)
        log_evaluation(runs, config.model.base, config.checkpoint, file)


def _show_scores(rows: list[Any]) -> None:
    from rich.table import Table

    further = [*dict.fromkeys(name for row in rows for name in row.measures)]
    columns = "benchmark", "method", "settings", "images", "identity", "prompt", *further, "faces", "s/image"
    table = Table(*columns)
    for row in rows:
        settings = ", ".join(f"{key} {value}" for key, value in row.settings.items())
        measured = (row.measures.get(name) for name in further)
        scores = [
            "" if score is None else f"{score.mean:.3f} ± {(score.ci95[1] - score.ci95[0]) / 2:.3f}"
            for score in (row.identity_preservation, row.prompt_consistency, *measured)
        ]
        counts = f"{row.detection_rate.mean:.2f}", "" if row.origin else f"{row.seconds_per_image:.3g}"
        table.add_row(row.benchmark, row.method, settings, str(row.images), *scores, *counts)
    show_table(table)


if __name__ == "__main__":
    main()
