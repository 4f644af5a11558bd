"""Sweeps: jobs that fail leave the others alone, and only they run again."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from small_training import bare_training

from fastcomposer.cli import train
from fastcomposer.sweeps.jobs import Job, Plan, read_job, read_jobs, swept_keys
from fastcomposer.sweeps.session import begin_sweep, resumed
from fastcomposer.training.checkpoints import read_step

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def settings(world: Path, small_base: Path) -> list[str]:
    """A training of a second."""
    return bare_training(small_base, world, 3, "threads=1")


def same_weights(*folders: str | Path) -> bool:
    one, other = (load_file(Path(folder) / "fastcomposer.safetensors") for folder in folders)
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


JOBLIB = ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2"]


@pytest.mark.parametrize("launcher", [[], pytest.param(JOBLIB, marks=pytest.mark.slow)])
def test_only_the_job_that_failed_runs_again(run: Run, settings: list[str], launcher: list[str]) -> None:
    call = ["-m", *settings, "name=dropout", *launcher]
    status, _, err = run(train, *call, "method.caption_dropout=0.1,2,0.3")
    assert status == 1
    folder = Path("multirun/dropout")
    assert f"1 of 3 jobs in {folder} did not finish:" in err
    reason = "method.caption_dropout=2: takes a number from 0 to 1"
    assert f"\n  job 1 (method.caption_dropout=2): {reason}\n    {folder}/1/error.log\n" in err
    assert "caption_dropout=0.1,2,0.3 resume=auto" in err
    assert [job.status for job in read_jobs(folder)] == ["finished", "failed", "finished"]
    assert "Traceback" in (folder / "1" / "error.log").read_text()
    before = {number: (folder / number / "fastcomposer.safetensors").stat().st_mtime_ns for number in "02"}

    mended = "method.caption_dropout=0.1,0.2,0.3"
    status, out, err = run(train, *call, "method.caption_dropout=0.1,0.3,0.2", "resume=auto")
    assert status == 1
    assert "2 holds work of method.caption_dropout=0.3, not of method.caption_dropout=0.2" in err

    status, out, err = run(train, *call, mended, "resume=auto")
    assert status == 0, err
    if not launcher:  # else what the processes say does not come here
        assert out.count("has finished before: skipped") == 2
    assert f"report sweep={folder}" in out
    assert [job.status for job in read_jobs(folder)] == ["finished"] * 3
    assert not (folder / "1" / "error.log").exists()
    assert before == {n: (folder / n / "fastcomposer.safetensors").stat().st_mtime_ns for n in before}
    assert run(train, *settings, "name=alone", "method.caption_dropout=0.2")[0] == 0
    assert same_weights(folder / "1", "outputs/alone")
    assert swept_keys(folder, read_jobs(folder)) == ("method.caption_dropout",)
    assert json.loads((folder / "sweep.json").read_text())["command"] == "train"


def test_a_stopped_sweep_resumes_within_its_job(run: Run, settings: list[str]) -> None:
    call = ["-m", *settings, "name=stopped", "seed=1,2"]
    notice = ["+callbacks.notice._target_=notices.SignalAt", "+callbacks.notice.step=1"]
    status, _, err = run(train, *call, *notice, "+callbacks.notice.name=SIGTERM")
    assert status == 143
    assert "job 0 (seed=1): stopped by signal 15" in err and "job 1 (seed=2): has not begun" in err
    folder = Path("multirun/stopped")
    assert read_step(folder / "0" / "checkpoints" / "last.ckpt") == 2
    status, _, err = run(train, *call, "resume=auto")
    assert status == 0, err
    assert run(train, *settings, "name=alone", "seed=1")[0] == 0
    assert same_weights(folder / "0", "outputs/alone")


def test_the_record_of_a_job(tmp_path: Path) -> None:
    job = Job(1, tmp_path / "1", ("experiment=mini", "+a.b=0.5"), {"a": {"b": 0.5}})
    job.write()
    assert read_job(job.folder) == job
    assert job.chosen == {"experiment": "mini", "a.b": "0.5"}
    job.ended("failed", reason="no room").write()
    assert read_job(job.folder) == job.ended("failed", reason="no room")
    (tmp_path / "1" / "job.json").write_text('{"number": "x", "overrides": null}')
    with pytest.raises(ValueError, match=r"job\.json: number: .*; overrides: "):
        read_job(job.folder)
    job.write()
    plan = Plan("train", "python", ("a.b",), (("+a.b=0.1",), ("+a.b=0.5",)))
    begin_sweep(tmp_path, plan, "auto")
    assert [(found.number, found.status) for found in read_jobs(tmp_path)] == [(0, "waiting"), (1, "running")]
    with pytest.raises(ValueError, match="holds an earlier sweep, of which 0 jobs have finished"):
        begin_sweep(tmp_path, plan, None)
    begin_sweep(tmp_path, plan, "restart")
    assert [found.status for found in read_jobs(tmp_path)] == ["waiting", "waiting"]


def test_the_call_that_resumes() -> None:
    call = "python -m x -m a=1,2 resume=restart 'b=c d'"
    assert resumed(call) == "python -m x -m a=1,2 'b=c d' resume=auto"


@pytest.mark.slow
def test_every_job_of_a_sweep_has_its_own_two_processes(tmp_path: Path, settings: list[str]) -> None:
    two = ["trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2", "trainer.precision=32-true"]
    command = [sys.executable, "-m", "fastcomposer.cli.train"]
    for more in (["-m", "seed=1,2", "name=both"], ["seed=2", "name=alone"]):
        call = [*command, *more, *settings, *two]
        result = subprocess.run(call, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert result.returncode == 0, result.stderr
    assert [job.status for job in read_jobs(tmp_path / "multirun" / "both")] == ["finished"] * 2
    assert same_weights(tmp_path / "multirun" / "both" / "1", tmp_path / "outputs" / "alone")
