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
from fastcomposer.evaluation.benchmark import Subject
from fastcomposer.evaluation.results import read_results
from fastcomposer.evaluation.scoring import embed_references
from fastcomposer.metrics.identity import identity_score


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
    score = identity_score(faces(to_tensor(together)[None])[0], references, "published", faces.blank())
    assert score.value > 0.99  # the same pixels at another position
    assert score.detected == 2

    image_text = instantiate(config.metrics.image_text)
    embedded = image_text.embed_images(to_tensor(astronaut)[None]) @ image_text.embed_texts(["a woman"]).T
    assert -1 <= embedded.item() <= 1


@pytest.mark.parametrize("model", ["mini", "sd15"])
def test_faces_of_references_are_found_in_the_photo_s_own_pixels(model: str) -> None:
    """With the metrics of the paper; those of the mini world see scenes of one size alone."""
    samples = ["callbacks=scored_samples", "callbacks.samples.prompts=[]", "callbacks.samples.references=[]"]
    with initialize_config_dir(str(CONFIG_FOLDER), version_base="1.3"):
        for metrics, size in (("mini", {"mini": 64, "sd15": 512}[model]), ("paper", None)):
            chosen = [f"model={model}", f"metrics={metrics}"]
            assert compose("evaluate", chosen).scoring.reference_size == size
            trained = compose("train", [*chosen, *samples])
            assert trained.callbacks.samples.scores.reference_size == size


def test_a_reference_s_face_is_the_published_scorer_s(
    paper_metrics: list[str], astronaut: Image.Image, tmp_path: Path
) -> None:
    file = tmp_path / "000001.jpg"
    astronaut.crop((60, 0, 360, 240)).resize((225, 180)).save(file)  # as small as CelebA's aligned files
    with initialize_config_dir(str(CONFIG_FOLDER), version_base="1.3"):
        config = compose("evaluate", ["model=sd15", *paper_metrics])
    faces = instantiate(config.metrics.faces)
    known = embed_references(Subject("000001", "woman", (file,)), faces, config.scoring.reference_size)
    with Image.open(file) as photo, torch.no_grad():
        expected = faces.embedder(faces.detector(photo.convert("RGB"))[:1])[0]
    assert (known.reference - expected).abs().max() < 1e-6
    resized = embed_references(Subject("000001", "woman", (file,)), faces, 512)
    assert (resized.reference - expected).abs().max() > 1e-4  # small, for the embedder is untrained


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
    monkeypatch.setattr(sys, "argv", ["fastcomposer", *toy.arguments(*paper_metrics, *options)])
    evaluate.main()
    rows = read_results(tmp_path / "scores" / "results.json").rows
    assert {row.method for row in rows} == {"text_only", "fastcomposer"}
    for row in rows:
        assert row.images == 12
        assert row.identity_preservation.mean == 0  # noise shows nobody
        assert -1 <= row.prompt_consistency.mean <= 1
