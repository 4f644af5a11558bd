"""Prepare data: ``python -m fastcomposer.cli.prepare data=avatars``."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from omegaconf import DictConfig

from fastcomposer.cli.common import command, load_base_model, quieten_lightning
from fastcomposer.cli.lock import sole_run
from fastcomposer.cli.summary import Step, carried, choice, conclude, opened, training, value
from fastcomposer.data.records import ID_LISTS, read_ids


@command("prepare")
def main(config: DictConfig) -> None:
    """Make a data folder, or what the training takes from one."""
    if config.cache is not None:
        with sole_run(config.cache):
            fill_cache(config)
    elif config.shards is not None:
        with sole_run(config.shards):
            split_up(config)
    else:
        make_folder(config)


def make_folder(config: DictConfig) -> None:
    """Call what the data configuration names under ``prepare``."""
    if config.data.prepare is None:
        raise ValueError(
            "this data choice is ready-made: data.prepare is null, so there is nothing to prepare"
        )

    from hydra.utils import instantiate

    say: Callable[[str], None] = print
    end: Callable[..., None] = conclude
    if "trainer" in config.data.prepare:  # several processes may be at work
        from lightning.pytorch.utilities import rank_zero_only

        quieten_lightning()
        say, end = rank_zero_only(print), rank_zero_only(conclude)
    with sole_run(config.data.root):
        made = instantiate(config.data.prepare)
    say(f"{made} records made; the data folder is {config.data.root}")
    root = Path(config.data.root)
    page = root / "preparation" / "report.html"
    places = {
        "records": root,
        "references": root / "references",
        "photos left out": page.with_name("left_out.csv"),
    }
    look = [Step("look at 50 records with their masks", opened(page))] if page.is_file() else []
    more = adapted(root, config.data.module.batch_size)
    end(places, look if more is None else [*look, training(records(), *more)])


def records() -> list[str]:
    """What a training is told to read the data folder; each experiment names some of it itself."""
    usual = "avatars" if choice("model") == "mini" else "ffhq"
    return [told for told in carried("data", given={"data": usual}) if not told.startswith("data.prepare.")]


def adapted(root: Path, batch_size: int) -> list[str] | None:
    """What a training has to do without or with less of, because the data folder is small.

    Args:
        root: The data folder, as ``prepare`` left it.
        batch_size: That of a training in the mini world, unless its experiment says otherwise.

    Returns:
        What to tell it; ``None`` where there is nothing to train on.
    """
    if not (root / ID_LISTS["train"]).is_file():
        return None
    told = [] if (root / ID_LISTS["test"]).is_file() else ["data.module.val_split=null"]
    if choice("model") != "mini":
        return told
    samples = [] if (root / "references").is_dir() else ["callbacks=default"]
    count = len(read_ids(root, "train"))
    fewer = [f"data.module.batch_size={count}"] if count < batch_size else []
    return [*samples, *told, *fewer]


def split_up(config: DictConfig) -> None:
    """Write the data's records in shards."""
    from hydra.utils import instantiate

    written = instantiate(config.sharding)
    print(f"{written} records written; data=streaming data.root={config.shards}")
    data = ["data=streaming", f"data.root={value(Path(config.shards))}", *carried("data.module")]
    portraits = ["callbacks=default"] if choice("model") == "mini" else []  # they stay in the data folder
    conclude({"shards": config.shards}, [training(data, *portraits)])


def fill_cache(config: DictConfig) -> None:
    """Precompute VAE moments and text states of the data's records."""
    if "cache" not in config.data.module:
        raise ValueError(f"cache={config.cache}: this data choice has no records to precompute states of")

    from hydra.utils import instantiate

    data = instantiate(config.data.module, cache=None)
    model = load_base_model(config.model)
    stage = instantiate(config.precompute)(model, data)
    trainer = instantiate(config.trainer)
    trainer.predict(stage, return_predictions=False)
    if trainer.is_global_zero:
        print(f"data.module.cache={config.cache}")
        cache = f"data.module.cache={value(Path(config.cache))}"
        conclude({"cache": config.cache}, [training(records(), cache)])


if __name__ == "__main__":
    main()
