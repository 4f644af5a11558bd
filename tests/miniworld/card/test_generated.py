"""What the base draws, counted on images whose heads and captions are known."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from fastcomposer.miniworld.card import generated
from fastcomposer.miniworld.card.quality import HeldOutScenes, render_held_out
from fastcomposer.miniworld.detector import Detections
from fastcomposer.miniworld.scenes import AvatarScenes

SAMPLER = {"num_inference_steps": 2, "guidance_scale": 3.0, "alpha": 0.8}


@pytest.fixture(scope="module")
def scenes() -> HeldOutScenes:
    return render_held_out(AvatarScenes(), 48)


def test_each_image_depends_on_its_caption_and_seed_alone(small_base: Path) -> None:
    captions = ["a man on the beach", "a woman", "a man in the snow"]
    together = generated.draw_captions(small_base, captions, SAMPLER, seed=3)
    assert together.shape[0] == 3 and together.shape[1] == 3
    alone = generated.draw_captions(small_base, captions[2:], SAMPLER, seed=5)
    assert torch.allclose(together[2:], alone, atol=1e-4)
    other = generated.draw_captions(small_base, captions[2:], SAMPLER, seed=6)
    assert not torch.allclose(alone, other, atol=1e-3)


def test_heads_are_counted_by_number_of_people(
    scenes: HeldOutScenes, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A base that draws only two people, whatever is said: right for two, wrong for one and three."""

    def draw(base: Any, captions: list[str], sampler: Any, seed: int = 0) -> Tensor:
        assert captions[0] == scenes.rich_captions[int(scenes.rows(1)[0])]
        return torch.zeros(len(captions), 3, 8, 8)

    def detect(images: Tensor) -> list[Detections]:
        return [Detections(torch.zeros(2, 4), torch.ones(2)) for _ in images]

    monkeypatch.setattr(generated, "draw_captions", draw)
    detector = SimpleNamespace(from_pretrained=lambda *args, **kwargs: SimpleNamespace(detect=detect))
    monkeypatch.setattr(generated, "HeadDetector", detector)
    monkeypatch.setattr(generated, "load_clip", lambda base: (None, None))
    monkeypatch.setattr(generated, "caption_accuracy", lambda *args: len(args[4]) / 8)
    rows = {row.measure: row for row in generated.measure_generated(tmp_path, scenes, SAMPLER, 4)}
    assert rows["right number, 2 subjects"].value == 1
    assert rows["right number, 1 subject"].value == rows["right number, 3 subjects"].value == 0
    assert rows["right number of subjects"].value == pytest.approx(4 / 12)
    assert rows["right number of subjects"].holds is False
    assert rows["right caption among 16, mean of the three"].value == 0.5


def test_scenes_of_every_number_are_needed(scenes: HeldOutScenes, tmp_path: Path) -> None:
    one = int(scenes.rows(1)[0])
    alone = HeldOutScenes(scenes.images[[one]], ("a",), (scenes.rich_captions[one],), (scenes.people[one],))
    with pytest.raises(ValueError, match="measure on more scenes"):
        generated.measure_generated(tmp_path, alone, SAMPLER)
