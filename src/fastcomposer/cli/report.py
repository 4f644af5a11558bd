"""Report what is measured: ``python -m fastcomposer.cli.report what=results``, ``sweep=multirun/…``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from fastcomposer.cli.common import command, show_table
from fastcomposer.cli.summary import conclude

SPOKEN = ("sweep", "jobs")
"""``sweep=`` names a folder here, which is the key ``jobs``; to Hydra it is the group of sweeps."""


@command("report", spoken=SPOKEN)
def main(config: DictConfig) -> None:
    """Hand over to what ``what`` names, or report a sweep."""
    if config.jobs is not None:
        report_sweep(config)
        return
    if config.what not in REPORTS:
        raise ValueError(f"what={config.what}: unknown; there is {', '.join(REPORTS)}")
    REPORTS[config.what](config)


def report_results(config: DictConfig) -> None:
    """Write tables and page of an evaluation."""
    results = Path(config.results)
    if config.readme is not None:
        from fastcomposer.evaluation.report.readme import check_section

        check_section(config.readme, "results")
    if not any(results.glob("**/results.json")):
        raise FileNotFoundError(f"results={results}: no results.json there; evaluate writes it")

    from hydra.utils import instantiate

    from fastcomposer.evaluation.report.files import write_report

    # ~benchmark takes the group away.
    benchmarks = instantiate(config.benchmark) if config.get("benchmark") else ()
    files = write_report(results, list(config.formats), config.alpha, benchmarks)
    print(*files, sep="\n")
    if config.readme is not None:
        from fastcomposer.evaluation.collected import collect
        from fastcomposer.evaluation.report.readme import results_section, write_section

        write_section(config.readme, "results", results_section(collect(results, config.alpha)))
        print(config.readme)
    conclude({"tables and page": results})


def report_sweep(config: DictConfig) -> None:
    """Write tables and page of what a sweep has measured, and name what did not finish."""
    if not Path(config.jobs).is_dir():
        raise FileNotFoundError(f"sweep={config.jobs}: no such folder")

    from fastcomposer.evaluation.sweeps.report import undone_line, unscored_line, write_sweep_report

    sweep, sentences, files = write_sweep_report(config.jobs, tuple(config.formats), config.baseline)
    print(*sentences, *files, sep="\n")
    for job in sweep.undone:
        print(f"not finished: {undone_line(job, sweep.keys)}")
    if sweep.unscored:
        print(unscored_line(sweep))
    conclude({"tables and page": config.jobs})


def report_workspace(config: DictConfig) -> None:
    """Create the panels of a project at Weights & Biases."""
    from fastcomposer.panels import save_workspace

    print(save_workspace(config.project, config.entity))


def report_base(config: DictConfig) -> None:
    """Measure the embedded base, print the table, and write the figures and the card."""
    base = Path(config.model.base)
    if not base.is_dir():
        raise FileNotFoundError(f"model.base={base}: no such folder")

    from hydra.utils import instantiate
    from rich.table import Table

    from fastcomposer.evaluation.base.card import base_card, quality_cells, read_lengths, write_lengths
    from fastcomposer.evaluation.base.parts import measure_base
    from fastcomposer.evaluation.base.quality import render_held_out

    scenes = render_held_out(instantiate(config.scenes), config.num_scenes)
    report = measure_base(base, scenes, config.sampler, config.num_generated)
    if config.evaluation is not None:
        report = report.extended(checkpoint_rows(config, scenes))
    table = Table("part", "measure", "value", "at least", "holds")
    for row in report.rows:
        table.add_row(*quality_cells(row))
    for part in report.missing:
        table.add_row(part, "missing")
    show_table(table)
    file = Path(config.output) / f"{config.what}.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(report.as_dict() | {"scenes": config.num_scenes}, indent=2) + "\n")
    print(file)
    if config.card is not None:
        lengths = read_lengths(base, config.runs)
        write_lengths(base, lengths)
        samples = sorted(file.name for file in (base / "samples").glob("*.png"))
        card = base_card(report, lengths, config.num_scenes, samples)
        Path(config.card).write_text(card, encoding="utf-8")
        print(config.card)
    conclude({"figures": file, "card": config.card})


def checkpoint_rows(config: DictConfig, scenes: Any) -> list[Any]:
    """What an evaluation says of the checkpoint and of its twin without localization."""
    from hydra.utils import instantiate

    from fastcomposer.evaluation.base.likeness import attention_rows, identity_ceiling, likeness_rows
    from fastcomposer.evaluation.collected import collect
    from fastcomposer.metrics.faces import MiniFaces

    folder = Path(config.evaluation)
    collected = collect(folder, config.alpha)
    benchmarks = instantiate(config.benchmark)
    faces = MiniFaces(config.model.base)
    ceiling = identity_ceiling(benchmarks[0].subjects, scenes, faces, config.model.resolution)
    rows = likeness_rows(collected, ceiling)
    return rows + attention_rows(folder / "attention.json", config.checkpoint, config.twin)


REPORTS = {
    "results": report_results,
    "workspace": report_workspace,
    "mini_base": report_base,
}


if __name__ == "__main__":
    main()
