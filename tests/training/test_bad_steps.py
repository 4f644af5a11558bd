"""Steps with losses and weights that are not finite."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import Callback
from small_training import saving, two
from torch.multiprocessing.spawn import ProcessRaisedException

from fastcomposer.training.base_module import NonFiniteLossError, NonFiniteWeightsError
from fastcomposer.training.checkpoints import CheckpointFiles, read_step
from fastcomposer.training.resuming import find_checkpoint
from fastcomposer.utils.errors import FaultError

Make = Callable[..., Any]


class _Poison(Callback):
    """Makes the gradients of chosen steps NaN."""

    def __init__(self, steps: set[int]) -> None:
        self.steps = steps

    def on_after_backward(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.global_step in self.steps:
            for parameter in pl_module.parameters():
                if parameter.grad is not None:
                    parameter.grad.fill_(float("nan"))


def test_single_bad_steps_pass_and_leave_finite_weights(make_module: Make, fit: Make) -> None:
    module = make_module()
    fit(module, 6, callbacks=[_Poison({2, 4})])
    assert module.global_step == 6
    assert all(
        value.isfinite().all() for value in module.model.state_dict().values() if value.is_floating_point()
    )


class _Seen(Callback):
    """Notes the records of each batch."""

    def __init__(self) -> None:
        self.records: list[tuple[str, ...]] = []

    def on_train_batch_start(self, trainer: L.Trainer, module: Any, batch: Any, batch_idx: int) -> None:
        self.records.append(batch.record_ids)


@pytest.mark.parametrize("parts", [1, 3])
def test_lasting_bad_steps_end_the_training_and_name_records(
    parts: int, make_module: Make, make_data: Make, make_trainer: Make
) -> None:
    module, seen = make_module(max_bad_steps=3), _Seen()
    callbacks = [_Poison(set(range(2, 20))), seen]
    trainer = make_trainer(max_steps=20, callbacks=callbacks, accumulate_grad_batches=parts)
    with pytest.raises(NonFiniteLossError, match=r"4 steps in a row.*method\.optimizer\.lr") as end:
        trainer.fit(module, make_data())
    assert len(seen.records) == 6 * parts
    last = [name for batch in seen.records[-parts:] for name in batch]
    assert len(last) == 2 * parts
    assert str(end.value).endswith(f"the records of the last batch: {', '.join(last)}")


class _Break(Callback):
    """Makes one number of what is trained, averaged or kept by the optimizer not finite after a step."""

    def __init__(self, step: int, part: str, rank: int = 0) -> None:
        self.step, self.part, self.rank = step, part, rank

    def on_train_batch_end(self, trainer: L.Trainer, module: Any, *args: Any, **kwargs: Any) -> None:
        if trainer.global_step != self.step or trainer.global_rank != self.rank:
            return
        (optimizer,) = trainer.optimizers
        parts = {
            "weights": [parameter.data for parameter in module.trained_parameters().values()],
            "ema": module.ema.shadow_params,
            "states": [state["exp_avg_sq"] for state in optimizer.state.values()],
        }
        parts[self.part][-1].view(-1)[-1] = float("inf" if self.part == "states" else "nan")


@pytest.fixture
def saved(make_module: Make, fit: Make, tmp_path: Path) -> Callable[..., Any]:
    """Train six steps with a checkpoint every second one; returns the files' steps and the error."""

    def run(breaks: Callback, keep: str = "checkpoint", **settings: Any) -> tuple[set[int], str]:
        settings |= saving(tmp_path, keep)
        settings["callbacks"] = [breaks, *settings["callbacks"]]
        with pytest.raises((NonFiniteWeightsError, ProcessRaisedException), match="not finite") as end:
            fit(make_module(), 6, **settings)
        return {read_step(file) for file in (tmp_path / "checkpoints").glob("*.ckpt")}, str(end.value)

    return run


@pytest.mark.parametrize("part", ["weights", "ema", "states"])
def test_no_checkpoint_is_saved_that_is_not_finite(
    part: str, saved: Callable[..., Any], tmp_path: Path
) -> None:
    steps, message = saved(_Break(5, part))
    assert steps == {2, 4}  # the two good ones stay
    assert "after step 6 " in message and "method.optimizer.lr" in message and "resume=auto" in message
    assert f"{tmp_path}/checkpoints/last.ckpt" in message
    assert read_step(tmp_path / "checkpoints" / "last.ckpt") == 4


def test_nothing_is_left_by_a_training_without_any_finite_checkpoint(saved: Callable[..., Any]) -> None:
    steps, message = saved(_Break(1, "weights"), keep="stop")  # which saves the end alone
    assert steps == set()
    assert "after step 6 " in message and "resume=restart" in message


def test_processes_refuse_together_what_is_not_finite_on_one(saved: Callable[..., Any]) -> None:
    steps, _ = saved(_Break(3, "states", rank=1), **two())
    assert steps == {2}


def test_checkpoints_that_are_not_finite_are_skipped(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for step, last in ((2, 1.0), (4, float("nan"))):
        states = {"state": {0: {"exp_avg": torch.tensor([0.0, last])}}}
        content = {"global_step": step, "state_dict": {"a": torch.ones(2)}, "optimizer_states": [states]}
        CheckpointFiles().save_checkpoint(content, tmp_path / f"step={step:06d}.ckpt")
    (tmp_path / "last.ckpt").symlink_to("step=000004.ckpt")
    assert find_checkpoint("auto", tmp_path) == tmp_path / "step=000002.ckpt"
    message = capsys.readouterr().err
    named = "(optimizer_states.0.state.0.exp_avg)"
    assert f"{tmp_path}/last.ckpt holds numbers that are not finite {named}" in message
    (tmp_path / "step=000002.ckpt").unlink()
    for resume in ("auto", str(tmp_path / "step=000004.ckpt")):
        with pytest.raises(FaultError, match=r"not finite \(optimizer_states\.0\.state\.0\.exp_avg\)"):
            find_checkpoint(resume, tmp_path)
