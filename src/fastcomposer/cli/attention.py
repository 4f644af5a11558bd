"""Measure attention inside the subjects' masks: ``fastcomposer attention checkpoints=[…]``."""

from __future__ import annotations

import json
from itertools import islice
from pathlib import Path

from omegaconf import DictConfig

from fastcomposer.cli.closing import conclude
from fastcomposer.cli.common import command, load_trained_model, show_table
from fastcomposer.sweeps.trained_jobs import check_trained, with_jobs
from fastcomposer.utils.lock import sole_run


@command("attention", expand=with_jobs)
def main(config: DictConfig) -> None:
    """Measure, in a folder that no other run uses."""
    check_trained(config)
    with sole_run(config.run_dir):
        measure(config)


def measure(config: DictConfig) -> None:
    """Measure each checkpoint's attention on held-out records, and write ``attention.json``."""
    if not config.checkpoints or None in config.checkpoints:
        raise ValueError("checkpoints: name at least one checkpoint or run folder")

    from hydra.utils import instantiate
    from rich.table import Table

    from fastcomposer.evaluation.attention_share import attention_share
    from fastcomposer.utils.progress import tracked

    data = instantiate(config.data.module)
    table = Table("checkpoint", "attention inside the mask", "mask's share of the image", "subjects")
    results = {}
    for checkpoint in config.checkpoints:
        model = load_trained_model(config.model, checkpoint)
        loader = data.val_dataloader()
        count = min(len(loader), config.num_batches)
        batches = tracked(islice(loader, count), f"batches for {checkpoint}", total=count, transient=True)
        share = attention_share(model, batches, config.seed)
        results[checkpoint] = share.as_dict()
        table.add_row(checkpoint, f"{share.inside:.3f}", f"{share.area:.3f}", str(share.subjects))
    show_table(table)
    output = Path(config.run_dir)
    output.mkdir(parents=True, exist_ok=True)
    file = output / "attention.json"
    file.write_text(json.dumps(results, indent=2) + "\n")
    print(file)
    conclude({"figures": file})


if __name__ == "__main__":
    main()
