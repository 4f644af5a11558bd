"""The committed bases and checkpoints: complete, small, and good for what they are."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from fastcomposer.composer import FastComposer
from fastcomposer.miniworld.card.measures import QUALITY, HeldOutScenes, render_held_out
from fastcomposer.miniworld.scenes import AvatarScenes, held_out_identities, reference_image
from fastcomposer.models.weights_io import load_trained_weights

MINI = Path(__file__).parents[1] / "data" / "mini"
MINI_DIT = MINI.with_name("mini_dit")
SHORT_OF = {"vae": 0.3}
"""How far below what the card asks a part may be, in the card's own unit: dB."""


@pytest.fixture(scope="module")
def scenes() -> HeldOutScenes:
    return render_held_out(AvatarScenes(), 200)


def test_the_folder_stays_small() -> None:
    sizes = {file: file.stat().st_size for file in MINI.rglob("*") if file.is_file()}
    beyond = sum(size for file, size in sizes.items() if file.parent.name == "fastcomposer_id")
    assert beyond <= 9e6
    assert sum(sizes.values()) - beyond <= 40e6


def test_the_folder_of_the_transformer_has_links_and_what_is_trained_for_it() -> None:
    own = {file.relative_to(MINI_DIT).as_posix(): file for file in MINI_DIT.rglob("*.safetensors")}
    own = {name: file for name, file in own.items() if not file.is_symlink()}
    assert own.keys() == {
        "transformer/diffusion_pytorch_model.safetensors",
        "fastcomposer.safetensors",
        "without_localization/fastcomposer.safetensors",
    }
    for name, file in own.items():
        assert file.stat().st_size <= (12e6 if "transformer" in name else 7e6)


@pytest.mark.parametrize("part", sorted(QUALITY))
def test_parts_are_as_good_as_the_card_asks(part: str, scenes: HeldOutScenes) -> None:
    """On a fifth of the card's scenes; the card itself says where a part falls short of what is asked."""
    rows = [row for row in QUALITY[part](MINI, scenes) if row.at_least is not None]
    assert rows
    for row in rows:
        assert row.value >= row.at_least - SHORT_OF.get(part, 0), f"{row.measure}: {row.value}"


@pytest.mark.parametrize("base", [MINI, MINI_DIT])
def test_references_decide_who_is_drawn(base: Path) -> None:
    model = FastComposer.from_pretrained(base, max_subjects=3)
    load_trained_weights(model, base)
    pipeline = model.eval().to_pipeline()
    pipeline.set_progress_bar_config(disable=True)
    people = held_out_identities()[:2]

    def draw(number: int, alpha: float) -> np.ndarray:
        word = people[number].word
        return pipeline(
            f"a {word} <|image|>",
            references=[reference_image(people[number], 96)],
            alpha=alpha,
            num_inference_steps=10,
            guidance_scale=3.0,
            generator=torch.Generator().manual_seed(0),
            output_type="np",
        ).images[0]

    first, second = draw(0, 1.0), draw(1, 1.0)
    assert np.abs(first - second).mean() > 0.03
    assert not np.array_equal(first, draw(0, 0.0))
