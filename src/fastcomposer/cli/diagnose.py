"""Measure where identity is lost: ``fastcomposer diagnose checkpoints=[…]``."""

from __future__ import annotations

from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from fastcomposer.cli.common import command, model_parts, show_table, write_figures


@command("diagnose")
def main(config: DictConfig) -> None:
    """Measure each checkpoint on held-out records, and write ``diagnosis.json`` and two plots."""
    from fastcomposer.utils.lock import sole_run

    if not config.checkpoints or None in config.checkpoints:
        raise ValueError("checkpoints: name at least one checkpoint or run folder")
    with sole_run(config.run_dir):
        _measure(config)


def _measure(config: DictConfig) -> None:
    import torch
    from hydra.utils import instantiate
    from rich.table import Table

    from fastcomposer.composer import FastComposer
    from fastcomposer.evaluation.identity_diagnosis import (
        identity_curve,
        read_out,
        stage_features,
    )
    from fastcomposer.evaluation.report.plots import plot_curves, plot_read_out
    from fastcomposer.utils.progress import tracked

    held_out, fitted = instantiate(config.data.module), instantiate(config.fitted)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    embed = instantiate(config.metrics.embedder).to(device)

    def batches(data: Any, about: str) -> Any:
        loader = data.val_dataloader()
        count = min(len(loader), config.num_batches)
        moved = (batch.to(device) for batch in islice(loader, count))
        return tracked(moved, about, total=count, transient=True)

    results: dict[str, Any] = {}
    curves, stages = {}, {}
    for checkpoint in config.checkpoints:
        model = FastComposer.from_checkpoint(checkpoint, **model_parts(config.model)).to(device)
        curves[checkpoint] = identity_curve(
            model, batches(held_out, f"x̂₀ of {checkpoint}"), embed, config.levels, config.seed
        )
        known = stage_features(model, batches(fitted, f"stages of {checkpoint}"), embed)
        stages[checkpoint] = read_out(
            *known, *stage_features(model, batches(held_out, "held-out stages"), embed)
        )
        results[checkpoint] = {
            "curve": [asdict(point) for point in curves[checkpoint]],
            "read_out": stages[checkpoint],
        }
    table = Table("identity", *config.checkpoints)
    for stage in dict.fromkeys(name for found in stages.values() for name in found):
        row = [found.get(stage) for found in stages.values()]
        table.add_row(f"read out of {stage}", *("" if value is None else f"{value:.3f}" for value in row))
    for row in zip(*curves.values(), strict=True):
        level = "round trip of the VAE" if row[0].timestep < 0 else f"x̂₀ at t = {row[0].timestep}"
        table.add_row(level, *(f"{point.subjects:.3f} (text {point.text:.3f})" for point in row))
    show_table(table)
    output = Path(config.run_dir)
    output.mkdir(parents=True, exist_ok=True)
    plots = {"curve.svg": plot_curves(curves), "read_out.svg": plot_read_out(stages)}
    for name, svg in plots.items():
        (output / name).write_text(svg.replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" ', 1))
    write_figures(output / "diagnosis.json", results)


if __name__ == "__main__":
    main()
