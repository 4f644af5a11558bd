"""The metrics of real faces, from the configuration of the paper, on photographs that packages ship."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from PIL import Image
from torchvision.transforms.functional import to_tensor
from toy_evaluation import make_toy

from fastcomposer.cli import evaluate
from fastcomposer.cli.common import CONFIG_FOLDER
from fastcomposer.evaluation.results import read_results
from fastcomposer.metrics.identity import IdentityPreservation


def test_the_face_of_the_astronaut_is_found_and_recognized(
    paper_metrics: list[str], astronaut: Image.Image, admiral: Image.Image
) -> None:
    with initialize_config_dir(str(CONFIG_FOLDER), version_base="1.3"):
        config = compose("evaluate", paper_metrics)
    faces = instantiate(config.metrics.faces)
    (found,) = faces(to_tensor(astronaut)[None])
    assert len(found) == 1
    assert found.scores.item() > 0.99
    left, top, right, bottom = found.boxes[0].tolist()
    assert 160 < left < 190 and 50 < top < 90 and 250 < right < 290 and 160 < bottom < 200

    together = Image.new("RGB", (1024, 512))
    together.paste(admiral, (0, 0))
    together.paste(astronaut, (512, 0))
    references = torch.cat([faces(to_tensor(person)[None])[0].embeddings for person in (astronaut, admiral)])
    metric = IdentityPreservation("published", faces.blank())
    metric.update(faces(to_tensor(together)[None]), [references])
    assert metric.compute()["identity"].item() > 0.99  # the same pixels in another place
    assert metric.compute()["detection_rate"].item() == 1

    image_text = instantiate(config.metrics.image_text)
    embedded = image_text.embed_images(to_tensor(astronaut)[None]) @ image_text.embed_texts(["a woman"]).T
    assert -1 <= embedded.item() <= 1


def test_a_benchmark_is_scored_with_real_faces(
    paper_metrics: list[str],
    small_base: Path,
    astronaut: Image.Image,
    admiral: Image.Image,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    toy = make_toy(small_base, tmp_path / "toy")
    for file in toy.references.rglob("*.png"):
        (admiral if "00_man" in str(file) else astronaut).resize((256, 256)).save(file)
    monkeypatch.chdir(tmp_path)
    options = ["alphas=[0.5]", "benchmark.multi=null", "sampler.num_inference_steps=1", "output=scores"]
    options.append("scoring.reference_size=256")  # at the model's own 32 nobody is found
    monkeypatch.setattr(sys, "argv", ["fastcomposer", *toy.arguments(*paper_metrics, *options)])
    evaluate.main()
    rows = read_results(tmp_path / "scores" / "results.json")[0]
    assert {row.method for row in rows} == {"text_only", "fastcomposer"}
    for row in rows:
        assert row.images == 12
        assert row.identity_preservation.mean == 0  # noise shows nobody
        assert -1 <= row.prompt_consistency.mean <= 1
