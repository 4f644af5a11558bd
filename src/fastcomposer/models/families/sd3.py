"""Stable Diffusion 3: a transformer with joint attention, trained by flow matching."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from diffusers.models.attention import JointTransformerBlock
from diffusers.models.transformers.transformer_sd3 import SD3Transformer2DModel
from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler
from torch import Tensor, nn

from fastcomposer.models.families.family import Family
from fastcomposer.utils.rng import Source, uniform


class SD3Family(Family):
    """``SD3Transformer2DModel``, trained by flow matching (Esser et al. 2024).

    With σ = t / T of T training timesteps, x_t = (1 − σ)·x₀ + σ·ε, and the transformer predicts v = ε − x₀.
    """

    NAME = "transformer"
    NETWORK = SD3Transformer2DModel
    SCHEDULER = FlowMatchEulerDiscreteScheduler
    BLOCKS = (JointTransformerBlock,)
    ROUTES = False
    T5 = True
    LORA_TARGETS = (*Family.LORA_TARGETS, "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out")

    @property
    def latent_factor(self) -> int:
        """Side of a patch."""
        return self.backbone.config.patch_size

    @property
    def text_dims(self) -> tuple[int, int]:
        """Those of the joint attention and of both CLIP encoders' embeddings."""
        return self.backbone.config.joint_attention_dim, self.backbone.config.pooled_projection_dim

    @property
    def stages(self) -> list[nn.Module]:
        """Blocks of the transformer."""
        return [*self.backbone.transformer_blocks]

    def predict(
        self, noisy: Tensor, timesteps: Tensor, prompt_embeds: Tensor, added: Mapping[str, Tensor] | None
    ) -> Tensor:
        """Velocity."""
        return self.backbone(
            hidden_states=noisy,
            timestep=timesteps,
            encoder_hidden_states=prompt_embeds,
            pooled_projections=(added or {})["text_embeds"],
        ).sample

    def timesteps_at(self, timestep: float, count: int, device: Any) -> Tensor:
        """Float, in [0, T] of T training timesteps."""
        number = self.scheduler.config.num_train_timesteps
        if not 0 <= timestep <= number:
            raise ValueError(f"timestep {timestep} does not lie in [0, {number}]")
        return torch.full((count,), float(timestep), device=device)

    def draw_timesteps(self, count: int, device: Any, source: Source) -> Tensor:
        """Draw σ of a logit-normal distribution (section 3.1), shifted as the scheduler's are; T·σ, float."""
        config = self.scheduler.config
        sigma = torch.special.ndtri(uniform((count,), device, source)).sigmoid()
        return config.num_train_timesteps * config.shift * sigma / (1 + (config.shift - 1) * sigma)

    def _sigma(self, timesteps: Tensor) -> Tensor:
        return (timesteps.float() / self.scheduler.config.num_train_timesteps)[:, None, None, None]

    def add_noise(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """``(1 − σ)·x₀ + σ·ε``."""
        sigma = self._sigma(timesteps)
        return (1 - sigma) * latents + sigma * noise

    def target(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """``ε − x₀``."""
        return noise - latents

    def clean_latents(self, noisy: Tensor, prediction: Tensor, timesteps: Tensor) -> Tensor:
        """``x_t − σ·v̂``."""
        return noisy.float() - self._sigma(timesteps) * prediction.float()
