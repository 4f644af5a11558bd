"""The report of a sweep: figures of its jobs, plots against what was swept, and what did not finish."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from fastcomposer.evaluation.results import ResultRow, write_results
from fastcomposer.evaluation.statistics import Estimate
from fastcomposer.evaluation.sweep_plots import sweep_plot
from fastcomposer.evaluation.sweep_report import write_sweep_report
from fastcomposer.evaluation.sweeps import group_table, last_steps, read_measured
from fastcomposer.jobs import Goal, Job, Plan


def training_sweep(folder: Path, keys: Sequence[str], jobs: Sequence[Sequence[str]]) -> None:
    """Write what a training sweep leaves, whose last job failed."""
    planned = tuple(tuple(f"{k}={v}" for k, v in zip(keys, values, strict=True)) for values in jobs)
    Plan("train", "python -m fastcomposer.cli.train -m", tuple(keys), planned).write(folder)
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


def evaluation_sweep(folder: Path) -> None:
    """Write what an evaluation sweep leaves."""
    Plan("evaluate", "", ("sampler",), (("sampler=mini",), ("sampler=dpm",), ("sampler=lcm",))).write(folder)
    for number, name in enumerate(("mini", "dpm")):
        job = Job(number, folder / str(number), (f"sampler={name}",))
        job.ended("finished", seconds=60.0).write()
        score = Estimate(0.3 + number / 10, (0.25 + number / 10, 0.36 + number / 10))
        rows = [
            ResultRow("single_subject", "fastcomposer", {"alpha": a}, 1, 8, score, score, 1.0, 0.0, 0, 0, 10)
            for a in (0.6, 0.8)
        ]
        write_results(job.folder / "results.json", rows, {})


def test_trainings_are_compared_by_their_last_steps(tmp_path: Path) -> None:
    training_sweep(tmp_path, ["localization.weight"], [["0"], ["0.001"], ["0.1"], ["-1"]])
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
    assert [line.label for line in table.lines] == ["0", "0.001", "0.1"]
    assert "last quarter" in table.notes[0]
    text, page = (tmp_path / "tables.md").read_text(), (tmp_path / "report.html").read_text()
    for said in (text, page):
        assert "job 3 (localization.weight=-1): a value was damaged" in said
    assert page.count("<svg") == 3 and "src=" not in page
    assert "0.270" in text


def test_evaluations_are_compared_by_their_scores(tmp_path: Path) -> None:
    evaluation_sweep(tmp_path)
    sweep, _, files = write_sweep_report(tmp_path, ("md", "html"))
    assert [file.name for file in files] == ["tables.md", "report.html"]
    text = files[0].read_text()
    assert "| mini: FastComposer, alpha 0.6 | 0.300 [0.250, 0.360] |" in text
    assert "job 2 (sampler=lcm): has not begun" in text
    assert "bootstrapped over subjects" in text
    assert [job.status for job in sweep.undone] == ["waiting"]


def test_two_numbers_make_a_map(tmp_path: Path) -> None:
    grid = [[lr, steps] for lr in ("1e-4", "1e-3") for steps in ("40", "80")] + [["1", "1"]]
    training_sweep(tmp_path, ["method.optimizer.lr", "method.steps"], grid)
    page = write_sweep_report(tmp_path, ("html",))[2][0].read_text()
    assert page.count("<figcaption>") == 3 and "method.steps" in page
    (tmp_path / "0" / "attention.json").write_text(json.dumps({"a": {"inside": 0.4, "area": 0.2}}))
    assert [group.key for group in read_measured(tmp_path).groups] == ["attention", "training"]


def test_the_kind_of_plot_follows_from_what_was_swept() -> None:
    def drawn(keys: Sequence[str], *values: tuple[str, ...]) -> str:
        found = {value: Estimate(place, (place - 1, place + 1)) for place, value in enumerate(values)}
        return sweep_plot({"": found}, keys, "loss", "x")

    assert ">0.001<" in drawn(["w"], ("0",), ("0.001",), ("1",))  # none, and wide apart: evenly spaced
    assert ">none<" in drawn(["w"], ("none",), ("mini",))
    assert ">2<" in drawn(["a", "b"], ("1", "x"), ("1", "y"), ("2", "x"))


def search(folder: Path, direction: str = "maximize") -> None:
    """Write what a search of five trials leaves, one of which failed and one has not begun."""
    ranges = {"lr": "tag(log,interval(0.0001,0.1))", "size": "a,b"}
    call = (
        "python -m fastcomposer.cli.train -m sweep=x experiment=mini threads=1 hydra.sweeper.n_trials=5 lr=0"
    )
    goal = Goal("val/score", direction, 5, ranges)  # type: ignore[arg-type]
    Plan("train", call + " resume=auto hydra/launcher=joblib", ("lr", "size"), goal=goal).write(folder)
    for number, value in enumerate((0.2, 0.5, None, 0.3)):
        chosen = (f"lr={float(f'1.234567891e-{4 - number}')}", f"size={'ab'[number % 2]}")
        job = Job(number, folder / str(number), ("experiment=mini", *chosen))
        status = "finished" if value else "failed"
        job.ended(status, seconds=9.0, value=value, reason="" if value else "no room").write()


def test_a_search_shows_its_trials_the_best_first_and_how_to_go_on(tmp_path: Path) -> None:
    search(tmp_path)
    sweep, sentences, _ = write_sweep_report(tmp_path)
    assert sentences == [
        "Best of 3: job 1 (lr=0.001234567891 size=b), val/score 0.5",
        "python -m fastcomposer.cli.train experiment=mini lr=0.001234567891 size=b",
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


def test_few_values_have_no_interval() -> None:
    assert last_steps([3.0, 1.0]) == Estimate(1.0, (1.0, 1.0))
    assert last_steps([9.0] * 12 + [1.0, 2.0, 3.0, 2.0]).mean == pytest.approx(17 / 5)


def test_a_folder_without_jobs_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"sweep=.*: no jobs in it"):
        read_measured(tmp_path)
    training_sweep(tmp_path, ["seed"], [["1"], ["2"]])
    with pytest.raises(ValueError, match="formats: pdf: unknown"):
        write_sweep_report(tmp_path, ("pdf",))
