"""Latents of the VAE and of the backbone."""

from __future__ import annotations

import pytest
import torch
from diffusers import AutoencoderKL

from fastcomposer.models.latents import scale_latents, unscale_latents


@pytest.mark.parametrize(("shift", "expected"), [(None, 3.0), (0.5, 2.25)])
def test_a_shift_is_taken_off_before_scaling_and_added_after(shift: float | None, expected: float) -> None:
    vae = AutoencoderKL(block_out_channels=(32,), scaling_factor=1.5, shift_factor=shift)
    latents = torch.full((1, 4, 2, 2), 2.0)
    scaled = scale_latents(vae, latents)
    assert torch.equal(scaled, torch.full_like(latents, expected))
    assert torch.equal(unscale_latents(vae, scaled), latents)
