"""Evaluations of what the jobs of a training sweep have trained."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from configurations import composed
from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig
from toy_evaluation import make_toy

from fastcomposer.cli import evaluate, report, train
from fastcomposer.cli.common import CONFIG_FOLDER
from fastcomposer.sweeps.jobs import Job, Plan
from fastcomposer.sweeps.trained_jobs import (
    check_trained,
    quoted,
    trains_fastcomposer,
    unchanging_job,
    with_jobs,
)

CALL = ["-m", "sweep=jobs", "jobs=trained", "alphas=[0.6]"]


def trained(folder: Path) -> None:
    """Write what a training sweep leaves that was stopped within its second job of three."""
    planned = tuple((f"seed={seed}",) for seed in (1, 2, 3))
    Plan("train", "", ("seed",), planned).write(folder)
    settings = {"model": dict(composed("evaluate").model)}
    Job(0, folder / "0", planned[0], settings).ended("finished").write()
    Job(1, folder / "1", planned[1], settings).ended("stopped").write()


def together(*overrides: str, command: str = "train") -> DictConfig:
    with initialize_config_dir(str(CONFIG_FOLDER), version_base="1.3"):
        return compose(command, list(overrides), return_hydra_config=True)


def test_all_jobs_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    trained(Path("trained"))
    # Unfinished ones keep their numbers.
    assert with_jobs(CALL) == [*CALL, "job=0,1,2"]
    assert with_jobs([*CALL, "job=0"]) == [*CALL, "job=0"]
    assert with_jobs(["-m", "sweep=tables"]) == ["-m", "sweep=tables"]
    with pytest.raises(ValueError, match="call evaluate with -m"):
        with_jobs(CALL[1:])
    with pytest.raises(ValueError, match="jobs=<folder> names the sweep"):
        with_jobs(["-m", "sweep=jobs"])
    with pytest.raises(FileNotFoundError, match="jobs=nowhere: no jobs in it"):
        with_jobs(["-m", "sweep=jobs", "jobs=nowhere"])


def test_a_job_that_was_trained_anew_is_evaluated_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    trained(Path("trained"))
    record = Path("trained/evaluation/0/job.json")
    Job(0, record.parent, ()).ended("finished").write()
    with_jobs(CALL)
    assert record.exists()
    later = record.stat().st_mtime + 5
    os.utime("trained/0/job.json", (later, later))
    with_jobs(CALL)
    assert not record.exists()


def test_only_what_was_trained_on_the_same_model_is_evaluated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    trained(Path("trained"))

    def check(job: int, *more: str) -> None:
        check_trained(composed("evaluate", "sweep=jobs", "jobs=trained", f"job={job}", *more))

    check(0)
    check(0, "model.checkpoint=other")  # which generate loads, not the training
    with pytest.raises(ValueError, match=r"trained/1: its training stopped; train -m \.\.\. resume=auto"):
        check(1)
    with pytest.raises(ValueError, match=r"trained/2: its training has not begun"):
        check(2)
    with pytest.raises(ValueError, match=r"on another model .* model\.resolution: 64, not 32"):
        check(0, "model.resolution=32")


def test_the_job_that_changes_nothing_is_found() -> None:
    config = together("experiment=mini")
    assert unchanging_job(config, [["data.module={background:black}"], ["data.module={}"]]) == 1
    layers = [[f"method.vision_layers={number}"] for number in range(4)]
    assert unchanging_job(config, layers) == 2
    assert unchanging_job(config, [["localization=none"], ["localization=mini"]]) == 1
    losses = ("localization_weight:0", "localization:balanced_l1")
    assert unchanging_job(config, [[f"method.model.loss_config={{{loss}}}"] for loss in losses]) == 1
    assert unchanging_job(config, [["seed=1", "method.vision_layers=2"]]) is None
    samplers = [["compared=[text_only]"], ["sampler=dpm"], ["sampler=mini"]]
    assert unchanging_job(together(command="evaluate"), samplers) == 2
    assert trains_fastcomposer(together("experiment=mini"))
    assert not trains_fastcomposer(together("experiment=mini_base", "method=vae"))


def test_a_sweep_is_trained_evaluated_and_compared(
    run: Callable[..., tuple[int, str, str]], settings: list[str], small_base: Path, tmp_path_factory: Any
) -> None:
    toy = make_toy(small_base, tmp_path_factory.mktemp("toy"))
    base = f"model.base={toy.base}"
    short = ["~callbacks.samples", "name=ablation", "trainer.max_steps=1", "trainer.limit_val_batches=0"]
    status, out, err = run(train, "-m", *settings, base, *short, "data.module.background=black,noise")
    assert status == 0, err
    _, out, _ = run(report, "sweep=multirun/ablation")
    assert "jobs 0, 1 are not measured yet; evaluate -m sweep=jobs jobs=multirun/ablation " in out

    part = toy.arguments("alphas=[1.0]", "benchmark.multi=null")
    part = [text for text in part if "checkpoint" not in text and "benchmark.multi." not in text]
    call = ["-m", "sweep=jobs", "jobs=multirun/ablation", *part]
    status, out, err = run(evaluate, *call)
    assert status == 0, err
    assert "report sweep=multirun/ablation\n" in out
    assert (Path("multirun/ablation/evaluation/1/results.json")).is_file()
    status, out, err = run(report, "sweep=multirun/ablation")
    assert status == 0 and "not measured" not in out, err
    table = Path("multirun/ablation/tables.md").read_text()
    assert "Differences are from job 1 (background noise)" in table  # noise is the experiment's own


@pytest.mark.parametrize(
    "text",
    ["outputs/mini", "step=000002.ckpt", "my photos/a.png", "null", "12", "it's", "a\\b", "a\\'b", "${x}"],
)
def test_values_are_quoted_as_hydra_reads_them(text: str) -> None:
    assert OverridesParser.create().parse_override(f"key={quoted(text)}").value() == text
