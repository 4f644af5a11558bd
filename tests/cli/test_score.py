"""A benchmark's cases given to another system, whose images are scored like ours."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch
from diffusers import UNet2DConditionModel
from PIL import Image
from toy_evaluation import SAMPLER, SIZE, Toy, make_toy

from fastcomposer import FastComposer
from fastcomposer.cli import benchmark, evaluate, report, score
from fastcomposer.evaluation.results import read_results

Run = Callable[..., tuple[int, str, str]]
MADE_BY = {"method", "settings", "seconds", "unet_calls", "peak_memory_bytes"}
"""Columns of the scores that depend on who generates, and not on the images."""
PART = ["benchmark.single.num_subjects=2", "benchmark.multi.num_pairs=1", "benchmark.multi.num_subjects=2"]
OURS, FIRST = "outputs/evaluate", "single_subject/00_man/action_0/0.png"


@pytest.fixture(scope="module")
def toy(small_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Toy:
    return make_toy(small_base, tmp_path_factory.mktemp("toy"))


@pytest.fixture(scope="module")
def exported(toy: Toy, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Cases of two people, and the images that plain calls of a pipeline generate for them."""
    from command_line import called

    folder = tmp_path_factory.mktemp("foreign")
    chosen = [one for one in toy.arguments() if one.startswith("benchmark.")]
    status, _, err = called(benchmark, *chosen, *PART, f"export={folder / 'cases.jsonl'}")
    assert status == 0, err
    pipeline = FastComposer.from_checkpoint(toy.checkpoint, base=toy.base).to_pipeline(safety_checker=False)
    pipeline.set_progress_bar_config(disable=True)
    for line in (folder / "cases.jsonl").read_text().splitlines():
        case = json.loads(line)
        options = {**SAMPLER, "generator": torch.Generator().manual_seed(case["seed"])}
        image = pipeline(case["prompt"], references=case["references"], **options).images[0]
        file = folder / "images" / case["file"]
        file.parent.mkdir(parents=True, exist_ok=True)
        image.save(file)
    return folder


@pytest.fixture
def scored(run: Run, toy: Toy, exported: Path) -> Run:
    """Score those images in an empty folder."""
    chosen = [
        *(one for one in toy.arguments() if one.startswith(("model.", "benchmark."))),
        *PART,
        "method=uno",
    ]
    shutil.copytree(exported, "foreign")
    return lambda *arguments: run(score, *chosen, "images=foreign/images", *arguments)


def image_scores(method: str) -> list[dict[str, Any]]:
    """Scores of each image, of both benchmarks, without what depends on who generates."""
    lines = []
    for file in sorted(Path(OURS).glob(f"*/{method}*/scores.parquet")):
        lines += pq.read_table(file).to_pylist()
    return [{key: line[key] for key in line if key not in MADE_BY} for line in lines]


