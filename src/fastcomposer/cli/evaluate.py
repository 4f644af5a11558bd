"""Evaluate trained models: ``python -m fastcomposer.cli.evaluate checkpoints=[…]``."""

from __future__ import annotations

import json
from itertools import islice
from pathlib import Path

from omegaconf import DictConfig

from fastcomposer.cli.common import command


@command("evaluate")
def main(config: DictConfig) -> None:
    """Measure each checkpoint on held-out records and write the figures."""
    if not config.checkpoints:
        raise ValueError("checkpoints: name at least one checkpoint or run folder")

    from hydra.utils import instantiate
    from rich.console import Console
    from rich.table import Table

    from fastcomposer.evaluation.attention import attention_share
    from fastcomposer.models.composer import FastComposer
    from fastcomposer.models.trained import load_trained_weights

    data = instantiate(config.data.module)
    table = Table("checkpoint", "attention inside the mask", "mask's share of the picture", "subjects")
    results = {}
    for checkpoint in config.checkpoints:
        model = FastComposer.from_pretrained(
            config.model.base, config.model.image_encoder, max_subjects=config.model.max_subjects
        )
        load_trained_weights(model, checkpoint)
        share = attention_share(model, islice(data.val_dataloader(), config.num_batches), config.seed)
        results[checkpoint] = share.as_dict()
        table.add_row(checkpoint, f"{share.inside:.3f}", f"{share.area:.3f}", str(share.subjects))
    Console().print(table)
    output = Path(config.output)
    output.mkdir(parents=True, exist_ok=True)
    file = output / "attention.json"
    file.write_text(json.dumps(results, indent=2) + "\n")
    print(file)


if __name__ == "__main__":
    main()
