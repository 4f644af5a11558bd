"""Measurements of the embedded base, on models and pairs whose figures are known."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from fastcomposer.miniworld.avatars import Appearance
from fastcomposer.miniworld.card.base_parts import BaseReport, count_flops, flops_of, size_rows
from fastcomposer.miniworld.card.captions import caption_accuracy, caption_groups
from fastcomposer.miniworld.card.quality import (
    DetectionRates,
    HeldOutScenes,
    Row,
    comparable,
    detection_rates,
    reconstruction_psnr,
    render_held_out,
    verification,
    verify,
)
from fastcomposer.miniworld.card.writer import (
    Training,
    base_card,
    describe_machine,
    read_lengths,
    write_lengths,
)
from fastcomposer.miniworld.detector import Detections, HeadDetector
from fastcomposer.miniworld.embedder import IdentityEmbedder
from fastcomposer.miniworld.scenes import AvatarScenes, Person, held_out_identities
from fastcomposer.models.conditioning import ReferenceNormalizer

MINI = Path(__file__).parents[3] / "data" / "mini"


@pytest.fixture(scope="module")
def scenes() -> HeldOutScenes:
    return render_held_out(AvatarScenes(), 24)


def test_held_out_scenes_are_the_first_of_the_split(scenes: HeldOutScenes) -> None:
    first = AvatarScenes().scene("test", 0)
    assert torch.equal((scenes.images[0] * 255).round().byte(), torch.tensor(first.image).permute(2, 0, 1))
    assert scenes.captions[0] == first.caption
    assert scenes.heads[0].tolist() == [list(map(float, person.head)) for person in first.people]
    assert sum(len(scenes.rows(count)) for count in (1, 2, 3)) == 24
    known = {identity.key for identity in held_out_identities()}
    assert {person.identity.key for scene in scenes.people for person in scene} <= known


class Shifted(nn.Module):
    """An autoencoder whose images come back brighter."""

    def encode(self, pixels: Tensor) -> Any:
        return SimpleNamespace(latent_dist=SimpleNamespace(mode=lambda: pixels))

    def decode(self, latents: Tensor) -> Any:
        return SimpleNamespace(sample=latents + 0.2)


def test_psnr_by_hand() -> None:
    images = torch.full((3, 3, 8, 8), 0.5)
    assert reconstruction_psnr(Shifted(), images) == pytest.approx(20.0)  # type: ignore[arg-type]


class Oracle(nn.Module):
    """A detector that says what it was told."""

    def __init__(self, boxes: list[Tensor]) -> None:
        super().__init__()
        self.boxes = boxes

    def detect(self, images: Tensor) -> list[Detections]:
        return [Detections(box, torch.linspace(0.9, 0.5, len(box))) for box in self.boxes]


def test_detection_rates_with_none_one_and_too_many() -> None:
    heads = [torch.tensor([[0.0, 0, 10, 10], [20, 0, 30, 10]]), torch.tensor([[5.0, 5, 25, 25]])]
    images = torch.zeros(2, 3, 32, 32)
    nothing = [torch.zeros(0, 4)] * 2
    one = [heads[0][:1], nothing[0]]
    many = [torch.cat([heads[0], heads[0] + 1]), heads[1].repeat(3, 1)]
    rates = [detection_rates(Oracle(found), images, heads) for found in (nothing, one, many)]  # type: ignore[arg-type]
    assert rates[0] == DetectionRates(heads=3, detections=0, matches=0)
    assert (rates[0].recall, rates[0].precision) == (0, 1)
    assert (rates[1].recall, rates[1].precision) == (pytest.approx(1 / 3), 1)
    assert (rates[2].recall, rates[2].precision) == (1, pytest.approx(3 / 7))


def test_auc_by_hand() -> None:
    # Of the 2 · 3 comparisons of a same pair with a different one, five are right and one is a tie.
    found = verify(torch.tensor([0.9, 0.2, 0.2, 0.1, -3e-1]), torch.tensor([True, True, False, False, False]))
    assert found.auc == pytest.approx(5.5 / 6)
    assert found.same == pytest.approx(0.55)
    assert found.different == pytest.approx(0.0, abs=1e-6)
    with pytest.raises(ValueError, match="more scenes"):
        verify(torch.tensor([0.9]), torch.tensor([True]))


def person(clothes_color: str, expression: str, clothes: str = "HOODIE") -> Person:
    look = Appearance(clothes, clothes_color, "NONE", expression)
    return Person(held_out_identities()[0], look, 0, (0, 0, 9, 9), (0, 0, 9, 9))


def test_pairs_differ_in_scene_clothing_and_expression() -> None:
    scenes = [
        [person("RED", ""), person("BLACK", "smiling")],
        [person("RED", "smiling"), person("PINK", "crying"), person("RED", "crying", "GLADIATOR")],
    ]
    assert comparable(scenes).triu().nonzero().tolist() == [[0, 3], [0, 4], [1, 3], [1, 4]]


class Named(nn.Module):
    """An embedder that knows everybody whose head it sees whole."""

    def __init__(self, names: list[int]) -> None:
        super().__init__()
        self.vectors = torch.eye(15)[names].split(64)
        self.images: list[Tensor] = []

    def embed(self, images: Tensor, boxes: Tensor) -> Tensor:
        self.images.append(images)
        return self.vectors[len(self.images) - 1]


def test_verification_of_somebody_who_knows(scenes: HeldOutScenes) -> None:
    keys = [identity.key for identity in held_out_identities()]
    names = [keys.index(person.identity.key) for scene in scenes.people for person in scene]
    embedder = Named(names)
    found = verification(embedder, scenes)  # type: ignore[arg-type]
    assert (found.auc, found.same, found.different) == (1, 1, 0)
    hiding = Named(names)
    verification(hiding, scenes, hidden=0.3)  # type: ignore[arg-type]
    changed = (torch.cat(hiding.images) != torch.cat(embedder.images)).any(1).sum((1, 2))
    boxes = torch.cat(scenes.heads)
    area = (boxes[:, 2:] - boxes[:, :2]).prod(1)
    assert (changed >= 0.29 * area).all()  # a pixel may have had the rectangle's colour


def test_captions_come_once_in_a_group() -> None:
    captions = ["a", "a", "b", "c", "b", "d"]
    assert caption_groups(captions, range(6), size=2) == [[0, 2], [1, 3], [4, 5]]
    assert caption_groups(captions, range(6), size=4) == [[0, 2, 3, 5]]
    assert caption_groups(["a", "a"], range(2), size=2) == []


class Knowing(nn.Module):
    """A CLIP that reads numbers from images and captions, the first wrongly."""

    def text_model(self, input_ids: Tensor) -> Any:
        return SimpleNamespace(pooler_output=torch.eye(40)[input_ids])

    def vision_model(self, pixel_values: Tensor) -> Any:
        normalize = ReferenceNormalizer()
        numbers = (100 * (pixel_values * normalize.std + normalize.mean)).mean((1, 2, 3)).round().long()
        numbers[numbers == 0] = 1
        return SimpleNamespace(pooler_output=torch.eye(40)[numbers])

    text_projection = visual_projection = staticmethod(lambda features: features)


def test_caption_accuracy_by_hand() -> None:
    images = (torch.arange(40) / 100)[:, None, None, None].expand(40, 3, 8, 8)
    captions = tuple(map(str, range(40)))

    def tokenizer(texts: list[str], **settings: Any) -> Any:
        return SimpleNamespace(input_ids=torch.tensor([int(text) for text in texts]))

    clip: Any = Knowing()
    # Two groups of 16 of the first 35, three are left over; five are too few.
    assert caption_accuracy(clip, tokenizer, images, captions, range(35)) == pytest.approx(31 / 32)
    assert caption_accuracy(clip, tokenizer, images, captions, range(35, 40)) is None


def test_a_row_holds_from_its_bound_on() -> None:
    assert Row("detector", "recall", 0.97, 0.97).holds is True
    assert Row("detector", "recall", 0.9699, 0.97).holds is False
    assert Row("vae", "PSNR", 26.0).as_dict() == {
        "part": "vae",
        "measure": "PSNR",
        "value": 26.0,
        "at_least": None,
        "holds": None,
    }


def test_flops_and_sizes_by_hand(tmp_path: Path) -> None:
    layer = nn.Conv2d(3, 8, 3, padding=1, bias=False)
    assert count_flops(lambda: layer(torch.zeros(1, 3, 4, 4))) == 2 * 3 * 8 * 9 * 16
    IdentityEmbedder(16, 16, 1.1, (8, 8, 8)).half().save_pretrained(tmp_path / "embedder")
    parameters, size = size_rows(tmp_path, "embedder")
    assert parameters.value == sum(p.numel() for p in IdentityEmbedder(16, 16, 1.1, (8, 8, 8)).parameters())
    assert size.value == sum(file.stat().st_size for file in (tmp_path / "embedder").iterdir())
    convolutions = 2 * (27 * 8 * 64 + 2 * 72 * 8 * 16 + 2 * 72 * 8 * 4 + 8 * 4 * 4)
    assert flops_of(tmp_path, "embedder") == {"one head": convolutions + 2 * 16 * 16}
    HeadDetector(channels=(8, 8, 8, 8), head_channels=8).save_pretrained(tmp_path / "detector")
    assert flops_of(tmp_path, "detector")["one scene"] > 1e5
    assert flops_of(tmp_path, "scheduler") == {}


def test_flops_of_an_ordinary_base(tiny_base: Path) -> None:
    for part, kinds in {"vae": 2, "text_encoder": 1, "image_encoder": 1, "unet": 1}.items():
        found = flops_of(tiny_base, part)
        assert len(found) == kinds
        assert min(found.values()) > 1000


def test_the_card_says_what_was_measured(tmp_path: Path) -> None:
    rows = (
        Row("detector", "recall at IoU 0.5, 1 subject", 0.9912, 0.97),
        Row("detector", "parameters", 192757.0),
        Row("detector", "size, bytes", 387763.0),
        Row("detector", "one scene, MFLOP", 22.09),
    )
    length = Training("detector", 531, 1.0, 42, "an abacus")
    card = base_card(BaseReport(rows, ("unet",)), [length], 100, ["a_man_smiling_sheet.png"])
    assert "| detector | recall at IoU 0.5, 1 subject | 0.9912 | 0.97 | yes |" in card
    assert "| detector | 192,757 | 387,763 |" in card
    assert "| detector | one scene | 22.1 |" in card
    assert "| detector | 531 | 1 | 42 | an abacus |" in card
    assert "![a man smiling](samples/a_man_smiling_sheet.png)" in card
    assert "Not there yet: unet." in card
    assert "On 100 scenes" in card
    assert "Apache-2.0" in card
    for heading in ("Intended use", "Limits", "Consent and misuse"):
        assert f"\n## {heading}\n" in card
    # All that the command does not measure stands in the card that is there.
    committed = (MINI / "README.md").read_text()
    told, measured = card.partition("## Parts")[0], "## Quality"
    assert committed.startswith(told)
    assert committed.partition(measured)[2].endswith(card.partition(measured)[2].rpartition("|\n")[2])


def test_lengths_outlive_the_runs(tmp_path: Path) -> None:
    runs, base = tmp_path / "runs", tmp_path / "base"
    base.mkdir()
    (base / "training.json").write_text(json.dumps([{"method": "vae", "steps": 7, "minutes": 2.0}]))
    folder = runs / "mini_base_detector"
    (folder / "checkpoints").mkdir(parents=True)
    (folder / ".hydra").mkdir()
    (folder / ".hydra" / "config.yaml").write_text("seed: 5\n")
    state = {"length": {"steps": 9, "minutes": 1.5}}
    torch.save(state, folder / "checkpoints" / "last.ckpt")
    expected = [Training("vae", 7, 2.0), Training("detector", 9, 1.5, 5, describe_machine())]
    assert read_lengths(base, runs) == expected
    write_lengths(base, expected)
    assert read_lengths(base, tmp_path / "gone") == expected


def test_the_checkpoints_know_their_own_length(tmp_path: Path) -> None:
    entry = {"method": "fastcomposer", "steps": 7, "minutes": 2.0, "seed": 5, "machine": "an abacus"}
    (tmp_path / "training.json").write_text(json.dumps([entry]))
    for folder in (tmp_path, tmp_path / "without_localization"):
        folder.mkdir(exist_ok=True)
        metadata = {"steps": "15589", "minutes": "168.61", "fusion": "{}"}
        save_file({"x": torch.zeros(1)}, folder / "fastcomposer.safetensors", metadata)
    assert read_lengths(tmp_path, tmp_path / "gone") == [
        Training("fastcomposer", 15589, 168.6, 5, "an abacus"),
        Training("without_localization", 15589, 168.6),
    ]


def test_the_committed_card_has_the_lengths_of_the_committed_weights() -> None:
    lengths = read_lengths(MINI, MINI / "no runs")
    assert [asdict(length) for length in lengths] == json.loads((MINI / "training.json").read_text())
    card = (MINI / "README.md").read_text()
    for length in lengths:
        assert f"| {length.method} | {length.steps:,} | " in card
