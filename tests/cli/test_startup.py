"""What the commands load before their first step."""

from __future__ import annotations

import subprocess
import sys

import pytest

# What only other commands need, or only some choices of a configuration; each takes 0.1 to 2 seconds.
ELSEWHERE = (
    "facenet_pytorch",
    "litdata",
    "pandas",
    "pyarrow",
    "python_avatars",
    "resvg_py",
    "skimage",
    "spacy",
    "tensorboard",
    "wandb",
)
TRAIN = (
    "hydra.utils",
    "lightning",
    "lightning.pytorch.loggers",
    "fastcomposer.data.datamodule",
    "fastcomposer.training.callbacks",
    "fastcomposer.training.module",
)
GENERATE = (
    "fastcomposer.composer",
    "fastcomposer.models.weights_io",
    "fastcomposer.utils.image_grid",
    "fastcomposer.pipeline.stable_diffusion",
)


@pytest.mark.parametrize(
    ("modules", "unwanted", "most"),
    [
        (TRAIN, ELSEWHERE, 5400),
        (GENERATE, (*ELSEWHERE, "hydra.core.plugins", "lightning", "matplotlib", "torchmetrics"), 4400),
    ],
    ids=["train", "generate"],
)
def test_no_more_is_loaded_than_needed(
    modules: tuple[str, ...], unwanted: tuple[str, ...], most: int
) -> None:
    code = f"import sys, {', '.join(modules)}; print(*sys.modules)"
    call = [sys.executable, "-c", code]
    loaded = subprocess.run(call, capture_output=True, text=True, check=True).stdout.split()
    assert sorted(set(unwanted) & set(loaded)) == []
    assert 1000 < len(loaded) < most
