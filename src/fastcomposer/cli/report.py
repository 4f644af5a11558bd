"""Report what is measured: ``python -m fastcomposer.cli.report what=mini_base``."""

from __future__ import annotations

import json
from pathlib import Path

from omegaconf import DictConfig

from fastcomposer.cli.common import command

REPORTS = ("mini_base",)


@command("report")
def main(config: DictConfig) -> None:
    """Measure, print the table, and write the figures and the card."""
    if config.what not in REPORTS:
        raise ValueError(f"what={config.what}: unknown; there is {', '.join(REPORTS)}")
    base = Path(config.model.base)
    if not base.is_dir():
        raise FileNotFoundError(f"model.base={base}: no such folder")

    from hydra.utils import instantiate
    from rich.console import Console
    from rich.table import Table

    from fastcomposer.evaluation.base_card import base_card, quality_cells, read_lengths, write_lengths
    from fastcomposer.evaluation.base_parts import measure_base
    from fastcomposer.evaluation.mini_base import render_held_out

    report = measure_base(base, render_held_out(instantiate(config.scenes), config.num_scenes))
    table = Table("part", "measure", "value", "at least", "holds")
    for row in report.rows:
        table.add_row(*quality_cells(row))
    for part in report.missing:
        table.add_row(part, "missing")
    Console().print(table)
    file = Path(config.output) / f"{config.what}.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(report.as_dict() | {"scenes": config.num_scenes}, indent=2) + "\n")
    print(file)
    if config.card is not None:
        lengths = read_lengths(base, config.runs)
        write_lengths(base, lengths)
        Path(config.card).write_text(base_card(report, lengths, config.num_scenes), encoding="utf-8")
        print(config.card)


if __name__ == "__main__":
    main()
