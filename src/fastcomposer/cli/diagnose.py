"""Measure where identity is lost: ``fastcomposer diagnose checkpoints=[…]``."""

from __future__ import annotations

from dataclasses import asdict
from itertools import islice
from pathlib import Path
from shutil import copy
from typing import Any

from omegaconf import DictConfig

from fastcomposer.cli.common import command, model_parts, show_table, write_figures

_PLOTS = {
    "curve.svg": "Identity of x̂₀ by noise level, with the subjects and with the text alone",
    "read_out.svg": "Identity that a linear read-out finds at each stage",
}


@command("diagnose")
def main(config: DictConfig) -> None:
    """Measure each checkpoint on held-out records; write ``diagnosis.json``, two plots and the document."""
    from fastcomposer.utils.lock import sole_run

    if not config.checkpoints or None in config.checkpoints:
        raise ValueError("checkpoints: name at least one checkpoint or run folder")
    if config.names is not None and len({*config.names}) != len(config.checkpoints):
        raise ValueError("names: give one to each of checkpoints, all different")
    if config.document is not None:
        from fastcomposer.utils.markdown import check_section

        check_section("document", config.document, "diagnosis")
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
    from fastcomposer.utils.markdown import markdown_table, write_section
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
    for name, checkpoint in zip(config.names or config.checkpoints, config.checkpoints, strict=True):
        model = FastComposer.from_checkpoint(checkpoint, **model_parts(config.model)).to(device)
        curves[name] = identity_curve(
            model, batches(held_out, f"x̂₀ of {name}"), embed, config.levels, config.seed
        )
        known = stage_features(model, batches(fitted, f"stages of {name}"), embed)
        stages[name] = read_out(*known, *stage_features(model, batches(held_out, "held-out stages"), embed))
        results[name] = {"curve": [asdict(point) for point in curves[name]], "read_out": stages[name]}
    head, rows = ["identity", *results], []
    for stage in dict.fromkeys(stage for found in stages.values() for stage in found):
        values = [found.get(stage) for found in stages.values()]
        rows.append([f"read out of {stage}", *("" if value is None else f"{value:.3f}" for value in values)])
    for row in zip(*curves.values(), strict=True):
        level = "round trip of the VAE" if row[0].timestep < 0 else f"x̂₀ at t = {row[0].timestep}"
        rows.append([level, *(f"{point.subjects:.3f} (text {point.text:.3f})" for point in row)])
    table = Table(*head)
    for cells in rows:
        table.add_row(*cells)
    show_table(table)
    output = Path(config.run_dir)
    output.mkdir(parents=True, exist_ok=True)
    plots = {"curve.svg": plot_curves(curves), "read_out.svg": plot_read_out(stages)}
    for name, svg in plots.items():
        (output / name).write_text(svg.replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" ', 1))
    if config.document is not None:
        parts = [markdown_table(head, rows, ["---", *["---:"] * len(results)])]
        for name, about in _PLOTS.items():
            file = Path(config.document).with_name(f"diagnosis_{name}")
            copy(output / name, file)
            parts.append(f"![{about}]({file.name})")
        write_section(config.document, "diagnosis", "\n\n".join(parts))
    write_figures(output / "diagnosis.json", results)


if __name__ == "__main__":
    main()
