"""Flow matching of Stable Diffusion 3 behind the interface of a family."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler

from fastcomposer.models.families import family_of_base
from fastcomposer.models.families.sd3 import SD3Family
from fastcomposer.models.families.unet import UNetFamily


def family(shift: float = 1.0) -> SD3Family:
    backbone = SimpleNamespace(config=SimpleNamespace(patch_size=2))
    return SD3Family(backbone, FlowMatchEulerDiscreteScheduler(shift=shift))


def test_the_prediction_amounts_to_the_clean_latents() -> None:
    rng = torch.Generator().manual_seed(0)
    latents, noise = torch.randn(2, 3, 4, 8, 8, generator=rng)
    timesteps = torch.tensor([0.0, 250.0, 1000.0])
    flow = family()
    noisy, target = flow.add_noise(latents, noise, timesteps), flow.target(latents, noise, timesteps)
    assert torch.equal(noisy[0], latents[0]) and torch.equal(noisy[2], noise[2])
    torch.testing.assert_close(flow.clean_latents(noisy, target, timesteps), latents)
    scheduler = flow.scheduler
    torch.testing.assert_close(noisy[1:2], scheduler.scale_noise(latents[1:2], timesteps[1:2], noise[1:2]))


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_timesteps_are_logit_normal_and_shifted(shift: float) -> None:
    found = family(shift).draw_timesteps(20_000, "cpu", torch.Generator().manual_seed(0)) / 1000
    sigma = found / (shift - (shift - 1) * found)  # without the shift
    logits = torch.logit(sigma)
    assert abs(logits.mean()) < 0.03 and abs(logits.std() - 1) < 0.03
    assert found.min() > 0 and found.max() < 1


def test_a_sample_draws_the_same_in_any_batch() -> None:
    together = family().draw_timesteps(2, "cpu", [torch.Generator().manual_seed(n) for n in (3, 4)])
    alone = family().draw_timesteps(1, "cpu", [torch.Generator().manual_seed(4)])
    assert torch.equal(together[1:], alone)


def test_a_base_names_its_family() -> None:
    assert family_of_base({"transformer": ["diffusers", "SD3Transformer2DModel"]}) is SD3Family
    assert family_of_base({"unet": ["diffusers", "UNet2DConditionModel"]}) is UNetFamily
    assert family_of_base({}) is UNetFamily
