"""The report of a sweep: figures of its jobs, plots against what was swept, and what did not finish."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from fastcomposer.cli import report
from fastcomposer.evaluation.load_results import collect
from fastcomposer.evaluation.results import SCORES, Costs, ResultRow, row_from_scores, write_results
from fastcomposer.evaluation.statistics import Estimate
from fastcomposer.sweeps.jobs import Goal, Job, Plan
from fastcomposer.sweeps.report.measured import (
    full_label,
    group_table,
    last_steps,
    read_measured,
    readable,
)
from fastcomposer.sweeps.report.sweep_document import sweep_section
from fastcomposer.sweeps.report.sweep_page import write_sweep_report
from fastcomposer.sweeps.report.sweep_plots import SweepPlot


def row(method: str, score: Estimate, **settings: float) -> ResultRow:
    costs = (1.0, 0.0, 0, 0, 10)
    return ResultRow("single_subject", method, settings, 1, 8, score, score, *costs, identity_published=score)


def training_sweep(folder: Path, keys: Sequence[str], jobs: Sequence[Sequence[str]]) -> None:
    """Write what a training sweep leaves, whose last job failed."""
    planned = tuple(tuple(f"{k}={v}" for k, v in zip(keys, values, strict=True)) for values in jobs)
    Plan("train", "fastcomposer train -m", tuple(keys), planned).write(folder)
    for number, overrides in enumerate(planned):
        job = Job(number, folder / str(number), ("experiment=mini", *overrides))
        if number == len(planned) - 1:
            job.ended("failed", reason="a value was damaged").write()
            continue
        job.ended("finished", seconds=180.0).write()
        noise = np.random.default_rng(number).normal(0, 0.01, 40)
        rows = ["epoch,step,train/denoise_loss,train/images_per_second,val/denoise_loss"]
        rows += [f"0,{9 + 10 * i},{0.25 + 0.02 * number + n},20.5," for i, n in enumerate(noise)]
        rows += [f"0,399,,,{0.21 + 0.03 * number}"]
        (job.folder / "logs").mkdir()
        (job.folder / "logs" / "metrics.csv").write_text("\n".join(rows) + "\n")


def test_evaluations_are_compared_by_their_scores(tmp_path: Path) -> None:
    planned = (("sampler=mini",), ("sampler=dpm",), ("sampler=lcm",))
    Plan("evaluate", "", ("sampler",), planned).write(tmp_path)
    for number, overrides in enumerate(planned[:2]):
        job = Job(number, tmp_path / str(number), overrides)
        job.ended("finished", seconds=60.0).write()
        score = Estimate(0.3 + number / 10, (0.25 + number / 10, 0.36 + number / 10))
        rows = [row("fastcomposer", score, alpha=alpha) for alpha in (0.6, 0.8)]
        write_results(job.folder / "results.json", rows, {})
    sweep, _, files = write_sweep_report(tmp_path, ("md", "html"))
    assert [file.name for file in files] == ["tables.md", "report.html"]
    text = files[0].read_text()
    assert "| mini: alpha 0.6 | 0.300 [0.250, 0.360] |" in text
    assert "FastComposer. Intervals (95 %)" in text  # what all have in common is said once
    assert "job 2 (sampler=lcm): has not begun" in text
    assert "bootstrapped over subjects" in text
    assert [job.status for job in sweep.undone] == ["waiting"]


def test_trainings_are_compared_by_their_last_steps(tmp_path: Path) -> None:
    training_sweep(tmp_path, ["localization.localization_weight"], [["0"], ["0.001"], ["0.1"], ["-1"]])
    sweep, sentences, files = write_sweep_report(tmp_path)
    assert not sentences
    assert [file.name for file in files] == ["tables.md", "tables.csv", "tables.tex", "report.html"]
    (group,) = sweep.groups
    first = group.entries[0].values["train/denoise_loss"]
    noise = np.random.default_rng(0).normal(0, 0.01, 40)
    assert first.mean == pytest.approx(0.25 + noise[-10:].mean())
    assert first.ci95[0] < first.mean < first.ci95[1]
    assert group.entries[2].values["val/denoise_loss"].mean == pytest.approx(0.27)
    table = group_table(group, sweep.keys)
    assert [*table.frame.index] == ["0", "0.001", "0.1"]
    assert "last quarter" in table.notes[0]
    text, page = (tmp_path / "tables.md").read_text(), (tmp_path / "report.html").read_text()
    for said in (text, page):
        assert "job 3 (localization.localization_weight=-1): a value was damaged" in said
    assert page.count("<svg") == 3 and "src=" not in page
    assert "0.270" in text


def scored(
    folder: Path,
    identity: Sequence[float],
    coverage: Sequence[float | None] = (0.0, 0.0, 0.0),
    methods: Sequence[str] = ("fastcomposer",),
) -> None:
    """Write what the evaluation of a job's weights leaves: three people, one image of each by each method."""
    rows = [scored_method(folder, method, identity, coverage) for method in methods]
    write_results(folder / "results.json", rows, {})
    Job(0, folder, (), {"benchmark": {"images": str(folder)}}).ended("finished").write()


