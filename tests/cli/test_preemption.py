"""Trainings that a scheduler ends."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from small_training import bare_training

from fastcomposer.cli import train
from fastcomposer.cli.common import _ending_on_sigterm
from fastcomposer.training.checkpoints import read_step

_JOB = {"JOB_ID": "42", "JOB_NAME": "train", "NTASKS": "1", "PROCID": "0", "LOCALID": "0", "NODEID": "0"}


def test_a_preempted_job_saves_and_is_requeued(
    world: Path,
    small_base: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bin").mkdir()
    scontrol = tmp_path / "bin" / "scontrol"
    scontrol.write_text('#!/bin/sh\necho "$@" >> asked\n')
    scontrol.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    for name, value in _JOB.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    settings = bare_training(small_base, world, 5, "resume=auto")
    notice = ["+callbacks.notice._target_=notices.SignalAt", "+callbacks.notice.step=2"]

    def call(*more: str) -> int:
        monkeypatch.setattr(sys, "argv", ["train", *settings, *more])
        try:
            train.main()
        except SystemExit as end:
            return int(end.code or 0)
        return 0

    assert call("name=full") == 0
    assert call("name=run", *notice, "+callbacks.notice.name=SIGUSR1") == 138
    printed = capsys.readouterr().out
    assert "3 steps are done. resume=auto" in printed
    assert f"SIGUSR1: stopped after step 3; {tmp_path}/outputs/run/checkpoints/last.ckpt is saved" in printed
    assert (tmp_path / "asked").read_text() == "requeue 42\n"
    assert read_step(Path("outputs/run/checkpoints/last.ckpt")) == 3
    assert call("name=run", *notice, "+callbacks.notice.name=SIGTERM", "callbacks.notice.step=3") == 143
    assert read_step(Path("outputs/run/checkpoints/last.ckpt")) == 4
    assert (tmp_path / "asked").read_text() == "requeue 42\n"  # SIGTERM asks for nothing
    cut = Path("outputs/run/checkpoints/.cut.ckpt.tmp")
    cut.touch()  # as of a training that was killed while it saved
    assert call("name=run") == 0
    assert not cut.exists()
    full, run = (load_file(f"outputs/{name}/fastcomposer.safetensors") for name in ("full", "run"))
    assert full.keys() == run.keys()
    assert all(torch.equal(full[name], run[name]) for name in full)


def test_sigterm_sets_the_status_though_cleaning_up_fails() -> None:
    def clean_up() -> None:
        raise RuntimeError("half set up")

    with pytest.raises(SystemExit, match="143"), _ending_on_sigterm():
        try:
            signal.raise_signal(signal.SIGTERM)
        finally:
            clean_up()
    with pytest.raises(RuntimeError, match="half set up"), _ending_on_sigterm():
        clean_up()
