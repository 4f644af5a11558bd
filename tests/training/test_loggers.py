"""Logs of interrupted trainings, and without a server."""

from __future__ import annotations

import csv
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from configurations import composed
from hydra.utils import instantiate

from fastcomposer.training.loggers import ContinuedCSVLogger

Make = Callable[..., Any]


def rows(folder: Path) -> list[dict[str, str]]:
    """All that was logged but the epoch: the step that a training was to end at counts as an epoch's end."""
    with (folder / "logs" / "metrics.csv").open() as file:
        return [{key: value for key, value in row.items() if key != "epoch"} for row in csv.DictReader(file)]


@pytest.fixture
def trained(make_module: Make, make_data: Make, make_trainer: Make, tmp_path: Path) -> Make:
    """Train with a log and a checkpoint at the end; returns the log's rows."""

    def fit(folder: Path, steps: int, resume: Path | None = None, **logger: Any) -> list[dict[str, str]]:
        log = ContinuedCSVLogger(folder, name=None, version="logs", **logger)
        trainer = make_trainer(max_steps=steps, logger=log, limit_val_batches=1, val_check_interval=2)
        trainer.fit(make_module(), make_data(), ckpt_path=resume, weights_only=True)
        trainer.save_checkpoint(folder / f"{steps}.ckpt")
        return rows(folder)

    return fit


def test_a_resumed_training_continues_its_log(trained: Make, tmp_path: Path) -> None:
    whole = trained(tmp_path / "whole", 8)
    folder = tmp_path / "run"
    trained(folder, 3)
    trained(folder, 6)  # a new run, of which the log knows nothing of the one before
    assert len(rows(folder)) == len([row for row in whole if int(row["step"]) < 6])
    # Killed while it wrote, after step 6: the rows from the checkpoint on come again, the half row is gone.
    with (folder / "logs" / "metrics.csv").open("a") as file:
        file.write("1,2")
    resumed = trained(folder, 8, folder / "3.ckpt")
    assert resumed == whole
    assert [int(row["step"]) for row in resumed if row["train/loss"]] == list(range(8))


def test_rows_are_written_once(tmp_path: Path) -> None:
    log = ContinuedCSVLogger(tmp_path, name=None, version="logs", flush_logs_every_n_steps=1000)
    log.keep_before(0)
    log.log_metrics({"a": 1.0}, step=0)
    assert not (tmp_path / "logs" / "metrics.csv").exists()
    log.save()
    assert rows(tmp_path) == [{"a": "1.0", "step": "0"}]
    again = ContinuedCSVLogger(tmp_path, name=None, version="logs")
    again.keep_before(5)
    assert rows(tmp_path) == [{"a": "1.0", "step": "0"}]  # nothing is removed before there is more
    again.log_metrics({"b": 2.0}, step=5)
    again.save()
    again.log_metrics({"b": 3.0}, step=6)
    again.save()
    assert [(row["a"], row["b"], row["step"]) for row in rows(tmp_path)] == [
        ("1.0", "", "0"),
        ("", "2.0", "5"),
        ("", "3.0", "6"),
    ]


def test_training_goes_on_without_the_server(
    make_module: Make,
    make_data: Make,
    make_trainer: Make,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with socket.socket() as closed:  # a port of which nobody listens
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
    monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{port}")
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    monkeypatch.setenv("WANDB_SILENT", "true")
    config = composed("train", "logger=wandb", f"run_dir={tmp_path}", "logger.wandb.offline=false")
    logger = instantiate(config.logger.wandb, timeout=2)
    trainer = make_trainer(max_steps=3, logger=logger)
    with pytest.warns(UserWarning, match=r"wandb: .*The training goes on and keeps its log in files"):
        trainer.fit(make_module(), make_data())
    assert trainer.global_step == 3
    assert logger.experiment.summary["train/denoise_loss"] > 0
    logger.experiment.finish()
    (folder,) = tmp_path.glob("wandb/offline-run-*")
    assert f"To send it: wandb sync {folder}" in capsys.readouterr().out
    (log,) = folder.glob("*.wandb")
    deadline = time.monotonic() + 60  # another process writes it
    while log.stat().st_size < 1000 and time.monotonic() < deadline:
        time.sleep(0.1)
    assert log.stat().st_size > 1000
