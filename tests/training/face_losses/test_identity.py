from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from mean_color import MeanColor
from tiny_architectures import batch_of, narrow
from torch import Tensor

from fastcomposer import FastComposer
from fastcomposer.models.fusion import FusionConfig
from fastcomposer.training.face_losses.identity import IdentityLoss
from fastcomposer.training.face_losses.readout import ReadOutLoss


def encoded(model: FastComposer, batch: Any) -> Tensor:
    return model.vae.encode(batch.pixel_values).latent_dist.mode() * model.vae.config.scaling_factor


def compare(
    loss: IdentityLoss, model: FastComposer, latents: Tensor, timesteps: Tensor, batch: Any
) -> Tensor:
    predicted = SimpleNamespace(clean_latents=latents, noisy_latents=latents, timesteps=timesteps)
    return loss(model, batch, predicted)


def test_faces_are_compared_where_the_noise_level_counts(model: FastComposer, batch: Any) -> None:
    loss = IdentityLoss(MeanColor(), timesteps=(500, 999))
    latents = encoded(model, batch).requires_grad_()
    timesteps = torch.full((len(batch),), 100)
    timesteps[0] = 700
    found = compare(loss, model, latents, timesteps, batch)
    decoded = model.vae.decode(latents[:1] / model.vae.config.scaling_factor).sample / 2 + 0.5
    boxes = batch.subject_face_boxes[:1]
    one, other = (MeanColor()(x, boxes)[0, 0] for x in (decoded, batch.pixel_values[:1] / 2 + 0.5))
    torch.testing.assert_close(found, 1 - one @ other)
    found.backward()
    assert latents.grad is not None
    touched = latents.grad.abs().sum((1, 2, 3)) > 0
    assert touched.tolist() == [True] + [False] * (len(batch) - 1)


def test_several_steps_sample_on_from_the_prediction(model: FastComposer, batch: Any) -> None:
    seen: list[Tensor] = []

    class Watching(MeanColor):
        def forward(self, images: Tensor, boxes: Tensor) -> Tensor:
            seen.append(images)
            return super().forward(images, boxes)

    model.set_trainable()
    timesteps = torch.full((len(batch),), 900)
    losses = model.training_losses(
        batch, timesteps=timesteps, generator=torch.Generator().manual_seed(0), skip_empty=True
    )
    value = IdentityLoss(Watching(), steps=3)(model, batch, losses)
    with torch.no_grad():
        noisy, prediction = losses.noisy_latents, losses.noise_pred
        for now, following in pairwise(torch.tensor([900, 600, 300])[:, None].expand(-1, len(batch))):
            clean = model.family.clean_latents(noisy, prediction, now)
            noisy = model.family.denoise(noisy, clean, now, following)
            prediction = model.predict(noisy, following, losses.prompt_embeds, None)
        clean = model.family.clean_latents(noisy, prediction, following)
        expected = model.vae.decode(clean / model.vae.config.scaling_factor).sample / 2 + 0.5
    found = seen[1][torch.argsort(seen[1].mean((1, 2, 3)))]
    torch.testing.assert_close(found, expected[torch.argsort(expected.mean((1, 2, 3)))], rtol=1e-3, atol=1e-4)
    value.backward()
    assert all(p.grad is not None for p in model.backbone.parameters())


def test_gradients_reach_a_transformer_through_flow_matching(tmp_path: Path) -> None:
    folder = narrow("sd3", tmp_path / "sd3")
    model = FastComposer.from_pretrained("no/base", architecture=folder, weights="random")
    batch = batch_of(model)
    boxes = torch.tensor([8.0, 8.0, 40.0, 40.0]).expand(*batch.subject_present.shape, 4)
    batch, loss = batch.replace(subject_face_boxes=boxes), IdentityLoss(MeanColor())
    rng = torch.Generator().manual_seed(0)
    losses = model.training_losses(batch, generator=rng)
    assert losses.timesteps.is_floating_point()
    loss(model, batch, losses).backward()
    reached = [p.grad is not None and p.grad.abs().sum() > 0 for p in model.transformer.proj_out.parameters()]
    assert all(reached) and model.fusion.first.mlp1.fc1.weight.grad.norm() > 0
    # Without noise the prediction counts for nothing.
    latents = torch.randn(2, 16, 8, 8, generator=rng)
    clean = model.training_losses(batch, latents=latents, timesteps=torch.zeros(2)).clean_latents
    assert torch.equal(clean, latents)
    losses = model.training_losses(batch, timesteps=torch.tensor([0.0, 700.0]), generator=rng)
    value = IdentityLoss(MeanColor(), steps=2)(model, batch, losses)
    value.backward()
    assert value.isfinite() and model.transformer.proj_out.weight.grad.isfinite().all()


