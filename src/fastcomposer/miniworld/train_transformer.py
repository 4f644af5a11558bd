"""Training of the embedded base's transformer: text to image by flow matching, without subjects."""

from __future__ import annotations

from typing import Any

import torch
from diffusers.models.transformers.transformer_sd3 import SD3Transformer2DModel
from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler
from diffusers.training_utils import compute_density_for_timestep_sampling
from torch import Tensor
from torch.nn import functional as F

from fastcomposer.miniworld.scene_dataset import SceneBatch
from fastcomposer.miniworld.train_text_to_image import CaptionedLatentsModule
from fastcomposer.models.text import sequence_length
from fastcomposer.utils.ranges import Fraction


class TextToImageTransformerModule(CaptionedLatentsModule):
    """Flow matching from captions as Stable Diffusion 3 trains (Esser et al. 2024, sections 2 and 3.1).

    With noise ε and σ of a logit-normal distribution, x_t = (1 - σ) x_0 + σ ε, and the transformer predicts
    ε - x_0. Both of SD3's CLIP encoders are ``text_encoder``, whose states are encoded once and repeated; the
    base has no T5.

    Args:
        transformer: Denoising transformer.
        text_encoder: Text encoder with projection.
        scheduler: Scheduler of the base; σ takes its ``shift``.
        t5_fraction: Fraction of steps that append the zeros that ``StableDiffusion3Pipeline`` has for the
            states of a missing T5. The others have CLIP's states alone, as with ``max_sequence_length=0``.
        **shared: Further arguments of :class:`CaptionedLatentsModule`.
    """

    PART = "transformer"
    LOGGED = ("train/loss",)

    def __init__(
        self,
        transformer: SD3Transformer2DModel,
        scheduler: FlowMatchEulerDiscreteScheduler,
        t5_fraction: Fraction = 0.0625,
        **shared: Any,
    ) -> None:
        super().__init__(**shared)
        self.transformer, self.scheduler, self.t5_fraction = transformer, scheduler, t5_fraction
        start_as_identity(transformer)

    def encode_ids(self, input_ids: Tensor) -> tuple[Tensor, ...]:
        """States before the last layer (B, T, d) and pooled embeddings (B, p)."""
        encoded = self.text_encoder(input_ids, output_hidden_states=True)
        return encoded.hidden_states[-2], encoded.text_embeds

    def training_step(self, batch: SceneBatch, batch_idx: int) -> Tensor:
        """Denoise a batch; only its positions in the bank are used."""
        rng = self.step_rng()
        latents, text, pooled = self.chosen(batch, rng)
        zeros = sequence_length({}) * int(rng.random() < self.t5_fraction)
        generator = self.step_generator()
        noise = torch.randn(latents.shape, generator=generator, device=self.device)
        density = compute_density_for_timestep_sampling(
            "logit_normal",
            len(latents),
            logit_mean=0.0,
            logit_std=1.0,
            device=self.device,
            generator=generator,
        )
        config: Any = self.scheduler.config
        sigma = config.shift * density / (1 + (config.shift - 1) * density)
        predicted = self.transformer(
            hidden_states=torch.lerp(latents, noise, sigma[:, None, None, None]),
            timestep=sigma * config.num_train_timesteps,
            encoder_hidden_states=F.pad(text.repeat(1, 1, 2), (0, 0, 0, zeros)),
            pooled_projections=pooled.repeat(1, 2),
        ).sample
        loss = F.mse_loss(predicted, noise - latents)
        self.log("train/loss", loss, prog_bar=True)
        return loss


def start_as_identity(transformer: SD3Transformer2DModel) -> None:
    """Zero the modulations and the output, so that blocks start as the identity (Peebles and Xie 2023)."""
    names = ("norm1.linear", "norm1_context.linear", "norm_out.linear", "proj_out")
    for name, module in transformer.named_modules():
        if name.endswith(names):
            for parameter in module.parameters():
                torch.nn.init.zeros_(parameter)
