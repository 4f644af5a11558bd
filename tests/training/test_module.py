"""The training recipe, on a tiny model."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.plugins import MixedPrecision

from fastcomposer.batch import SubjectBatch
from fastcomposer.models.fusion import FusionConfig
from fastcomposer.models.weights_io import load_trained_weights, read_training_length
from fastcomposer.training.module import FastComposerModule, drop_conditions
from fastcomposer.training.optimizers import AdamW

Make = Callable[..., Any]


def weights(module: FastComposerModule) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in module.model.state_dict().items()}


def test_200_steps_equal_100_resumed_for_100_more(make_module: Make, fit: Make, tmp_path: Path) -> None:
    straight = make_module()
    fit(straight, 200)
    first = make_module()
    trainer = fit(first, 100)
    trainer.save_checkpoint(tmp_path / "half.ckpt")
    torch.manual_seed(99)  # another process starts with other global random numbers
    second = make_module()
    fit(second, 200, resume=tmp_path / "half.ckpt")
    assert second.global_step == 200
    one, other = weights(straight), weights(second)
    assert [name for name in one if not torch.equal(one[name], other[name])] == []
    with straight.averaged_weights(), second.averaged_weights():
        one, other = weights(straight), weights(second)
        assert [name for name in one if not torch.equal(one[name], other[name])] == []


def test_frozen_parts_stay_and_checkpoints_hold_trained_ones_only(
    make_module: Make, fit: Make, tmp_path: Path
) -> None:
    module = make_module(train_backbone=False)
    before = weights(module)
    trainer = fit(module, 3)
    after = weights(module)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    parts = {".".join(name.split(".")[:1]) for name in changed}
    assert parts == {"fusion", "image_encoder"}
    assert all("encoder.layers.2." in name for name in changed if name.startswith("image_encoder"))
    trainer.save_checkpoint(tmp_path / "x.ckpt")
    stored = torch.load(tmp_path / "x.ckpt", weights_only=True)["state_dict"]
    assert {name.removeprefix("model.") for name in stored} == set(module.model.trainable_state_dict())
    assert not module.model.vae.training
    assert not module.model.text_encoder.training


def test_exported_weights_are_the_average_and_load_again(
    make_module: Make, fit: Make, tmp_path: Path
) -> None:
    module = make_module()
    trainer = fit(module, 5)
    file = module.export(tmp_path)
    trainer.save_checkpoint(tmp_path / "checkpoints" / "last.ckpt")
    for source in (file, tmp_path, tmp_path / "checkpoints" / "last.ckpt"):
        fresh = make_module().model
        load_trained_weights(fresh, source)
        with module.averaged_weights():
            for name, value in module.model.state_dict().items():
                assert torch.equal(value, fresh.state_dict()[name]), (source, name)
    with pytest.raises(FileNotFoundError, match="nothing"):
        load_trained_weights(fresh, tmp_path / "nothing")


def test_what_earlier_weights_brought_stays_where_it_is_frozen(
    make_module: Make, fit: Make, tmp_path: Path
) -> None:
    first = make_module(ema_decay=None)
    fit(first, 2)
    first.export(tmp_path / "first")
    second = make_module(
        weights=tmp_path / "first", train_backbone=False, vision_layers=0, caption_dropout=0.0, ema_decay=None
    )
    trainer = fit(second, 1)
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    second.export(tmp_path / "second")
    expected, untrained = weights(second), weights(make_module())
    assert not torch.equal(expected["unet.conv_in.weight"], untrained["unet.conv_in.weight"])
    for source in (tmp_path / "second", tmp_path / "last.ckpt"):
        fresh = make_module()
        load_trained_weights(fresh.model, source)
        found = weights(fresh)
        assert [name for name in expected if not torch.equal(found[name], expected[name])] == []


def test_training_continues_from_trained_weights_and_counts_their_steps(
    make_module: Make, fit: Make, tmp_path: Path
) -> None:
    first = make_module()
    fit(first, 3)
    first.export(tmp_path / "first")
    known = read_training_length(tmp_path / "first")
    assert known.steps == 3
    assert known.minutes > 0
    second = make_module(weights=tmp_path / "first")
    with first.averaged_weights():
        one, other = weights(first), weights(second)
        assert [name for name in one if not torch.equal(one[name], other[name])] == []
    trainer = fit(second, 2)
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    length = read_training_length(tmp_path / "last.ckpt")
    assert length.steps == 5
    assert length.minutes > known.minutes
    third = make_module(weights=tmp_path / "first")
    fit(third, 4, resume=tmp_path / "last.ckpt")
    assert third.length.steps == 7
    assert third.length.minutes > length.minutes
    with pytest.raises(FileNotFoundError, match="nowhere"):
        make_module(weights=tmp_path / "nowhere")


def some_batch(count: int, slots: int = 2) -> SubjectBatch:
    return SubjectBatch(
        pixel_values=torch.zeros(count, 3, 8, 8),
        input_ids=torch.ones(count, 77, dtype=torch.long),
        subject_pixel_values=torch.zeros(count, slots, 3, 4, 4),
        subject_token_idx=torch.ones(count, slots, dtype=torch.long),
        subject_present=torch.ones(count, slots, dtype=torch.bool),
        subject_masks=torch.zeros(count, slots, 8, 8),
    )


def test_conditions_are_dropped_as_often_as_asked() -> None:
    empty = torch.full((77,), 7)
    batch = drop_conditions(some_batch(20_000), empty, 0.1, 0.3, torch.Generator().manual_seed(0))
    lost = (batch.input_ids == 7).all(dim=1)
    assert abs(lost.float().mean().item() - 0.1) < 0.01
    assert not batch.subject_present[lost].any()
    assert abs(batch.subject_present[~lost].float().mean().item() - 0.7) < 0.01
    kept = drop_conditions(some_batch(50), empty, 0.0, 0.0, torch.Generator().manual_seed(0))
    assert kept.subject_present.all() and (kept.input_ids == 1).all()
    # Subjects are dropped one by one, not a sample's all together.
    both = batch.subject_present[~lost].all(dim=1).float().mean().item()
    assert abs(both - 0.49) < 0.015


def test_learning_rate_warms_up_and_cools_down(make_module: Make, fit: Make) -> None:
    seen: list[float] = []

    class Watch(Callback):
        def on_before_optimizer_step(self, trainer: L.Trainer, module: Any, optimizer: Any) -> None:
            seen.append(optimizer.param_groups[0]["lr"])

    optimizer = partial(torch.optim.AdamW, lr=1.0e-3)
    module = make_module(warmup_steps=4, cooldown=0.5, optimizer=optimizer)
    fit(module, 10, callbacks=[Watch()])
    assert seen[:4] == pytest.approx([0.25e-3, 0.5e-3, 0.75e-3, 1e-3])
    assert seen[5:] == pytest.approx([1e-3, 0.8e-3, 0.6e-3, 0.4e-3, 0.2e-3], rel=0.26)
    assert seen[-1] < seen[-2] < seen[-3]


def test_fused_steps_in_mixed_precision_are_clipped(make_module: Make, fit: Make) -> None:
    module = make_module(optimizer=AdamW(lr=1e-3), gradient_checkpointing=True, ema_decay=None)
    before = weights(module)
    trainer = fit(module, 1, precision="bf16-mixed", accumulate_grad_batches=2, gradient_clip_val=1e-3)
    assert trainer.callback_metrics["train/grad_norm"] > 1e-2
    gradients = [p.grad for p in module.trained_parameters().values() if p.grad is not None]
    assert torch.nn.utils.get_total_norm(gradients).item() == pytest.approx(1e-3, rel=1e-2)
    assert not torch.equal(before["unet.conv_in.weight"], module.model.unet.conv_in.weight)


@pytest.mark.parametrize("clip", [1.0, None])
def test_fused_steps_are_refused_where_float16_is_scaled(
    clip: float | None, make_module: Make, fit: Make
) -> None:
    scaled = MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu"))  # type: ignore[attr-defined]
    with pytest.raises(ValueError, match=r"set method\.optimizer\.implementation=foreach"):
        fit(make_module(optimizer=AdamW()), 1, plugins=[scaled], gradient_clip_val=clip)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"caption_dropout": 1.5}, r"method\.caption_dropout=1\.5"),
        ({"cooldown": 2}, "cooldown=2"),
        ({"ema_decay": 1.0}, "ema_decay=1.0"),
        ({"warmup_steps": -5}, r"method\.warmup_steps=-5: must not be negative"),
        ({"compile": "quick"}, "compile=quick: torch has the backends"),
        ({"compile": "eager", "gradient_checkpointing": True}, r"method\.compile with .*set one of them"),
        ({"train_backbone": "lor"}, r"method\.train_backbone=lor"),
        ({"train_backbone": False, "train_fusion": False, "vision_layers": 0}, "nothing to train"),
    ],
)
def test_bad_settings_are_named_before_anything_loads(
    make_module: Make, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        make_module(**settings)


@pytest.mark.parametrize(("most", "fits"), [(4, 18), (None, 75)])
def test_more_tokens_than_a_prompt_holds_are_refused(most: int | None, fits: int, make_module: Make) -> None:
    make_module(fusion=FusionConfig(num_tokens=fits), max_subjects=most)
    with pytest.raises(ValueError, match=r"fusion\.num_tokens=.* model\.max_subjects="):
        make_module(fusion=FusionConfig(num_tokens=fits + 1), max_subjects=most)
    make_module(max_subjects=100)
