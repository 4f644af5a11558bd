"""Prepare data: ``fastcomposer prepare data=avatars``."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from omegaconf import DictConfig

from fastcomposer.cli.closing import conclude
from fastcomposer.cli.common import command, model_parts, quieten_lightning


@command("prepare")
def main(config: DictConfig) -> None:
    """Make a data folder, or a cache or shards of one."""
    from fastcomposer.utils.lock import sole_run

    if config.cache is not None:
        with sole_run(config.cache):
            fill_cache(config)
    elif config.shards is not None:
        with sole_run(config.shards):
            split_up(config)
    else:
        make_folder(config)


def make_folder(config: DictConfig) -> None:
    """Call the function that the data configuration names under ``prepare``."""
    if config.data.prepare is None:
        raise ValueError(
            "this data choice is ready-made: data.prepare is null, so there is nothing to prepare"
        )

    from hydra.utils import instantiate

    from fastcomposer.utils.lock import sole_run

    log: Callable[[str], None] = print
    end: Callable[..., None] = conclude
    if "trainer" in config.data.prepare:  # several processes may be at work
        from lightning.pytorch.utilities import rank_zero_only

        quieten_lightning()
        log, end = rank_zero_only(print), rank_zero_only(conclude)
    root = Path(config.data.root)
    with sole_run(root):
        made = instantiate(config.data.prepare)
    log(f"{made} records made; the data folder is {config.data.root}")
    page = root / "preparation" / "report.html"
    end(
        {
            "records": root,
            "references": root / "references",
            "50 records with their masks": page,
            "photos left out": page.with_name("left_out.csv"),
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
        raise ValueError(f"cache={config.cache}: this data choice has no records to precompute states of")

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
