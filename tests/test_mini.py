"""The committed base and checkpoint: complete, small, and good for what they are."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from fastcomposer.data.scenes import AvatarScenes, held_out_identities, reference_picture
from fastcomposer.models.composer import FastComposer
from fastcomposer.models.trained import load_trained_weights

MINI = Path(__file__).parents[1] / "data" / "mini"


@pytest.fixture(scope="module")
def model() -> FastComposer:
    model = FastComposer.from_pretrained(MINI, max_subjects=3)
    load_trained_weights(model, MINI / "fastcomposer.safetensors")
    return model.eval()


def test_the_folder_stays_small() -> None:
    assert sum(file.stat().st_size for file in MINI.rglob("*") if file.is_file()) <= 40e6


def test_the_vae_keeps_held_out_scenes(model: FastComposer) -> None:
    world = AvatarScenes()
    scenes = np.stack([world.scene("test", index).image for index in range(24)])
    pixels = torch.from_numpy(scenes).permute(0, 3, 1, 2).float() / 127.5 - 1
    with torch.no_grad():
        moments = model.encode_moments(pixels)
        decoded = model.vae.decode(moments.chunk(2, dim=1)[0]).sample.clamp(-1, 1)
    error = (decoded - pixels).square().mean((1, 2, 3)) / 4
    assert (-10 * error.log10()).mean() > 24


def test_references_decide_who_is_drawn(model: FastComposer) -> None:
    pipeline = model.to_pipeline()
    pipeline.set_progress_bar_config(disable=True)
    people = held_out_identities()[:2]

    def draw(number: int, alpha: float) -> np.ndarray:
        word = people[number].word
        return pipeline(
            f"a {word} <|image|>",
            references=[reference_picture(people[number], 96)],
            alpha=alpha,
            num_inference_steps=10,
            guidance_scale=3.0,
            generator=torch.Generator().manual_seed(0),
            output_type="np",
        ).images[0]

    first, second = draw(0, 1.0), draw(1, 1.0)
    assert np.abs(first - second).mean() > 0.03
    assert not np.array_equal(first, draw(0, 0.0))
