"""Measurements of the embedded base, on networks and pairs whose figures are known."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tiny_architectures import narrow
from torch import Tensor

from fastcomposer import FastComposer
from fastcomposer.miniworld.avatars import Appearance
from fastcomposer.miniworld.card import measures
from fastcomposer.miniworld.card.measures import (
    HeldOutScenes,
    caption_accuracy,
    flops_of,
    generate_from_captions,
    held_out_pairs,
    measure_generated,
    missing_parts,
    parts_of,
    render_held_out,
    size_rows,
)
from fastcomposer.miniworld.detector import Detections, HeadDetector
from fastcomposer.miniworld.embedder import IdentityEmbedder, Pairs
from fastcomposer.miniworld.scenes import AvatarScenes, Person, held_out_identities
from fastcomposer.miniworld.train_vae import reconstruction_psnr

SAMPLER = {"num_inference_steps": 2, "guidance_scale": 3.0, "alpha": 0.8}


@pytest.fixture(scope="module")
def scenes() -> HeldOutScenes:
    return render_held_out(AvatarScenes(), 48)


def test_held_out_scenes_are_the_first_of_the_split(scenes: HeldOutScenes) -> None:
    first = AvatarScenes().scene("test", 0)
    assert torch.equal((scenes.images[0] * 255).round().byte(), torch.tensor(first.image).permute(2, 0, 1))
    assert scenes.captions[0] == first.caption
    assert scenes.heads[0].tolist() == [list(map(float, person.head)) for person in first.people]
    assert sum(len(scenes.rows(count)) for count in (1, 2, 3)) == 48


def test_psnr_by_hand() -> None:
    """An autoencoder whose images come back brighter by a tenth of their range."""
    vae: Any = SimpleNamespace(
        encode=lambda pixels: SimpleNamespace(latent_dist=SimpleNamespace(mode=lambda: pixels)),
        decode=lambda latents: SimpleNamespace(sample=latents + 0.2),
    )
    torch.testing.assert_close(reconstruction_psnr(vae, torch.zeros(3, 3, 8, 8)), torch.full((3,), 20.0))


def test_auc_by_hand() -> None:
    # Of the 2 · 3 comparisons of a same pair with a different one, five are right and one is a tie.
    same = torch.tensor([True, True, False, False, False])
    assert Pairs(torch.tensor([0.9, 0.2, 0.2, 0.1, -3e-1]), same).auc == pytest.approx(5.5 / 6)
    with pytest.raises(ValueError, match="more scenes"):
        _ = Pairs(torch.tensor([0.9]), torch.tensor([True])).auc


def test_pairs_differ_in_scene_clothing_and_expression(scenes: HeldOutScenes) -> None:
    def person(color: str, expression: str, clothes: str = "HOODIE") -> Person:
        look = Appearance(clothes, color, "NONE", expression)
        return Person(held_out_identities()[0], look, 0, (0, 0, 9, 9), (0, 0, 9, 9))

    people = (
        (person("RED", ""), person("BLACK", "smiling")),
        (person("RED", "smiling"), person("PINK", "crying"), person("RED", "crying", "GLADIATOR")),
    )
    embedder: Any = SimpleNamespace(embed=lambda images, boxes: torch.arange(5.0)[:, None])
    pairs = held_out_pairs(embedder, replace(scenes, people=people))
    assert pairs.cosine.tolist() == [0 * 3, 0 * 4, 1 * 3, 1 * 4]  # products of the heads' numbers


def test_caption_accuracy_by_hand() -> None:
    texts = torch.eye(40)
    images = texts.clone()
    images[0] = texts[1]  # the first image fits the second caption
    captions = tuple(map(str, range(40)))
    # Two groups of 16 of the first 35, three are left over; five are too few.
    assert caption_accuracy(images, texts, captions, range(35)) == pytest.approx(31 / 32)
    assert caption_accuracy(images, texts, captions, range(35, 40)) is None
    # The same caption does not come twice in a group: [0, 2] and [1, 3].
    twice = ("0", "0", "2", "3")
    assert caption_accuracy(images, texts, twice, range(4), size=2) == 1
    assert caption_accuracy(images, texts, twice, range(2), size=2) is None


def test_flops_and_sizes_by_hand(tmp_path: Path) -> None:
    embedder = IdentityEmbedder(16, 16, 1.1, (8, 8, 8)).half()
    embedder.save_pretrained(tmp_path / "embedder")
    parameters, size = size_rows(tmp_path, "embedder")
    assert parameters.value == sum(p.numel() for p in embedder.parameters())
    assert size.value == sum(file.stat().st_size for file in (tmp_path / "embedder").iterdir())
    convolutions = 2 * (27 * 8 * 64 + 2 * 72 * 8 * 16 + 2 * 72 * 8 * 4 + 8 * 4 * 4)
    assert flops_of(tmp_path, "embedder") == {"one head": convolutions + 2 * 16 * 16}
    HeadDetector(channels=(8, 8, 8, 8), head_channels=8).save_pretrained(tmp_path / "detector")
    assert flops_of(tmp_path, "detector")["one scene"] > 1e5
    assert flops_of(tmp_path, "scheduler") == {}
    assert {*parts_of(tmp_path)} - {*missing_parts(tmp_path)} == {"embedder", "detector"}


def test_a_step_of_a_transformer_is_counted(tmp_path: Path) -> None:
    folder = narrow("sd3", tmp_path / "sd3")
    model = FastComposer.from_pretrained("no/base", architecture=folder, weights="random")
    model.to_pipeline().save_pretrained(tmp_path / "base")
    assert "unet" not in parts_of(tmp_path / "base")
    tokens, width, blocks = 16, 32, 3
    # Queries, keys, values and outputs of the image's 16 patches and the text's 77 tokens, at least.
    least = 2 * blocks * 4 * (tokens + 77) * width * width
    found = flops_of(tmp_path / "base", "transformer")["one step of one sample"]
    assert least < found < 10 * least


def test_each_image_depends_on_its_caption_and_seed_alone(small_base: Path) -> None:
    captions = ["a man on the beach", "a woman", "a man in the snow"]
    together = generate_from_captions(small_base, captions, SAMPLER, seed=3)
    assert together.shape[:2] == (3, 3)
    alone = generate_from_captions(small_base, captions[2:], SAMPLER, seed=5)
    assert torch.allclose(together[2:], alone, atol=1e-4)
    other = generate_from_captions(small_base, captions[2:], SAMPLER, seed=6)
    assert not torch.allclose(alone, other, atol=1e-3)


def test_heads_are_counted_by_number_of_people(
    scenes: HeldOutScenes, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A base that generates two people for every caption: right for two, wrong for one and three."""

    def generate(base: Any, captions: list[str], sampler: Any) -> Tensor:
        assert captions[0] == scenes.rich_captions[scenes.rows(1)[0]]
        return torch.zeros(len(captions), 3, 8, 8)

    detector = SimpleNamespace(
        detect=lambda images: [Detections(torch.zeros(2, 4), torch.ones(2))] * len(images)
    )
    clip = SimpleNamespace(embed_images=lambda images: images, embed_texts=lambda texts: texts)
    monkeypatch.setattr(measures, "generate_from_captions", generate)
    monkeypatch.setattr(measures, "load_pretrained", lambda *args: detector)
    monkeypatch.setattr(measures, "ClipExtractor", lambda *args: clip)
    monkeypatch.setattr(measures, "caption_accuracy", lambda *args: len(args[3]) / 8)
    rows = {row.measure: row for row in measure_generated(tmp_path, scenes, SAMPLER, 4)}
    assert rows["right number, 2 subjects"].value == 1
    assert rows["right number, 1 subject"].value == rows["right number, 3 subjects"].value == 0
    assert rows["right number of subjects"].value == pytest.approx(4 / 12)
    assert rows["right number of subjects"].holds is False
    assert rows["right caption among 16, mean of the three"].value == 0.5
    alone = replace(scenes, people=scenes.people[:1])
    with pytest.raises(ValueError, match="measure on more scenes"):
        measure_generated(tmp_path, alone, SAMPLER)
