"""Scores are those of the metrics, part by part, whatever interrupts."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from toy_evaluation import SAMPLER, Toy, predict

from fastcomposer.evaluation.benchmark import Benchmark, Case, Subject, Subset
from fastcomposer.evaluation.generation import GenerationStage, PlannedRun, open_runs, plan_runs
from fastcomposer.evaluation.methods import FastComposerMethod, TextOnlyMethod
from fastcomposer.evaluation.pipelines import load_trained
from fastcomposer.evaluation.results import SCORES, Costs, row_from_scores
from fastcomposer.evaluation.scoring import (
    KnownSubject,
    ScoringStage,
    embed_references,
    embed_subjects,
    face_scores,
    read_reference,
)
from fastcomposer.evaluation.statistics import Estimate
from fastcomposer.evaluation.store import read_table
from fastcomposer.evaluation.summary import result_rows
from fastcomposer.metrics.faces import Faces
from fastcomposer.metrics.multi_subject import SUBJECT_METRICS, gallery_threshold
from fastcomposer.utils.settings import digest

EYE = torch.eye(4)


def faces(*embeddings: Tensor) -> Faces:
    """Faces of falling size."""
    count = len(embeddings)
    sizes = torch.arange(count, 0, -1).float()[:, None] * 10
    boxes = torch.cat([torch.zeros(count, 2), sizes.expand(-1, 2)], dim=1)
    return Faces(boxes, torch.ones(count), torch.stack(embeddings) if count else torch.zeros(0, 4))


class MeanFaces:
    """One face in every image, whose embedding is the mean colour; none in black ones."""

    embed_dim = 4

    def __init__(self, tint: float = 0.0) -> None:
        self.tint = tint

    def __call__(self, images: Tensor) -> list[Faces]:
        return [faces(*([self.embed(image)] if image.max() > 0 else [])) for image in images]

    def embed(self, image: Tensor) -> Tensor:
        vector = torch.cat([image.mean((1, 2)), torch.tensor([0.1 + self.tint])])
        return vector / vector.norm()

    def blank(self) -> Tensor:
        return EYE[3]


class MeanImageText:
    """Images are their mean colour, texts their length."""

    def embed_images(self, images: Tensor) -> Tensor:
        return torch.nn.functional.normalize(images.mean((2, 3)), dim=-1)

    def embed_texts(self, texts: Sequence[str]) -> Tensor:
        lengths = torch.tensor([[1.0, len(text) / 10, 1.0] for text in texts])
        return torch.nn.functional.normalize(lengths, dim=-1)


class TestFaceScores:
    def test_one_subject(self) -> None:
        ann = KnownSubject(EYE[0], torch.stack([0.6 * EYE[0] + 0.8 * EYE[1]]))
        scores = face_scores(faces(0.8 * EYE[0] + 0.6 * EYE[2], EYE[1]), [ann], EYE[3])
        assert scores["identity"] == pytest.approx(0.8)
        assert scores["identity_published"] == pytest.approx(0.8)
        assert scores["detected"] == 2
        assert scores["copy_paste"] == pytest.approx(0.8 - 0.48)
        angles = (math.acos(0.48) - math.acos(0.8)) / math.acos(0.6)
        assert scores["copy_paste_ratio"] == pytest.approx(angles)
        assert (scores["confusion"], scores["head_count"]) == (1, 0)

    def test_two_subjects_of_whom_one_has_other_images(self) -> None:
        ann, bob = KnownSubject(EYE[0], EYE[2:3]), KnownSubject(EYE[1], torch.zeros(0, 4))
        scores = face_scores(faces(EYE[1], -EYE[0]), [ann, bob], EYE[3])
        assert scores["identity"] == pytest.approx(-1)
        assert scores["identity_published"] == 0
        assert scores["copy_paste"] == pytest.approx(-1)

    def test_nobody(self) -> None:
        scores = face_scores(faces(), [KnownSubject(EYE[0], EYE[1:2])], EYE[3])
        nothing = dict.fromkeys(SUBJECT_METRICS) | {"head_count": 0, "copy_paste": None}
        assert scores == {"identity": 0, "identity_published": 0, "detected": 0} | nothing


class TestReferences:
    def test_transparent_images_are_on_light_grey(self, tmp_path: Path) -> None:
        pixels = np.zeros((4, 8, 4), np.uint8)
        pixels[:, :4] = (255, 0, 0, 255)
        Image.fromarray(pixels).save(tmp_path / "x.png")
        whole = read_reference(tmp_path / "x.png", None)
        assert whole.shape == (3, 4, 8)
        assert whole[:, 0, 0].tolist() == [1, 0, 0]
        assert whole[:, 0, 7].tolist() == pytest.approx([238 / 255] * 3)
        square = read_reference(tmp_path / "x.png", 16)
        assert square.shape == (3, 16, 16) and float(square[:, 0].max()) == 0  # padded above

    def test_the_largest_face_counts_and_images_without_are_left_out(self, tmp_path: Path) -> None:
        colors = ((200, 0, 0), (0, 0, 0), (0, 200, 0), (0, 0, 200))
        files = []
        for number, color in enumerate((*[(9, 9, 9)] * 4, *colors)):
            files.append(tmp_path / f"{number}.png")
            Image.new("RGB", (8, 8), color).save(files[-1])
        subject = Subject("ann", "woman", (files[4], *files[:4], *files[5:]))
        known = embed_references(subject, MeanFaces(), None)
        assert known.reference.argmax() == 0
        assert known.others.argmax(1).tolist() == [1, 2]  # the black one shows nobody
        with pytest.raises(ValueError, match=r"5\.png: no face is found in the reference of subject bob"):
            embed_references(Subject("bob", "man", (files[5],)), MeanFaces(), None)


class ColumnFaces(MeanFaces):
    """A face in every four columns that are not black, larger to the left."""

    def __call__(self, images: Tensor) -> list[Faces]:
        found = [[part for part in image.split(4, dim=2) if part.max() > 0] for image in images]
        return [faces(*map(self.embed, parts)) for parts in found]


def columns(file: Path, *colors: tuple[int, int, int]) -> Path:
    pixels = np.repeat(np.array(colors, np.uint8)[None], 4, axis=1).repeat(4, axis=0)
    Image.fromarray(pixels).save(file)
    return file


@pytest.mark.parametrize("strangers", [[], [(90, 90, 90)]])
def test_faces_of_a_target_go_to_its_subjects(strangers: list[Any], tmp_path: Path) -> None:
    colors = {"ann": (200, 0, 0), "bob": (0, 200, 0), "cay": (0, 0, 200)}
    people = tuple(Subject(n, "one", (columns(tmp_path / f"{n}.png", c),)) for n, c in colors.items())
    others = [(40, 20, 200), (200, 40, 20), (20, 200, 40)]  # cay, ann and bob as they are in the target
    target = columns(tmp_path / "target.png", *strangers, *others)
    case = Case("c", "multiid_3", "v200_m", "", "", tuple(colors), 0, target)
    extractor = ColumnFaces()
    known = embed_subjects(Benchmark("multiid_3", people, (case,)), extractor, None)
    assert {name: int(one.others.argmax(1)) for name, one in known.items()} == {"ann": 0, "bob": 1, "cay": 2}
    assert gallery_threshold([torch.cat([s.reference[None], s.others]) for s in known.values()])
    copied = extractor(read_reference(columns(tmp_path / "copy.png", *colors.values()), None)[None])
    scores = face_scores(copied[0], list(known.values()), EYE[3], 0.9)
    assert scores["copy_paste_ratio"] == pytest.approx(1, abs=1e-3)
    assert (scores["coverage"], scores["head_count"]) == (1, 1)
    again = extractor(read_reference(target, None)[None])[0]
    assert face_scores(again, list(known.values()), EYE[3])["head_count"] == float(not strangers)


@pytest.fixture
def drawn(toy: Toy, tmp_path: Path) -> tuple[Path, list[PlannedRun]]:
    """Images of two runs of ten cases."""
    pipeline = load_trained(str(toy.base), checkpoint=str(toy.checkpoint))
    runs = []
    for method in (FastComposerMethod(lambda: pipeline, SAMPLER), TextOnlyMethod(lambda: pipeline, SAMPLER)):
        few = toy.benchmarks(Subset(num_subjects=2), Subset(num_pairs=1, images_per_prompt=1))
        planned = plan_runs(method, few, tmp_path)
        open_runs(planned, tmp_path / "concepts")
        predict(GenerationStage(method, planned, tmp_path / "concepts"))
        runs += planned
    return tmp_path, runs


def score(runs: list[PlannedRun], **changes: Any) -> int:
    """Score with four images a part; returns how many were scored."""
    given = {"faces": MeanFaces(), "image_text": MeanImageText(), "reference_size": 32, "batch_size": 4}
    return predict(ScoringStage(runs=runs, **{**given, **changes})).num_images()


def test_scores_are_those_of_the_images(drawn: tuple[Path, list[PlannedRun]]) -> None:
    output, runs = drawn
    assert score(runs) == 2 * (8 + 2)
    extractor = MeanFaces()
    for run in runs:
        table = read_table(run.store.scores_file)
        assert table is not None
        assert set(SCORES.names) < set(table.column_names)
        lines = table.to_pylist()
        assert [line["case"] for line in lines] == sorted(case.id for case in run.benchmark.cases)
        for line in lines:
            case = next(case for case in run.benchmark.cases if case.id == line["case"])
            pixels, metadata = run.store.read_image(case)
            assert line["image"] == f"images/{case.id}.png"
            assert (line["seconds"], line["unet_calls"]) == (metadata.seconds, metadata.unet_calls)
            known = {s.id: embed_references(s, extractor, 32) for s in run.benchmark.subjects}
            threshold = gallery_threshold([torch.cat([s.reference[None], s.others]) for s in known.values()])
            assert threshold is not None
            expected = face_scores(
                extractor(pixels[None])[0], [known[name] for name in case.subjects], EYE[3], threshold
            )
            for name, value in expected.items():
                assert line[name] == pytest.approx(value, abs=1e-5)
            text = MeanImageText().embed_texts([case.text])[0]
            assert line["prompt_consistency"] == pytest.approx(
                float(MeanImageText().embed_images(pixels[None])[0] @ text), abs=1e-6
            )
            assert line["copy_paste"] is not None
    rows = result_rows(output)
    assert [(row.benchmark, row.method) for row in rows] == [
        (name, method)
        for name in ("single_subject", "multi_subject")
        for method in ("fastcomposer", "text_only")
    ]
    assert rows[2].coverage is not None and rows[2].head_count == Estimate(0, (0, 0))
    # Two people share each prompt's noise only where their class word is the same: here it never is.
    assert [row.unet_calls for row in rows] == [32, 32, 8, 8]


def test_images_may_be_scored_as_jpeg(drawn: tuple[Path, list[PlannedRun]], tmp_path: Path) -> None:
    output, runs = drawn
    run = runs[0]
    assert score(runs[:1]) == 8
    plain = read_table(run.store.scores_file)
    assert score(runs[:1], jpeg_quality=75) == 8  # scored anew, not taken over
    assert score(runs[:1], jpeg_quality=75) == 0
    table = read_table(run.store.scores_file)
    assert table is not None and plain is not None
    assert table["identity"].to_pylist() != plain["identity"].to_pylist()
    text = MeanImageText().embed_texts([case.text for case in run.benchmark.cases[:1]])[0]
    case = run.benchmark.cases[0]
    with Image.open(run.store.image_file(case)) as image:
        image.convert("RGB").save(tmp_path / "saved.jpg")  # quality 75, by default
    with Image.open(tmp_path / "saved.jpg") as image:
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255
    (line,) = (line for line in table.to_pylist() if line["case"] == case.id)
    assert line["prompt_consistency"] == pytest.approx(
        float(MeanImageText().embed_images(pixels[None])[0] @ text), abs=1e-6
    )
    stage = ScoringStage(MeanFaces(), MeanImageText(), reference_size=32)
    with pytest.raises(ValueError, match=r"scoring\.jpeg_quality: 75, not None"):
        stage.check_others(output, set())


def _truncate(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-20])


@pytest.mark.parametrize("damage", [_truncate, os.unlink])
def test_parts_that_are_done_stay(
    damage: Callable[[Path], None], drawn: tuple[Path, list[PlannedRun]]
) -> None:
    _, runs = drawn

    class Interrupted(ScoringStage):
        def predict_step(self, batch: int, batch_idx: int) -> int:
            if batch_idx == 4:
                raise KeyboardInterrupt
            return super().predict_step(batch, batch_idx)

    with pytest.raises(SystemExit):
        predict(Interrupted(MeanFaces(), MeanImageText(), runs, 32, 4))
    assert not runs[0].store.scores_file.exists()
    parts = [runs[0].store.part_file(number) for number in range(2)]
    times = [part.stat().st_mtime_ns for part in parts]
    damage(parts[1])
    # Parts of 4, 4 and 2 images a method; three were whole.
    assert score(runs) == 20 - (4 + 2 + 4)
    assert times[0] != 0 and not parts[0].exists()
    before = [read_table(run.store.scores_file) for run in runs]
    assert score(runs) == 0
    damage(runs[0].store.scores_file)
    assert score(runs) == 8
    assert [read_table(run.store.scores_file) for run in runs] == before


def test_scores_of_two_scorers_do_not_mix(drawn: tuple[Path, list[PlannedRun]]) -> None:
    output, runs = drawn
    ours, text = (run.store.folder for run in (runs[0], runs[2]))
    assert score(runs[:1]) == 8
    (row,) = result_rows(output)
    other = ScoringStage(MeanFaces(tint=0.1), MeanImageText(), reference_size=16)
    with pytest.raises(ValueError, match=r"metrics\.faces\.tint: 0\.0, not 0\.1") as refused:
        other.check_others(output, {text})
    for said in (str(ours), "metrics.reference_size: 32, not 16", "output=<other>", "scores.parquet"):
        assert said in str(refused.value)
    other.check_others(output, {ours, text})  # all that is there is scored anew
    same = ScoringStage(MeanFaces(), MeanImageText(), reference_size=32)
    same.check_others(output, {text})
    with pytest.raises(ValueError, match=r"scoring\.threshold: None, not 0\.5"):
        ScoringStage(MeanFaces(), MeanImageText(), reference_size=32, threshold=0.5).check_others(
            output, {text}
        )
    with pytest.raises(ValueError, match=r"metrics\.measures\.light: None, not \{"):
        ScoringStage(
            MeanFaces(), MeanImageText(), reference_size=32, measures={"light": Brightness()}
        ).check_others(output, {text})

    score(runs[2:3], faces=MeanFaces(tint=0.1))
    with pytest.raises(ValueError, match=r"metrics\.faces\.tint: 0\.0, not 0\.1") as refused:
        result_rows(output)
    assert str(ours) in str(refused.value) and str(text) in str(refused.value)
    score(runs[2:3])
    assert [found.scored_by for found in result_rows(output)] == [row.scored_by] * 2
    assert row.scored_by == digest(same.scorer)


class Brightness(nn.Module):
    """Mean of all pixels, with a weight."""

    def __init__(self, gain: float = 1.0) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.tensor(gain))

    @torch.no_grad()
    def forward(self, images: Tensor, texts: Sequence[str]) -> Tensor:
        assert len(texts) == len(images)
        return self.gain * images.mean((1, 2, 3))


def test_measures_of_one_s_own_stand_beside_the_others(drawn: tuple[Path, list[PlannedRun]]) -> None:
    _, runs = drawn
    assert score(runs[:1]) == 8
    before = read_table(runs[0].store.scores_file)
    assert before is not None and "measure.light" not in before.column_names
    assert score(runs[:1], measures={"light": Brightness()}) == 8
    assert score(runs[:1], measures={"light": Brightness()}) == 0
    table = read_table(runs[0].store.scores_file)
    assert table is not None
    assert table.drop_columns(["measure.light"]).to_pylist() == before.to_pylist()
    for line in table.to_pylist():
        image = np.asarray(Image.open(runs[0].store.folder / line["image"]), dtype=float) / 255
        assert line["measure.light"] == pytest.approx(image.mean(), abs=1e-5)
    row = row_from_scores(table, Costs(1))
    assert row.measures["light"].mean == pytest.approx(np.mean(table["measure.light"].to_pylist()))
    assert score(runs[:1], measures={"light": Brightness(2.0)}) == 8  # other weights


@pytest.mark.parametrize(
    ("scores", "message"),
    [
        (torch.zeros(3), r"metrics\.measures\.bad: gives a tensor of shape \(3,\), not 4 numbers"),
        (torch.full((4,), torch.nan), r"metrics\.measures\.bad: gives a tensor with NaN or infinity"),
    ],
)
def test_a_measure_gives_a_number_for_each_image(
    drawn: tuple[Path, list[PlannedRun]], scores: Tensor, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        score(drawn[1][:1], measures={"bad": lambda images, texts: scores})


def test_a_missing_image_is_an_error(drawn: tuple[Path, list[PlannedRun]]) -> None:
    _, runs = drawn
    file = runs[0].store.image_file(runs[0].benchmark.cases[0])
    file.unlink()
    with pytest.raises(ValueError, match=r"0\.png: missing or damaged; evaluate again"):
        score(runs)
    with pytest.raises(ValueError, match=r"scoring\.batch_size=0"):
        ScoringStage(MeanFaces(), MeanImageText(), runs, batch_size=0)
