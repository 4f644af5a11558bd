from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import Callback
from mean_color import MeanColor
from small_training import two

from fastcomposer.training.face_losses.face_loss import FaceLoss

Make = Callable[..., Any]
WITH_FACES = {(0, 0), (0, 1), (2, 0)}
"""Steps and processes whose batch has faces."""


class SomeFaces(FaceLoss):
    """2 on the first process and 4 on the second, where there are faces."""

    at: Callable[[], tuple[int, int]]

    def forward(self, *_: Any) -> torch.Tensor:
        step, rank = self.at()
        return torch.tensor(2.0 * (1 + rank) * ((step, rank) in WITH_FACES))


class Log(Callback):
    def __init__(self, file: Path) -> None:
        self.file, self.rows = file, []  # type: ignore[var-annotated]

    def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
        logged = trainer.callback_metrics
        self.rows.append({name: logged[name].item() for name in ("train/identity_loss", "train/loss")})
        if trainer.is_global_zero:
            torch.save(self.rows, self.file)


@pytest.mark.parametrize(
    ("processes", "logged", "added"),
    [(dict, [2.0, math.nan, 2.0], [2.0, 0.0, 2.0]), (two, [3.0, math.nan, 2.0], [3.0, 0.0, 1.0])],
)
def test_batches_without_faces_are_left_out_of_the_log_alone(
    processes: Callable[[], dict[str, Any]],
    logged: list[float],
    added: list[float],
    make_module: Make,
    make_data: Make,
    make_trainer: Make,
    tmp_path: Path,
) -> None:
    totals = []
    for weight in (1.0, 1e-9):
        loss = SomeFaces(MeanColor(), weight=weight)
        module = make_module(identity=loss)
        loss.at = lambda module=module: (module.global_step, module.global_rank)
        make_trainer(max_steps=3, callbacks=[Log(tmp_path / "log.pt")], **processes()).fit(
            module, make_data()
        )
        rows = torch.load(tmp_path / "log.pt")
        assert [row["train/identity_loss"] for row in rows] == pytest.approx(logged, nan_ok=True)
        totals.append([row["train/loss"] for row in rows])
    assert [one - other for one, other in zip(*totals, strict=True)] == pytest.approx(added, abs=1e-5)
