"""Prepare data: ``fastcomposer prepare data=avatars``."""

from __future__ import annotations

from pathlib import Path

from omegaconf import DictConfig

from fastcomposer.cli.common import command, conclude, model_parts, quieten_lightning


@command("prepare")
def main(config: DictConfig) -> None:
    """Prepare a data folder, its cache or its shards."""
    from fastcomposer.utils.lock import sole_run

    if config.cache is not None:
        with sole_run(config.cache):
            fill_cache(config)
    elif config.shards is not None:
        with sole_run(config.shards):
            split_up(config)
    elif config.faces:
        with sole_run(config.data.root):
            annotate(config)
    else:
        make_folder(config)


def annotate(config: DictConfig) -> None:
    """Add boxes of faces to the data's records."""
    from hydra.utils import instantiate

    count = instantiate(config.annotation)
    print(f"{count} records annotated with faces; identity, readout and reward can use them")
    conclude({"records": config.data.root})


def make_folder(config: DictConfig) -> None:
    """Make the data folder as ``data.prepare`` configures."""
    if config.data.prepare is None:
        raise ValueError("data.prepare is null: this dataset needs no preparation")

    from hydra.utils import instantiate

    from fastcomposer.utils.lock import is_first_process, sole_run

    if "trainer" in config.data.prepare:
        quieten_lightning()
    with sole_run(config.data.root):
        made = instantiate(config.data.prepare)
    if not is_first_process():
        return
    print(f"{made} records made; the data folder is {config.data.root}")
    root = Path(config.data.root)
    report = root / "preparation" / "report.html"
    conclude(
        {
            "records": root,
            "references": root / "references",
            "records with their masks": report,
            "photos left out": report.with_name("left_out.csv"),
        }
    )


def split_up(config: DictConfig) -> None:
    """Write the data's records in shards."""
    from hydra.utils import instantiate

    written = instantiate(config.sharding)
    print(f"{written} records written; data=streaming data.root={config.shards}")
    conclude({"shards": config.shards})


def fill_cache(config: DictConfig) -> None:
    """Precompute VAE moments and text states of the data's records."""
    if "cache" not in config.data.module:
        raise ValueError(f"cache={config.cache}: this dataset has no records to precompute")

    from hydra.utils import instantiate

    from fastcomposer.composer import FastComposer

    data = instantiate(config.data.module, cache=None)
    model = FastComposer.from_pretrained(**model_parts(config.model))
    stage = instantiate(config.precompute)(model, data)
    trainer = instantiate(config.trainer)
    trainer.predict(stage, return_predictions=False)
    if trainer.is_global_zero:
        print(f"data.module.cache={config.cache}")
        conclude({"cache": config.cache})


if __name__ == "__main__":
    main()
