"""Stable Diffusion 1, 2 and XL: a U-Net with cross-attention, trained by diffusion."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from diffusers.models.attention import BasicTransformerBlock
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from torch import Tensor, nn

from fastcomposer.models.families.family import Family
from fastcomposer.utils.rng import Source, integers

_TARGETS = ("epsilon", "v_prediction")


class UNetFamily(Family):
    """``UNet2DConditionModel``, trained by diffusion to predict noise or velocity."""

    NAME = "unet"
    NETWORK = UNet2DConditionModel
    SCHEDULER = DDPMScheduler
    BLOCKS = (ResnetBlock2D, BasicTransformerBlock)
    ROUTES = True

    def __post_init__(self) -> None:
        if self._target not in _TARGETS:
            raise ValueError(f"the scheduler's prediction_type {self._target!r} is not one of {_TARGETS}")

    @property
    def _target(self) -> str:
        return self.scheduler.config.prediction_type

    @property
    def latent_factor(self) -> int:
        """Downsampling of the network."""
        return 2 ** (len(self.backbone.config.block_out_channels) - 1)

    @property
    def text_dims(self) -> tuple[int, int]:
        """The pooled embedding of Stable Diffusion XL shares its input with the sizes of the image."""
        config = self.backbone.config
        sizes = 6 * (config.addition_time_embed_dim or 0)
        return config.cross_attention_dim, (config.projection_class_embeddings_input_dim or sizes) - sizes

    @property
    def stages(self) -> list[nn.Module]:
        """Down blocks, middle block and up blocks."""
        return [*self.backbone.down_blocks, self.backbone.mid_block, *self.backbone.up_blocks]

    def predict(
        self, noisy: Tensor, timesteps: Tensor, prompt_embeds: Tensor, added: Mapping[str, Tensor] | None
    ) -> Tensor:
        """Noise or velocity."""
        return self.backbone(noisy, timesteps, prompt_embeds, added_cond_kwargs=added).sample

    def timesteps_at(self, timestep: float, count: int, device: Any) -> Tensor:
        """Long, in [0, T) of T training timesteps."""
        number = self.scheduler.config.num_train_timesteps
        if timestep not in range(number):
            raise ValueError(f"timestep {timestep} is not an integer from 0 to {number - 1}")
        return torch.full((count,), int(timestep), device=device)

    def draw_timesteps(self, count: int, device: Any, source: Source) -> Tensor:
        """Draw uniformly, long."""
        return integers(self.scheduler.config.num_train_timesteps, (count,), device, source)

    def add_noise(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """``√ᾱ·x₀ + √(1−ᾱ)·ε``."""
        return self.scheduler.add_noise(latents, noise, timesteps)

    def target(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """Noise, or velocity where the scheduler predicts it."""
        if self._target == "v_prediction":
            return self.scheduler.get_velocity(latents, noise, timesteps)
        return noise

    def clean_latents(self, noisy: Tensor, prediction: Tensor, timesteps: Tensor) -> Tensor:
        """``(z − √(1−ᾱ)·ε̂) / √ᾱ``, or ``√ᾱ·z − √(1−ᾱ)·v̂`` (Salimans and Ho 2022, section 4)."""
        kept = self.scheduler.alphas_cumprod.to(noisy.device)[timesteps].float()[:, None, None, None]
        signal, noise = kept.sqrt(), (1 - kept).sqrt()
        if self._target == "v_prediction":
            return signal * noisy.float() - noise * prediction.float()
        return (noisy.float() - noise * prediction.float()) / signal