def test_images_generated_from_the_exported_cases_alone_have_the_scores_of_evaluate(
    run: Run, toy: Toy, scored: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Several images in one call may differ by rounding.
    arguments = toy.arguments(*PART, "methods=[fastcomposer]", "alphas=[0.5]", "batch_size=1")
    status, _, err = run(evaluate, *arguments)
    assert status == 0, err

    def refuse(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("a generative model is made")

    monkeypatch.setattr(UNet2DConditionModel, "__init__", refuse)
    monkeypatch.setattr(FastComposer, "__init__", refuse)
    status, out, err = scored("version=1.10", "note=commit abc, 4 steps")
    assert status == 0, err
    assert "uno" in out and "no image" not in out
    assert len({line["identity"] for line in image_scores("uno")}) == 12
    assert image_scores("uno") == image_scores("fastcomposer")
    rows = read_results(f"{OURS}/results.json").rows
    assert [(row.benchmark, row.method) for row in rows] == [
        ("single_subject", "fastcomposer"),
        ("single_subject", "uno"),
        ("multi_subject", "fastcomposer"),
        ("multi_subject", "uno"),
    ]
    for ours, theirs in ((rows[0], rows[1]), (rows[2], rows[3])):
        found, expected = theirs.as_dict(), ours.as_dict()
        assert found["settings"] == {"version": "1.10"}
        assert found.pop("origin") == {"note": "commit abc, 4 steps", "missing": 0}
        for key in ("method", "settings", "seconds_per_image", "unet_calls", "peak_memory_bytes"):
            del found[key], expected[key]
        assert found == expected
    status, _, err = run(report, f"results={OURS}", "~benchmark")
    assert status == 0, err
    for file in ("tables.md", "report.html", "tables.tex"):
        text = Path(OURS, file).read_text()
        assert f"version 1.10, commit abc, 4 steps, scored by extractors {rows[1].scored_by}" in text


def test_exported_cases_hold_what_a_system_needs(exported: Path, toy: Toy) -> None:
    cases = [json.loads(line) for line in (exported / "cases.jsonl").read_text().splitlines()]
    assert len(cases) == 12
    last = cases[-1]
    assert last["prompt"] == "a photo of a man <|image|> and a woman <|image|> smiling"
    assert last["text"] == "a photo of a man and a woman smiling"
    assert last["file"] == f"{last['id']}.png"
    assert last["references"] == [str(toy.references / f"{name}.png") for name in last["subjects"]]
    assert [len(files) for files in last["tuning_images"]] == [5, 5]
    assert [files[0] for files in last["tuning_images"]] == last["references"]
    assert len({(case["prompt"], case["seed"]) for case in cases}) == 12


@pytest.mark.parametrize("suffix", ["csv", "jsonl"])
def test_a_manifest_names_images_of_any_name(scored: Run, suffix: str) -> None:
    cases = pd.read_json("foreign/cases.jsonl", lines=True)
    Path("flat").mkdir()
    for number, file in enumerate(cases.file):
        Path("foreign/images", file).rename(f"flat/{number}.png")
    named = pd.DataFrame({"id": cases.id, "file": [f"{number}.png" for number in range(len(cases))]})
    named = pd.concat([named, pd.DataFrame({"id": ["other/case"], "file": ["0.png"]})])
    if suffix == "csv":
        named.to_csv("manifest.csv", index=False)
    else:
        named.to_json("manifest.jsonl", lines=True, orient="records")
    status, out, err = scored("images=flat", f"manifest=manifest.{suffix}")
    assert status == 0, err
    assert "1 images are of no case: flat/0.png" in out
    assert sum(row.images for row in read_results(f"{OURS}/results.json").rows) == 12


def test_photos_are_scored_by_the_metrics_of_the_paper(
    scored: Run, paper_metrics: list[str], astronaut: Image.Image, admiral: Image.Image
) -> None:
    people = {"00_man": admiral, "01_woman": astronaut, "02_man": admiral}
    Path("people").mkdir()
    for name, photo in people.items():
        photo.save(f"people/{name}.png")
    for line in Path("foreign/cases.jsonl").read_text().splitlines():
        case = json.loads(line)
        people[case["subjects"][0]].save(Path("foreign/images", case["file"]))
    options = ["benchmark.images=people", "benchmark.multi=null"]
    status, _, err = scored(*paper_metrics, *options)
    assert status == 0, err
    (row,) = read_results(f"{OURS}/results.json").rows
    assert row.images == 8 and row.identity_preservation.mean == pytest.approx(1, abs=1e-4)


def test_missing_images_are_refused_or_counted(scored: Run) -> None:
    Path("foreign/images", FIRST).unlink()
    Image.new("RGB", (SIZE, SIZE)).save("foreign/images/more.png")
    status, _, err = scored()
    assert status == 1
    assert FIRST in err and "1 of 12" in err and "skip_missing" in err
    assert not list(Path(OURS).glob("*/*/run.json"))
    status, out, err = scored("skip_missing=true")
    assert status == 0, err
    assert FIRST in out and "foreign/images/more.png" in out
    rows = read_results(f"{OURS}/results.json").rows
    assert [(row.images, row.origin and row.origin.missing) for row in rows] == [(7, 1), (4, 0)]
    # Images that changed since are not taken for those that were scored.
    shutil.copy("foreign/images/more.png", Path("foreign/images", FIRST))
    status, _, err = scored()
    assert status == 1 and "files: " in err and "resume=restart" in err
    assert scored("resume=restart")[0] == 0
    assert read_results(f"{OURS}/results.json").rows[0].images == 8


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["images=nowhere"], "images=nowhere"),
        (["manifest=nowhere.csv"], "nowhere.csv"),
        (["manifest=twice.csv"], FIRST.removesuffix(".png")),
        (["manifest=columns.jsonl"], "columns.jsonl"),
        (["manifest=broken.jsonl"], "broken.jsonl"),
        (["manifest=empty.csv"], "empty.csv"),
        (["images=sizes"], FIRST),
        (["images=damaged"], FIRST),
        (["method=dreambooth"], "method=dreambooth"),
        (["method=../uno"], "method_name=../uno"),
    ],
)
def test_what_is_wrong_is_named_before_anything_is_scored(
    scored: Run, arguments: list[str], named: str
) -> None:
    case = FIRST.removesuffix(".png")
    Path("twice.csv").write_text(f"id,file\n{case},{FIRST}\n{case},{FIRST}\n")
    Path("columns.jsonl").write_text('{"id": "a", "image": "b"}\n')
    Path("broken.jsonl").write_text('{"id": "a", \n')
    Path("empty.csv").write_text(f"id,file\n{case},\n")
    for name in ("sizes", "damaged"):
        shutil.copytree("foreign/images", name)
    Image.new("RGB", (8, 8)).save(Path("sizes", FIRST))
    Path("damaged", FIRST).write_bytes(b"\x89PNG")
    status, _, err = scored(*arguments)
    assert status == 1 and "Traceback" not in err
    assert named in err
    assert not list(Path(OURS).glob("*/*/scores.parquet"))


@pytest.mark.parametrize("file", ["folder", "file/cases.jsonl"])
def test_cases_are_not_written_where_they_cannot_be(run: Run, file: str) -> None:
    Path("folder").mkdir()
    Path("file").touch()
    status, _, err = run(benchmark, f"export={file}", "benchmark.images=nowhere")
    assert status == 1 and f"export={file.removesuffix('/cases.jsonl')}" in err