def scored_method(
    folder: Path, method: str, identity: Sequence[float], coverage: Sequence[float | None]
) -> ResultRow:
    """Write the scores and images of a method."""
    people = ("ann", "bob", "eve")
    columns = {
        "case": [f"single_subject/{name}/style_0/0" for name in people],
        "benchmark": ["single_subject"] * 3,
        "method": [method] * 3,
        "settings": ['{"alpha": 0.8}' if method == "fastcomposer" else "{}"] * 3,
        "category": ["style"] * 3,
        "subjects": [[name] for name in people],
        "seed": [1, 2, 3],
        "identity": list(identity),
        "identity_published": list(identity),
        "detected": [1] * 3,
        "prompt_consistency": [0.2, 0.3, 0.4],
        "copy_paste": [value / 2 for value in identity],
        "seconds": [1.0] * 3,
        "unet_calls": [30.0] * 3,
        "image": [f"images/{name}.png" for name in people],
    }
    schema = SCORES.append(pa.field("coverage", pa.float64()))
    table = pa.table({**columns, "coverage": list(coverage)}, schema=schema)
    run = folder / "single_subject" / (f"{method}-alpha_0.8" if method == "fastcomposer" else method)
    run.mkdir(parents=True)
    pq.write_table(table, run / "scores.parquet")
    (run / "images").mkdir()
    for name in people:
        Image.new("RGB", (8, 8)).save(run / "images" / f"{name}.png")
        Image.new("RGB", (8, 8)).save(folder / f"{name}.png")
    return row_from_scores(table, Costs(1))


def ablation(folder: Path, methods: Sequence[str] = ("fastcomposer",)) -> None:
    """Write what a training sweep of four jobs leaves, of which two were scored, the first by all methods."""
    values = ("{background:black}", "{}", "{jitter:0,augmentation:null}", "{flip:0}")
    planned = tuple((f"data.module={value}",) for value in values)
    Plan("train", "", ("data.module",), planned, baseline=1, scorable=True).write(folder)
    for number, overrides in enumerate(planned):
        Job(number, folder / str(number), overrides).ended("finished", seconds=9.0).write()
    scored(folder / "evaluation" / "1", [0.2, 0.4, 0.6], methods=methods)
    scored(folder / "evaluation" / "2", [0.3, 0.5, 0.9], [1.0, None, 0.0])


