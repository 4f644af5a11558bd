"""Training of the embedded base's U-Net: text to image, without subjects."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from torch import Tensor

from fastcomposer.miniworld.part_module import PartModule
from fastcomposer.miniworld.scene_dataset import SceneBank, SceneBatch
from fastcomposer.models.text import encode_text
from fastcomposer.training.base_module import OptimizerFactory
from fastcomposer.utils.progress import tracked
from fastcomposer.utils.ranges import Fraction, Positive

_COMPONENTS = {
    "vae": ["diffusers", "AutoencoderKL"],
    "text_encoder": ["transformers", "CLIPTextModel"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
    "unet": ["diffusers", "UNet2DConditionModel"],
    "scheduler": ["diffusers", "DDIMScheduler"],
    "image_encoder": ["transformers", "CLIPVisionModelWithProjection"],
    "safety_checker": [None, None],
    "feature_extractor": [None, None],
    "requires_safety_checker": False,
}


class CaptionedLatentsModule(PartModule):
    """Training on latents and text states that are encoded once.

    Args:
        vae: Trained autoencoder, frozen.
        text_encoder: Trained text encoder, frozen.
        tokenizer: Tokenizer of the base.
        optimizer: Makes the optimizer.
        rich_share: Fraction of captions that name hair, skin and beard.
        caption_dropout: Fraction of samples with the empty caption, for classifier-free guidance.
        **recipe: Further arguments of :class:`RecipeModule`.
    """

    def __init__(
        self,
        vae: AutoencoderKL,
        text_encoder: Any,
        tokenizer: Any,
        optimizer: OptimizerFactory,
        rich_share: Fraction = 0.5,
        caption_dropout: Fraction = 0.1,
        **recipe: Any,
    ) -> None:
        super().__init__(optimizer, **recipe)
        self.vae = vae.eval().requires_grad_(False)
        self.text_encoder = text_encoder.eval().requires_grad_(False)
        self.tokenizer = tokenizer
        self.rich_share, self.caption_dropout = rich_share, caption_dropout

    def setup(self, stage: str) -> None:
        """Encode every scene and its mirror image, and every caption once."""
        bank = self.scenes.train
        self.latents = encode_scenes(self.vae, bank)
        captions = [*bank.captions, *bank.rich_captions, ""]
        ids = self.tokenizer(captions, padding="max_length", truncation=True, return_tensors="pt").input_ids
        with torch.inference_mode():
            chunks = tracked(ids.split(256), "text states")
            encoded = [[states.half() for states in self.encode_ids(part)] for part in chunks]
        self.text = [torch.cat(parts) for parts in zip(*encoded, strict=True)]

    def encode_ids(self, input_ids: Tensor) -> tuple[Tensor, ...]:
        """Encode token ids (B, T) to the tensors that condition the denoiser, (B, ...) each."""
        return (encode_text(self.text_encoder, input_ids),)

    def chosen(self, batch: SceneBatch, rng: np.random.Generator) -> list[Tensor]:
        """Latents of the scenes or of their mirror images, then the encoded captions."""
        index, count = batch.index.cpu(), len(self.latents)
        size = len(index)
        latents = self.latents[index, rng.integers(2, size=size)]
        row = index + count * torch.from_numpy(rng.random(size) < self.rich_share)
        row[torch.from_numpy(rng.random(size) < self.caption_dropout)] = 2 * count
        found = [latents, *(states[row] for states in self.text)]
        return [values.to(self.device, torch.float32) for values in found]

    def step_rng(self) -> np.random.Generator:
        """Random numbers that choose a step's captions and mirror images."""
        return np.random.default_rng([self.seed, self.global_rank, self.global_step])


class TextToImageModule(CaptionedLatentsModule):
    """Latent diffusion from captions (Rombach et al. 2022).

    Args:
        unet: Denoising U-Net.
        scheduler: Scheduler of the base; its ``prediction_type`` is what the U-Net predicts.
        snr_gamma: Clamp of the signal-to-noise ratio in the loss weight (Hang et al. 2023), or ``None``.
        **shared: Further arguments of :class:`CaptionedLatentsModule`.
    """

    PART = "unet"
    LOGGED = ("train/loss", "train/mse")

    def __init__(
        self,
        unet: UNet2DConditionModel,
        scheduler: DDIMScheduler,
        snr_gamma: Positive | None = 5.0,
        **shared: Any,
    ) -> None:
        super().__init__(**shared)
        self.unet, self.scheduler, self.snr_gamma = unet, scheduler, snr_gamma
        self.noise_scheduler = DDPMScheduler.from_config(scheduler.config)

    def training_step(self, batch: SceneBatch, batch_idx: int) -> Tensor:
        """Denoise a batch; only its positions in the bank are used."""
        latents, text = self.chosen(batch, self.step_rng())
        size, generator = len(latents), self.step_generator()
        noise = torch.randn(latents.shape, generator=generator, device=self.device)
        total = self.noise_scheduler.config.num_train_timesteps
        steps = torch.randint(total, (size,), generator=generator, device=self.device)
        noisy = self.noise_scheduler.add_noise(latents, noise, steps)
        difference = self.unet(noisy, steps, text).sample - self._target(latents, noise, steps)
        error = difference.square().mean((1, 2, 3))
        loss = (self._weight(steps) * error).mean()
        self.log_dict({"train/loss": loss, "train/mse": error.mean()}, prog_bar=True)
        return loss

    def _target(self, latents: Tensor, noise: Tensor, steps: Tensor) -> Tensor:
        if self.noise_scheduler.config.prediction_type == "v_prediction":
            return self.noise_scheduler.get_velocity(latents, noise, steps)
        return noise

    def _weight(self, steps: Tensor) -> Tensor:
        """Min-SNR weight of each sample, (B,)."""
        if self.snr_gamma is None:
            return torch.ones_like(steps, dtype=torch.float32)
        alpha = self.noise_scheduler.alphas_cumprod.to(steps.device)[steps]
        snr = alpha / (1 - alpha)
        velocity = self.noise_scheduler.config.prediction_type == "v_prediction"
        return snr.clamp(max=self.snr_gamma) / (snr + 1 if velocity else snr)

    def write(self, folder: Path) -> None:
        """Write ``unet/``, ``scheduler/`` and ``model_index.json`` of a base folder."""
        super().write(folder)
        self.scheduler.save_pretrained(folder / "scheduler")
        index = {"_class_name": "StableDiffusionPipeline", "_diffusers_version": diffusers.__version__}
        (folder / "model_index.json").write_text(json.dumps(index | _COMPONENTS, indent=2) + "\n")


@torch.inference_mode()
def encode_scenes(vae: AutoencoderKL, bank: SceneBank) -> Tensor:
    """Scaled latents of all scenes and of their mirror images, (N, 2, C, h, w) float16."""
    encoded = []
    for index in tracked(torch.arange(len(bank)).split(64), "latents"):
        pixels = bank.batch(index).pixel_values
        both = torch.cat([pixels, pixels.flip(-1)])
        latents = vae.encode(both).latent_dist.mode() * vae.config["scaling_factor"]
        encoded.append(torch.stack(latents.chunk(2), dim=1).half())
    return torch.cat(encoded)