@pytest.mark.parametrize("steps", [1, 2])
def test_faces_are_embedded_in_float32_under_autocast(model: FastComposer, batch: Any, steps: int) -> None:
    class Matrix(MeanColor):
        def forward(self, images: Tensor, boxes: Tensor) -> Tensor:
            assert images.dtype == (images @ torch.eye(images.shape[-1])).dtype == torch.float32
            return super().forward(images, boxes)

    with torch.autocast("cpu", torch.bfloat16):
        losses = model.training_losses(batch, generator=torch.Generator().manual_seed(0))
        assert IdentityLoss(Matrix(), steps=steps)(model, batch, losses).isfinite()
        readout = ReadOutLoss(Matrix())
        readout.make_head(model, losses.prompt_embeds.shape[-1])
        assert readout(model, batch, losses).isfinite()


def test_nothing_counts_without_faces(model: FastComposer, batch: Any) -> None:
    loss = IdentityLoss(MeanColor())
    none = batch.replace(subject_face_boxes=torch.zeros_like(batch.subject_face_boxes))
    timesteps = torch.zeros(len(batch)).long()
    assert compare(loss, model, encoded(model, batch), timesteps, none) == 0
    with pytest.raises(ValueError, match="subject_face_boxes"):
        compare(loss, model, encoded(model, batch), timesteps, batch.replace(subject_face_boxes=None))


def test_checkpointing_changes_no_gradient(model: FastComposer, batch: Any) -> None:
    gradients = []
    for checkpointing in (False, True):
        latents = encoded(model, batch).requires_grad_()
        loss = IdentityLoss(MeanColor(), checkpointing=checkpointing)
        compare(loss, model, latents, torch.zeros(len(batch)).long(), batch).backward()
        gradients.append(latents.grad)
    assert torch.equal(*gradients)


def test_the_weight_grows() -> None:
    loss = IdentityLoss(MeanColor(), weight=0.2, warmup_steps=4)
    assert [loss.weight_at(step) for step in (0, 1, 9)] == pytest.approx([0.05, 0.1, 0.2])


@pytest.mark.parametrize(
    ("settings", "key"),
    [
        ({"embedder": None}, "embedder"),
        ({"weight": 0.0}, "weight"),
        ({"fraction": 0.0}, "fraction"),
        ({"timesteps": (9, 5)}, "timesteps"),
        ({"steps": 0}, "steps"),
    ],
)
def test_bad_settings_are_refused(settings: dict[str, Any], key: str) -> None:
    with pytest.raises(ValueError, match=rf"identity\.loss\.{key}"):
        IdentityLoss(**{"embedder": MeanColor()} | settings)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_the_clean_latent_comes_out_of_the_true_prediction(model: FastComposer, prediction: str) -> None:
    model.noise_scheduler.register_to_config(prediction_type=prediction)
    clean, noise = torch.randn(2, 4, 8, 8), torch.randn(2, 4, 8, 8)
    timesteps = torch.tensor([20, 900])
    noisy = model.noise_scheduler.add_noise(clean, noise, timesteps)
    target = noise if prediction == "epsilon" else model.noise_scheduler.get_velocity(clean, noise, timesteps)
    torch.testing.assert_close(
        model.family.clean_latents(noisy, target, timesteps), clean, rtol=1e-3, atol=1e-4
    )


def test_routing_draws_nothing_beyond_the_batch_s_own_noise(tiny_base: Any, batch: Any) -> None:
    model = FastComposer.from_pretrained(tiny_base, fusion=FusionConfig(routing=True))
    model.set_trainable()
    model.train()
    losses = model.training_losses(batch, generator=torch.Generator().manual_seed(0))
    state = torch.get_rng_state()
    IdentityLoss(MeanColor(), steps=2)(model, batch, losses)
    assert torch.equal(torch.get_rng_state(), state)
