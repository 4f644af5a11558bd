from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler
from mean_color import MeanColor
from torch import Tensor

from fastcomposer import FastComposer
from fastcomposer.models.families.sd3 import SD3Family
from fastcomposer.models.text import TextStates
from fastcomposer.training.face_losses.matching import MatchingReward

TIMESTEPS = [900, 600, 300]
BOXES = {0: [[2.0, 2.0, 14.0, 14.0], [16.0, 8.0, 30.0, 24.0]], 1: [[4.0, 4.0, 20.0, 28.0]]}


class FixedFaces:
    """Finds the faces of :data:`BOXES` by the number of the image."""

    def __call__(self, images: Tensor) -> list[Tensor]:
        return [torch.tensor(BOXES.get(row, [])).reshape(-1, 4) for row in range(len(images))]


@pytest.fixture
def batch(batch: Any) -> Any:
    boxes = batch.subject_face_boxes.clone()
    boxes[:, 1] = torch.tensor([2.0, 20.0, 12.0, 31.0])
    return batch.replace(subject_face_boxes=boxes)


def reward(**settings: Any) -> MatchingReward:
    return MatchingReward(MeanColor(), FixedFaces(), TIMESTEPS, fraction=1.0, **settings)


def call(loss: MatchingReward, model: FastComposer, batch: Any) -> Tensor:
    sources = [torch.Generator().manual_seed(row) for row in range(len(batch))]
    losses = model.training_losses(batch, generator=sources)
    sources = [torch.Generator().manual_seed(10 + row) for row in range(len(batch))]
    empty = model.text.encode(torch.tensor([model.tokenizer("", padding="max_length").input_ids]))
    return loss(model, batch, losses, empty, sources)


def test_faces_found_are_matched_one_to_one(
    model: FastComposer, batch: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = torch.rand(len(batch), 3, 32, 32, generator=torch.Generator().manual_seed(0))
    loss, seen = reward(separation=0.5), []
    monkeypatch.setattr(MatchingReward, "decode", lambda self, model, latents: images)
    select = type(batch).select
    monkeypatch.setattr(type(batch), "select", lambda self, rows: (seen.append(rows), select(self, rows))[1])
    value = call(loss, model, batch)
    right, wrong = [], []
    for row, boxes in BOXES.items():
        sample = int(seen[0][row])
        there = batch.subject_present[sample]
        target = batch.pixel_values[sample : sample + 1] / 2 + 0.5
        wanted = MeanColor()(target, batch.subject_face_boxes[sample : sample + 1])[0][there]
        table = MeanColor()(images[row : row + 1], torch.tensor([boxes]))[0] @ wanted.T
        straight = [table[i, i] for i in range(min(table.shape))]
        crossed = [table[i, -1 - i] for i in range(min(table.shape))]
        best = straight if sum(straight) >= sum(crossed) else crossed
        if min(table.shape) == 1:
            best = [table.max()]
        right += best
        wrong += [one for one in table.flatten() if not any(one is b or one == b for b in best)]
    expected = 1 - torch.stack(right).mean() + 0.5 * torch.stack(wrong).relu().mean()
    torch.testing.assert_close(value, expected)


def test_gradients_flow_through_the_chosen_steps_alone(
    model: FastComposer, batch: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    model.set_trainable()
    tracked = []
    predict = FastComposer.predict

    def watch(self: FastComposer, noisy: Tensor, timesteps: Tensor, *others: Any) -> Tensor:
        found = predict(self, noisy, timesteps, *others)
        if len(timesteps.unique()) == 1 and int(timesteps[0]) in TIMESTEPS:
            tracked.append((int(timesteps[0]), found.requires_grad))
            assert not noisy.requires_grad
        return found

    loss = reward(gradient_steps=2, separation=0.0)
    monkeypatch.setattr(FastComposer, "predict", watch)
    value = call(loss, model, batch)
    guided = [at for at, learns in tracked if learns]
    assert len(tracked) == 2 * len(TIMESTEPS) and guided[0] == TIMESTEPS[0] and len(guided) == 2
    value.backward()
    for part in (model.backbone, model.fusion):
        assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in part.parameters())


def test_faces_are_compared_in_float32_under_autocast(model: FastComposer, batch: Any) -> None:
    class Matrix(MeanColor):
        def forward(self, images: Tensor, boxes: Tensor) -> Tensor:
            return super().forward(images, boxes) @ torch.eye(3)  # in bfloat16 under autocast

    loss = MatchingReward(Matrix(), FixedFaces(), TIMESTEPS, fraction=1.0)
    with torch.autocast("cpu", torch.bfloat16):
        value = call(loss, model, batch)
    assert value.dtype == torch.float32 and value.isfinite() and value != 0


def test_images_without_faces_give_nothing(model: FastComposer, batch: Any) -> None:
    loss = reward()
    loss.detector = lambda images: [torch.zeros(0, 4)] * len(images)
    assert call(loss, model, batch) == 0


@pytest.mark.parametrize(
    ("settings", "key"),
    [
        ({"timesteps": [100, 200]}, "timesteps"),
        ({"timesteps": []}, "timesteps"),
        ({"gradient_steps": 4}, "gradient_steps"),
        ({"weight": 0.0}, "weight"),
        ({"embedder": None}, "embedder"),
        ({"detector": None}, "detector"),
    ],
)
def test_bad_settings_are_refused(settings: dict[str, Any], key: str) -> None:
    with pytest.raises(ValueError, match=rf"reward\.loss\.{key}"):
        usual = {"embedder": MeanColor(), "detector": FixedFaces(), "timesteps": TIMESTEPS}
        MatchingReward(**usual | settings)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_a_step_is_that_of_ddim(model: FastComposer, prediction: str) -> None:
    model.noise_scheduler.register_to_config(prediction_type=prediction)
    scheduler = DDIMScheduler.from_config(
        model.noise_scheduler.config, timestep_spacing="trailing", clip_sample=False
    )
    scheduler.set_timesteps(5)
    noisy, predicted = torch.randn(2, 1, 4, 8, 8).unbind()
    now, following = scheduler.timesteps[1], scheduler.timesteps[2]
    expected = scheduler.step(predicted, now, noisy).prev_sample
    clean = model.family.clean_latents(noisy, predicted, now[None])
    found = model.family.denoise(noisy, clean, now[None], following[None])
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_a_step_is_that_of_eulers_method_for_flows() -> None:
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    scheduler.set_timesteps(4)
    family = SD3Family(None, scheduler)
    noisy, predicted = torch.randn(2, 1, 4, 8, 8).unbind()
    now, following = scheduler.timesteps[1], scheduler.timesteps[2]
    expected = scheduler.step(predicted, now, noisy.clone()).prev_sample
    clean = family.clean_latents(noisy, predicted, now[None])
    torch.testing.assert_close(family.denoise(noisy, clean, now[None], following[None]), expected)


def test_states_of_one_prompt_are_those_of_several() -> None:
    states = TextStates(torch.randn(1, 7, 4), torch.randn(1, 3)).expand(5)
    assert states.tokens.shape == (5, 7, 4) and states.pooled is not None and states.pooled.shape == (5, 3)
