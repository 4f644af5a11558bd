from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from mean_color import MeanColor
from small_training import saving

from fastcomposer import FastComposer
from fastcomposer.models.fusion import FusionConfig
from fastcomposer.models.weights_io import load_trained_weights
from fastcomposer.training.face_losses.readout import ReadOutLoss

Make = Callable[..., Any]


@pytest.mark.parametrize("num_tokens", [1, 3])
def test_the_states_of_each_subject_are_read(num_tokens: int, tiny_base: Any, golden: Any) -> None:
    model = FastComposer.from_pretrained(tiny_base, fusion=FusionConfig(num_tokens=num_tokens))
    model.set_trainable()
    batch = golden.batch()
    batch = batch.replace(
        subject_face_boxes=torch.tensor([4.0, 4.0, 24.0, 24.0]).expand(*batch.subject_present.shape, 4)
    )
    loss = ReadOutLoss(MeanColor())
    losses = model.training_losses(batch, generator=torch.Generator().manual_seed(0))
    loss.make_head(model, losses.prompt_embeds.shape[-1])
    value = loss(model, batch, losses)
    found = []
    for sample in range(len(batch)):
        for slot in batch.subject_present[sample].nonzero().flatten().tolist():
            columns = model.subject_columns(batch)[sample, slot].reshape(-1)
            states = losses.prompt_embeds[sample, columns].flatten()
            wanted = MeanColor()(
                batch.pixel_values[sample : sample + 1] / 2 + 0.5,
                batch.subject_face_boxes[sample : sample + 1],
            )[0, slot]
            found.append(1 - torch.cosine_similarity(loss.head(states), wanted, dim=0))
    torch.testing.assert_close(value, torch.stack(found).mean())
    value.backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in loss.head.parameters())
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in model.fusion.parameters())


def test_the_map_is_trained_and_not_exported(
    make_module: Make, make_data: Make, make_trainer: Make, small_base: Path, tmp_path: Path
) -> None:
    class Faces(ReadOutLoss):
        def forward(self, model: Any, batch: Any, *others: Any) -> torch.Tensor:
            boxes = torch.tensor([4.0, 4.0, 24.0, 24.0]).expand(*batch.subject_present.shape, 4)
            return super().forward(model, batch.replace(subject_face_boxes=boxes), *others)

    module = make_module(readout=Faces(MeanColor()), resampler_lr=1e-2)
    before = {name: value.clone() for name, value in module.readout.head.state_dict().items()}
    make_trainer(max_steps=2, **saving(tmp_path, "checkpoint", every=2)).fit(module, make_data())
    after = module.readout.head.state_dict()
    assert not any(torch.equal(before[name], after[name]) for name in before)
    (checkpoint,) = (tmp_path / "checkpoints").glob("step=*.ckpt")
    for file in (checkpoint, module.export(tmp_path / "export")):
        load_trained_weights(FastComposer.from_pretrained(small_base), file)
    saved = torch.load(checkpoint, weights_only=True)
    assert any(name.startswith("readout.") for name in saved["state_dict"])


def test_the_empty_prompt_follows_the_module(make_module: Make) -> None:
    """Its states give the width of the map before the module is moved to its device."""
    module = make_module(readout=ReadOutLoss(MeanColor())).to("meta")
    assert module._states_of_empty_prompt().tokens.is_meta
