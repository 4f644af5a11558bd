"""Latents of the VAE and those of the backbone: shifted and scaled to about unit variance."""

from __future__ import annotations

from typing import Any

from torch import Tensor


def scale_latents(vae: Any, latents: Tensor) -> Tensor:
    """``(z − shift)·scale`` of a VAE's latents; Stable Diffusion 3's has a shift, earlier ones have none."""
    shift = vae.config.shift_factor
    return (latents - shift if shift else latents) * vae.config.scaling_factor


def unscale_latents(vae: Any, latents: Tensor) -> Tensor:
    """``z / scale + shift``, what the VAE decodes; the inverse of :func:`scale_latents`."""
    shift = vae.config.shift_factor
    latents = latents / vae.config.scaling_factor
    return latents + shift if shift else latents
