"""Score the images of another system: ``fastcomposer score images=… method=…``."""

from __future__ import annotations

from omegaconf import DictConfig

from fastcomposer.cli.common import command

ALIAS = ("method", "method_name")
"""``method=`` is the name of a method here, which is the key ``method_name``; to Hydra it is a group."""


@command("score", alias=ALIAS, free_text=("version", "note"))
def main(config: DictConfig) -> None:
    """Find the images, score them, print the scores, and write them."""
    from fastcomposer.utils.lock import sole_run

    with sole_run(config.run_dir):
        score_images(config)


def score_images(config: DictConfig) -> None:
    """Score, and write ``results.json``, in a folder that no other run uses."""
    from hydra.utils import instantiate
    from lightning.pytorch.utilities import rank_zero_only

    from fastcomposer.cli.evaluate import score_methods
    from fastcomposer.evaluation.foreign import find_images, foreign_methods, listed

    benchmarks = instantiate(config.benchmark)
    found = find_images(config.images, benchmarks, config.manifest, config.skip_missing)
    for files, what in ((found.missing, "cases have no image"), (found.surplus, "images are of no case")):
        if files:
            rank_zero_only(print)(f"{len(files):,} {what}: {listed(files)}")
    origin = config.method_name, config.version, config.note
    score_methods(config, foreign_methods(found, benchmarks, *origin, config.reference_images))


if __name__ == "__main__":
    main()
