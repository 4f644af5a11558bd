"""The metrics of real faces, from the configuration of the paper, on photographs that packages ship."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from facenet_pytorch import MTCNN
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from PIL import Image
from torchvision.ops import box_iou
from torchvision.transforms.functional import to_tensor
from toy_evaluation import make_toy

from fastcomposer.cli import evaluate
from fastcomposer.cli.common import CONFIG_FOLDER
from fastcomposer.evaluation.benchmark import Subject
from fastcomposer.evaluation.results import read_results
from fastcomposer.evaluation.scoring import embed_references, face_scores, jpeg_pixels, read_reference
from fastcomposer.metrics.faces import FaceNetFaces
from fastcomposer.metrics.identity import identity_score


@pytest.fixture(scope="module")
def real_faces(paper_metrics: list[str]) -> FaceNetFaces:
    """MTCNN with its own weights, and a random embedder."""
    with initialize_config_dir(str(CONFIG_FOLDER), version_base="1.3"):
        faces: FaceNetFaces = instantiate(compose("evaluate", paper_metrics).metrics.faces)
    return faces


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


def published_identity(file: Path, references: list[Path], faces: Any) -> float:
    """Identity as the published scorer computes it: files, MTCNN's crops, greedy matching, written anew."""
    with Image.open(file) as image:
        found = faces.detector(image.convert("RGB"))
    known = []
    for reference in references:
        with Image.open(reference) as image:
            known.append(faces.detector(image.convert("RGB"))[:1])
    if found is None:
        return 0.0
    missing = torch.zeros(max(len(references) - len(found), 0), 3, 160, 160)
    crops = torch.cat([found[: len(references)], missing])
    with torch.no_grad():
        similarity = torch.stack([faces.embedder(crop[None])[0] for crop in crops])
        similarity = similarity @ torch.cat([faces.embedder(crop) for crop in known]).T
    matched = []
    for _ in references:
        row, column = divmod(int(similarity.argmax()), len(references))
        matched.append(float(similarity[row, column]))
        similarity[row], similarity[:, column] = -1, -1
    return max(min(matched), 0.0)


@pytest.mark.parametrize("people", [1, 2])
@pytest.mark.parametrize("count", [0, 1, 2, 3, 4])
def test_identity_is_the_published_scorer_s(
    real_faces: FaceNetFaces,
    count: int,
    people: int,
    astronaut: Image.Image,
    admiral: Image.Image,
    tmp_path: Path,
) -> None:
    portraits = [
        person.resize((side, side))
        for person, side in zip([astronaut, admiral] * 2, (250, 220, 200, 180), strict=True)
    ]
    sheet = Image.new("RGB", (512, 512), (90, 120, 90))
    for number, portrait in enumerate(portraits[:count]):
        sheet.paste(portrait, (number % 2 * 256, number // 2 * 256))
    sheet.save(tmp_path / "published.jpg")  # quality 75, by default
    files = [tmp_path / "000001.jpg", tmp_path / "000002.jpg"][:people]
    for person, file in zip((admiral, astronaut), files, strict=False):
        person.resize((178, 178)).save(file)
    expected = published_identity(tmp_path / "published.jpg", files, real_faces)

    known = [embed_references(Subject(file.stem, "woman", (file,)), real_faces, None) for file in files]
    (found,) = real_faces(jpeg_pixels(to_tensor(sheet), 75)[None])
    assert len(found) == count
    scores = face_scores(found, known, real_faces.blank())
    assert scores["identity_published"] == pytest.approx(expected, abs=1e-6)
    assert (expected > 0) == (count > 0)


def celeba_sized(number: int, person: Image.Image) -> Image.Image:
    """A photo of 178 x 218 pixels, as CelebA's aligned files are: another crop for each number."""
    left, top, zoom = 20 + 7 * number, 4 * number, 1 + 0.05 * number
    return person.crop((left, top, left + int(300 * zoom), top + int(367 * zoom))).resize((178, 218))


@pytest.mark.parametrize("number", range(15))
def test_faces_of_celeba_sized_files_are_found_in_their_own_pixels(
    real_faces: FaceNetFaces, number: int, astronaut: Image.Image, admiral: Image.Image, tmp_path: Path
) -> None:
    file = tmp_path / "1.jpg"
    celeba_sized(number // 2, (astronaut, admiral)[number % 2]).save(file, quality=95)
    with Image.open(file) as photo:
        expected, _ = MTCNN(image_size=160, margin=0, keep_all=True).detect(photo.convert("RGB"))
    with initialize_config_dir(str(CONFIG_FOLDER), version_base="1.3"):
        config = compose("evaluate", ["model=sd15", "metrics=paper"])
    (found,) = real_faces(read_reference(file, config.scoring.reference_size)[None])
    assert len(found) == len(expected) > 0
    overlap = box_iou(found.boxes, torch.tensor(expected.astype("float32"))).diagonal()
    assert overlap.min() == 1
    (resized,) = real_faces(read_reference(file, 512)[None])
    assert not len(resized) or box_iou(resized.boxes[:1] * 218 / 512, found.boxes[:1]).item() < 1
