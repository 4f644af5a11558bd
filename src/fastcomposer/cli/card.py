"""Measure the embedded base and write its card: ``fastcomposer card card=data/mini/README.md``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from fastcomposer.cli.common import command, show_table, write_figures


@command("card")
def main(config: DictConfig) -> None:
    """Measure the embedded base, print the table, and write the figures and the card."""
    base = Path(config.model.base)
    if not base.is_dir():
        raise FileNotFoundError(f"model.base={base}: no such folder")

    from hydra.utils import instantiate
    from rich.table import Table

    from fastcomposer.miniworld.card.measures import measure_base, missing_parts, render_held_out
    from fastcomposer.miniworld.card.writer import base_card, quality_cells, read_lengths, write_lengths

    scenes = render_held_out(instantiate(config.scenes), config.num_scenes)
    rows, missing = measure_base(base, scenes, config.sampler, config.num_generated), missing_parts(base)
    if config.evaluation is not None:
        rows += _checkpoint_rows(config, scenes)
    table = Table("part", "measure", "value", "at least", "holds")
    for row in rows:
        table.add_row(*quality_cells(row))
    for part in missing:
        table.add_row(part, "missing")
    show_table(table)
    figures = {"schema": 1, "rows": [row.as_dict() for row in rows], "missing": missing}
    write_figures(Path(config.output) / "card.json", figures | {"scenes": config.num_scenes})
    if config.card is not None:
        lengths = read_lengths(base, config.runs)
        write_lengths(base, lengths)
        samples = sorted(file.name for file in (base / "samples").glob("*.png"))
        card = base_card(rows, missing, lengths, config.num_scenes, samples)
        Path(config.card).write_text(card, encoding="utf-8")
        print(config.card)


def _checkpoint_rows(config: DictConfig, scenes: Any) -> list[Any]:
    """Rows of the checkpoint and of its twin without localization, from their evaluation."""
    from hydra.utils import instantiate

    from fastcomposer.evaluation.load_results import collect
    from fastcomposer.miniworld.card.checkpoint_rows import attention_rows, evaluation_rows, identity_ceiling
    from fastcomposer.miniworld.face_extractor import MiniFaces

    folder = Path(config.evaluation)
    collected = collect(folder, config.alpha)
    benchmarks = instantiate(config.benchmark)
    faces = MiniFaces(config.model.base)
    ceiling = identity_ceiling(benchmarks[0].subjects, scenes, faces, config.model.resolution)
    rows = evaluation_rows(collected, ceiling)
    return rows + attention_rows(folder / "attention.json", config.checkpoint, config.twin)


if __name__ == "__main__":
    main()