def test_trainings_are_compared_by_their_scored_images(tmp_path: Path) -> None:
    ablation(tmp_path)
    sweep, _, _ = write_sweep_report(tmp_path)
    assert [job.number for job in sweep.jobs] == [0, 1, 2, 3]  # evaluations are no jobs of the sweep
    assert [job.number for job in sweep.unscored] == [0, 3]
    (group,) = sweep.groups
    assert [entry.job.number for entry in group.entries] == [1, 2]
    difference = group.entries[1].values["identity_preservation_difference"]
    assert difference.mean == pytest.approx((0.1 + 0.1 + 0.3) / 3)
    assert difference.excludes(0) and difference.ci95[0] == pytest.approx(0.1)
    assert "identity_preservation_difference" not in group.entries[0].values
    found = {name: value.mean for name, value in group.entries[1].values.items() if "difference" in name}
    assert found["copy_paste_difference"] == pytest.approx(difference.mean / 2)
    assert found["coverage_difference"] == pytest.approx(1 / 2)  # of the two images that define it
    text, page = (tmp_path / "tables.md").read_text(), (tmp_path / "report.html").read_text()
    assert "| as in the experiment | 0.400 [0.200, 0.600] | – |" in text
    assert "| jitter 0, augmentation none | 0.567 [0.300, 0.900] | 0.167 [0.100, 0.300] |" in text
    assert "FastComposer, alpha 0.8." in text and "s to personalise" not in text
    for said in (text, page):
        assert "Identity and prompt of jobs 0, 3 are not measured yet" in said
        assert f"evaluate -m sweep=jobs jobs={tmp_path}" in said
        assert "Differences are from job 1 (as in the experiment)" in said
        assert "Each job is one training" in said
    assert "{}" not in page
    assert page.count("<svg") == 6
    labels = "as in the experiment", "jitter 0, augmentation none"
    # The baseline has a line of its own beside the other plots' lines.
    assert [page.count(f">{label}</text>") for label in labels] == [6, 6]

    # One case is seen of each, below its reference; which depends on its place alone.
    alts = [f'alt="{name}: single_subject/ann/style_0/0"' for name in labels]
    assert [page.count(alt) for alt in (*alts, 'alt="Reference of ann"')] == [1, 1, 1]

    measured = {"trained/1": {"inside": 0.4, "area": 0.2}}
    (tmp_path / "evaluation" / "1" / "attention.json").write_text(json.dumps(measured))
    attention = read_measured(tmp_path).groups[1]
    assert [(entry.job.number, entry.series) for entry in attention.entries] == [(1, "")]
    assert attention.entries[0].values["inside"].mean == 0.4

    other = read_measured(tmp_path, baseline=2).groups[0]
    assert other.entries[0].values["identity_preservation_difference"].mean == pytest.approx(-0.5 / 3)
    with pytest.raises(ValueError, match="baseline=7: no such job; there are 0, 1, 2, 3"):
        read_measured(tmp_path, baseline=7)


def test_jobs_of_different_scorers_are_not_compared(tmp_path: Path) -> None:
    ablation(tmp_path)
    file = tmp_path / "evaluation" / "2" / "results.json"
    content = json.loads(file.read_text())
    content["rows"][0]["scored_by"] = "abc"
    file.write_text(json.dumps(content))
    (file.parent / "single_subject" / "fastcomposer-alpha_0.8" / "scores.parquet").unlink()
    with pytest.raises(ValueError, match=r"scored_by: None, not 'abc'") as refused:
        write_sweep_report(tmp_path)
    assert all(str(tmp_path / "evaluation" / number) in str(refused.value) for number in "12")


def test_methods_are_named_once(tmp_path: Path) -> None:
    score = Estimate(0.3, (0.2, 0.4))
    for number, names in enumerate((("text_only", "fastcomposer"), ("dreambooth",))):
        overrides = (f"compared=[{','.join(names)}]",)
        Job(number, tmp_path / str(number), overrides).ended("finished").write()
        write_results(tmp_path / str(number) / "results.json", [row(name, score) for name in names], {})
    sweep, _, (file,) = write_sweep_report(tmp_path, ("html",))
    table = group_table(sweep.groups[0], sweep.keys)
    assert [*table.frame.index] == ["Text only", "FastComposer", "DreamBooth"]
    page = file.read_text()
    assert page.count(">DreamBooth</text>") == 2 and "[dreambooth]" not in page

    # The jobs are one evaluation, unless two have the same rows under other settings.
    assert [run.name for run in collect(tmp_path, 0.6).runs] == ["Text only", "FastComposer", "DreamBooth"]
    other = replace(row("text_only", score), prompt_consistency=Estimate(0.32, (0.2, 0.4)))
    write_results(tmp_path / "1" / "results.json", [other], {})
    with pytest.raises(ValueError, match="1 has sampled Text only under other settings"):
        collect(tmp_path, 0.6)


def test_an_evaluation_of_what_was_trained_anew_is_left_out(tmp_path: Path) -> None:
    ablation(tmp_path)
    later = (tmp_path / "evaluation" / "2" / "job.json").stat().st_mtime + 5
    os.utime(tmp_path / "2" / "job.json", (later, later))
    sweep = read_measured(tmp_path)
    assert [job.number for job in sweep.unscored] == [0, 2, 3]
    assert [entry.job.number for entry in sweep.groups[0].entries] == [1]
    Job(1, tmp_path / "evaluation" / "1", ()).ended("failed", reason="no room").write()
    assert read_measured(tmp_path).groups == ()


