"""Logs of interrupted trainings, and without a server."""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import wandb
from configurations import composed
from hydra.utils import instantiate
from lightning.pytorch.callbacks import Callback
from notices import SignalAt
from small_training import log_rows

from fastcomposer.training.callbacks import GracefulStop
from fastcomposer.training.loggers import ContinuedCSVLogger, PatientWandbLogger, kept_open

Make = Callable[..., Any]


def of(part: str, found: list[dict[str, str]]) -> list[dict[str, str]]:
    """Rows of the training, or of validations."""
    return [row for row in found if row[f"{part}/denoise_loss"]]


class _Crash(Callback):
    """Breaks off right after a checkpoint, before the trainer logs the step."""

    def __init__(self, file: Path, step: int) -> None:
        self.file, self.step = file, step

    def on_train_batch_end(self, trainer: L.Trainer, *args: Any, **kwargs: Any) -> None:
        if trainer.global_step == self.step:
            trainer.save_checkpoint(self.file)
            raise ConnectionAbortedError


@pytest.fixture
def trained(make_module: Make, fit: Make) -> Make:
    """Train with a log and validation every second step; returns the log's rows."""

    def run(folder: Path, steps: int, resume: Path | None = None, **options: Any) -> list[dict[str, str]]:
        log = ContinuedCSVLogger(folder, name=None, version="logs")
        validation = {"limit_val_batches": 1, "val_check_interval": 2, "check_val_every_n_epoch": None}
        with contextlib.suppress(ConnectionAbortedError):
            fit(make_module(), steps, resume=resume, logger=log, **validation, **options)
        return log_rows(folder)

    return run


def test_a_killed_training_continues_its_log(trained: Make, tmp_path: Path) -> None:
    whole = trained(tmp_path / "whole", 8)
    folder = tmp_path / "run"
    trained(folder, 6)  # an earlier run, which the next ones know nothing of
    for step in (3, 4):  # validation is due after the fourth
        trained(folder, 8, callbacks=[_Crash(folder / f"{step}.ckpt", step)])
        with (folder / "logs" / "metrics.csv").open("a") as file:
            file.write("1,2")  # it was killed while it wrote
        resumed = trained(folder, 8, folder / f"{step}.ckpt")
        assert of("train", resumed) == of("train", whole)
        assert of("val", resumed) == of("val", whole)
    assert [int(row["step"]) for row in whole if row["train/loss"]] == list(range(8))
    assert len([row for row in whole if row["val/denoise_loss"]]) == 4


def test_a_stopped_training_continues_its_log(trained: Make, tmp_path: Path) -> None:
    whole = trained(tmp_path / "whole", 8)
    for step in (3, 4):
        folder = tmp_path / str(step)
        stop = [GracefulStop(folder), SignalAt(step - 1, "SIGTERM")]
        stopped = trained(folder, 8, callbacks=stop)
        assert len([row for row in stopped if row["train/loss"]]) == step
        assert len([row for row in stopped if row["val/denoise_loss"]]) == step // 2  # none that was not due
        assert trained(folder, 8, folder / "last.ckpt") == whole


@pytest.fixture
def unreachable(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the server of wandb be one that does not answer."""
    with socket.socket() as closed:  # a port of which nobody listens
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
    wandb.teardown()  # it reads the environment once in a process
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{port}")
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    monkeypatch.setenv("WANDB_SILENT", "true")


def test_an_offline_run_does_not_keep_the_next_one_offline(
    unreachable: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = PatientWandbLogger(offline=True, project="first", save_dir=tmp_path)
    assert first.experiment.offline
    first.close()
    assert f"To send it: wandb sync {tmp_path}" in capsys.readouterr().out
    second = PatientWandbLogger(timeout=1, project="second", save_dir=tmp_path)
    with pytest.warns(UserWarning, match="logs to files"):  # it has asked the server
        assert second.experiment.offline
    second.close()
    assert f"To send it: wandb sync {tmp_path}" in capsys.readouterr().out


def test_training_continues_without_the_server(
    unreachable: None,
    make_module: Make,
    make_data: Make,
    make_trainer: Make,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    config = composed("train", "logger=wandb", f"run_dir={tmp_path}", "logger.wandb.offline=false")
    logger = instantiate(config.logger.wandb, timeout=2)
    trainer = make_trainer(max_steps=3, logger=logger)
    warned = pytest.warns(UserWarning, match=r"wandb: .*The training continues and logs to files")
    with kept_open([logger]), warned:
        trainer.fit(make_module(), make_data())
    assert trainer.global_step == 3
    assert wandb.run is None  # another training of this process begins another
    (folder,) = tmp_path.glob("wandb/offline-run-*")
    assert f"To send it: wandb sync {folder}" in capsys.readouterr().out
    (log,) = folder.glob("*.wandb")
    deadline = time.monotonic() + 60  # another process writes it
    while log.stat().st_size < 1000 and time.monotonic() < deadline:
        time.sleep(0.1)
    assert log.stat().st_size > 1000
