"""Measure attention inside the subjects' masks: ``fastcomposer attention checkpoints=[…]``."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

from omegaconf import DictConfig

from fastcomposer.cli.common import command, model_parts, show_table, write_figures


@command("attention", sweep_jobs=())
def main(config: DictConfig) -> None:
    """Measure each checkpoint's attention on held-out records, and write ``attention.json``."""
    from fastcomposer.sweeps.trained_jobs import check_trained
    from fastcomposer.utils.lock import sole_run

    check_trained(config)
    if not config.checkpoints or None in config.checkpoints:
        raise ValueError("checkpoints: name at least one checkpoint or run folder")
    with sole_run(config.run_dir):
        _measure(config)


def _measure(config: DictConfig) -> None:
    from hydra.utils import instantiate
    from rich.table import Table

    from fastcomposer.composer import FastComposer
    from fastcomposer.evaluation.attention_share import attention_share
    from fastcomposer.utils.progress import tracked

    data = instantiate(config.data.module)
    table = Table("checkpoint", "attention inside the mask", "mask's fraction of the image", "subjects")
    results = {}
    for checkpoint in config.checkpoints:
        model = FastComposer.from_checkpoint(checkpoint, **model_parts(config.model))
        loader = data.val_dataloader()
        count = min(len(loader), config.num_batches)
        batches = tracked(islice(loader, count), f"batches for {checkpoint}", total=count, transient=True)
        share = attention_share(model, batches, config.seed)
        results[checkpoint] = share.as_dict()
        table.add_row(checkpoint, f"{share.inside:.3f}", f"{share.area:.3f}", str(share.subjects))
    show_table(table)
    write_figures(Path(config.run_dir) / "attention.json", results)


if __name__ == "__main__":
    main()