def test_swept_values_in_words() -> None:
    assert readable("{}") == "as in the experiment"
    assert readable("{a:{b:True},c:0.5,d:null}") == "a b on, c 0.5, d none"
    assert readable("[text_only,fastcomposer]") == "text_only, fastcomposer"
    assert (readable("1e-4"), readable("null")) == ("1e-4", "null")
    job = Job(0, Path("0"), ("method.vision_layers=2",))
    assert full_label(job, ["method.vision_layers"]) == "vision_layers 2"


def test_the_kind_of_plot_follows_from_what_was_swept() -> None:
    def drawn(keys: Sequence[str], *values: tuple[str, ...]) -> str:
        found = {value: Estimate(place, (place - 1, place + 1)) for place, value in enumerate(values)}
        return SweepPlot({"": found}, keys, "loss", "x").svg()

    assert ">0.001<" in drawn(["w"], ("0",), ("0.001",), ("1",))  # none, and wide apart: evenly spaced
    assert ">none<" in drawn(["w"], ("none",), ("mini",))
    assert ">2<" in drawn(["a", "b"], ("1", "x"), ("1", "y"), ("2", "x"))
    assert ">inf<" in drawn(["w"], ("1",), ("inf",))  # has no place on an axis of numbers


def search(folder: Path, direction: str = "maximize") -> None:
    """Write what a search of five trials leaves, one of which failed and one has not begun."""
    ranges = {"lr": "tag(log,interval(0.0001,0.1))", "size": "a,b"}
    call = "fastcomposer train -m sweep=x experiment=mini threads=1 hydra.sweeper.n_trials=5 lr=0"
    goal = Goal("val/score", direction, 5, ranges)  # type: ignore[arg-type]
    Plan("train", call + " resume=auto hydra/launcher=joblib", ("lr", "size"), goal=goal).write(folder)
    for number, value in enumerate((0.2, 0.5, None, 0.3)):
        chosen = (f"lr={float(f'1.234567891e-{4 - number}')}", f"size={'ab'[number % 2]}")
        job = Job(number, folder / str(number), ("experiment=mini", *chosen))
        status = "finished" if value else "failed"
        job.ended(status, seconds=9.0, value=value, reason="" if value else "no room").write()


def test_a_search_shows_its_trials_the_best_first_and_its_next_call(tmp_path: Path) -> None:
    search(tmp_path)
    sweep, sentences, _ = write_sweep_report(tmp_path)
    assert sentences == [
        "Best of 3: job 1 (lr=0.001234567891 size=b), val/score 0.5",
        "fastcomposer train experiment=mini lr=0.001234567891 size=b",
    ]
    text, page = (tmp_path / "tables.md").read_text(), (tmp_path / "report.html").read_text()
    assert f"`{sentences[1]}`" in text and f"<code>{sentences[1]}</code>" in page
    rows = [line for line in text.splitlines() if line.startswith(("| job", "| **job"))]
    assert rows == [
        "| **job 1: size b (best)** | 0.5 | 0.001235 | 9.0 |",
        "| job 3: size b | 0.3 | 0.1235 | 9.0 |",
        "| job 0: size a | 0.2 | 0.0001235 | 9.0 |",
    ]
    assert "1 of 4 trials failed" in text and "job 2 (lr=0.01234567891 size=a): no room" in text
    assert "job 4: has not begun" in text
    assert page.count("<figcaption>") == 3
    assert "val/score over the trials. 0: 0.2; 1: 0.5; 3: 0.3." in page
    assert "val/score against size. b: 0.5; b: 0.3; a: 0.2." in page
    search(tmp_path, "minimize")
    assert [job.number for _, job in read_measured(tmp_path).plan.goal.ranked(sweep.jobs)] == [0, 3, 1]  # type: ignore[union-attr]


def test_few_logged_values_have_no_interval() -> None:
    assert last_steps([3.0, 1.0]) == Estimate(1.0, (1.0, 1.0))
    assert last_steps([9.0] * 12 + [1.0, 2.0, 3.0, 2.0]).mean == pytest.approx(17 / 5)


