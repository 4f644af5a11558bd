"""Fixtures of the commands: a call in this process, photographs that packages ship, metric models by path."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import skimage
import torch
from command_line import called
from matplotlib import cbook
from PIL import Image
from small_training import small_training
from tiny_networks import write_clip


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., tuple[int, str, str]]:
    """Call a command in this process, in an empty folder; returns status, output and errors."""
    monkeypatch.chdir(tmp_path)
    return called


@pytest.fixture
def settings(world: Path, small_base: Path) -> list[str]:
    """A training of seconds."""
    return small_training(
        small_base,
        world,
        "callbacks.samples.scores=null",
        "data.module.batch_size=2",
        "trainer.max_steps=3",
        "trainer.val_check_interval=2",
        "trainer.limit_val_batches=1",
        "+sampler.height=32",
        "+sampler.width=32",
        "sampler.num_inference_steps=2",
    )


@pytest.fixture(scope="session")
def astronaut() -> Image.Image:
    """A woman, (512, 512)."""
    return Image.open(Path(skimage.__file__).parent / "data" / "astronaut.png").convert("RGB")


@pytest.fixture(scope="session")
def admiral() -> Image.Image:
    """Another woman, (512, 512)."""
    with cbook.get_sample_data("grace_hopper.jpg") as file:
        return Image.open(file).convert("RGB").resize((512, 606)).crop((0, 0, 512, 512))


@pytest.fixture(scope="session")
def paper_metrics(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Settings that give the networks by path: random ones, but for MTCNN, which comes with its weights."""
    from facenet_pytorch import InceptionResnetV1

    folder = tmp_path_factory.mktemp("metrics")
    torch.manual_seed(0)
    torch.save(InceptionResnetV1().state_dict(), folder / "inception.pt")
    write_clip(folder / "clip", tiny_base / "tokenizer")
    files = f"metrics.faces.weights={folder / 'inception.pt'}", f"metrics.image_text.model={folder / 'clip'}"
    return ["metrics=paper", *files]