def test_a_folder_without_jobs_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"sweep=.*: no jobs in it"):
        read_measured(tmp_path)
    (tmp_path / "results.json").write_text("{}")
    with pytest.raises(FileNotFoundError, match="one evaluation, no sweep: report results="):
        read_measured(tmp_path)
    training_sweep(tmp_path, ["seed"], [["1"], ["2"]])
    with pytest.raises(ValueError, match="formats: pdf: unknown"):
        write_sweep_report(tmp_path, ("pdf",))


def test_a_document_shows_scores_and_the_same_cases(tmp_path: Path, run: Callable[..., Any]) -> None:
    folder, document = tmp_path / "ablation_data", tmp_path / "page.md"
    ablation(folder)
    for number in (1, 2):
        logs, scores = folder / str(number) / "logs", folder / "evaluation" / str(number) / "single_subject"
        logs.mkdir()
        (logs / "metrics.csv").write_text(f"step,train/gflop_per_image,train/loss\n9,{number}.5,1\n")
        maps = scores / "fastcomposer-alpha_0.8" / "attention" / "single_subject/bob/style_0/0"
        maps.mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(maps / "0.png")
    (folder / "1" / "attention.json").write_text(json.dumps({"trained": {"inside": 0.725, "area": 0.2}}))
    marks = "<!-- data: written by make data -->\nold\n<!-- data: end -->\n"
    document.write_text(f"before\n{marks}after\n")
    status, out, err = run(report, f"sweep={folder}", f"document={document}", "formats=[md]")
    assert status == 0 and str(document) in out, err
    text = document.read_text()
    assert text.startswith("before\n") and text.endswith("after\n") and "old" not in text
    assert "| identity, difference |" in text and "| s per image |" not in text
    assert "](data_single_subject.png)" in text
    with Image.open(tmp_path / "data_single_subject.png") as sheet:
        assert sheet.width // 100 == 3  # a reference, and the images of two jobs
    assert "](data_single_subject_attention.png)" in text
    with Image.open(tmp_path / "data_single_subject_attention.png") as sheet:
        assert sheet.width // 100 == sheet.height // 100 == 2  # two jobs, an image and a map of each
    assert "GFLOP/image" in text and "| as in the experiment | 1.5 |" in text and "| loss" not in text
    assert "| attention inside the mask |" in text and "| 72.5 % |" in text
    document.write_text("nothing")
    status, _, err = run(report, f"sweep={folder}", f"document={document}")
    assert status == 1 and "document=" in err


def test_overlays_of_a_document_are_of_runs_that_have_subjects(tmp_path: Path) -> None:
    ablation(tmp_path, ("fastcomposer", "text_only"))
    for number in (1, 2):
        scores = tmp_path / "evaluation" / str(number) / "single_subject/fastcomposer-alpha_0.8"
        maps = scores / "attention" / "single_subject/bob/style_0/0"
        maps.mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(maps / "0.png")
    section = sweep_section(read_measured(tmp_path), tmp_path / "page.md", "s")
    assert "](s_single_subject_attention.png)" in section
    widths = [
        Image.open(tmp_path / f"s_single_subject{kind}.png").width // 100 for kind in ("", "_attention")
    ]
    assert widths == [4, 2]  # a reference and three images; a column for each job with subjects


def test_cases_of_a_document_have_images_of_all_jobs_and_references(tmp_path: Path) -> None:
    ablation(tmp_path)
    jobs = [tmp_path / "evaluation" / number for number in ("1", "2")]
    run = "single_subject/fastcomposer-alpha_0.8"
    Image.new("RGB", (8, 8), "red").save(jobs[0] / run / "images" / "eve.png")
    (jobs[1] / run / "images" / "ann.png").unlink()
    for job in jobs:
        (job / "bob.png").unlink()
    sheet = tmp_path / "s_single_subject.png"
    section = sweep_section(read_measured(tmp_path), tmp_path / "page.md", "s")
    assert sheet.name in section
    red = [pixel for pixel in Image.open(sheet).convert("RGB").getdata() if pixel == (255, 0, 0)]
    assert red  # eve's alone are there
    sheet.unlink()
    (jobs[0] / run / "images" / "eve.png").unlink()
    assert sheet.name not in sweep_section(read_measured(tmp_path), tmp_path / "page.md", "s")
