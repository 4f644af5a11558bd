"""Training of the embedded base's autoencoder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from torch import Tensor

from fastcomposer.miniworld.part_module import PartModule
from fastcomposer.miniworld.scene_dataset import SceneBatch
from fastcomposer.training.base_module import OptimizerFactory
from fastcomposer.utils.ranges import Amount


class VAEModule(PartModule):
    """Reconstruction with a KL term (Kingma and Welling 2014; Rombach et al. 2022 without GAN and LPIPS).

    People weigh more than background: faces are small and carry identity.

    Args:
        vae: The autoencoder.
        optimizer: Makes the optimizer.
        kl_weight: Weight of the KL divergence, mean over latent elements.
        people_weight: Additional weight of a pixel of a person.
        train_encoder: Whether the encoder is trained too. Without it the latents stay as they are, so that a
            decoder can be finished after a U-Net has been trained on them.
        recipe: Further arguments of :class:`RecipeModule`.
    """

    PART = "vae"
    LOGGED = ("train/loss", "train/kl", "val/psnr")

    def __init__(
        self,
        vae: AutoencoderKL,
        optimizer: OptimizerFactory,
        kl_weight: Amount = 5e-4,
        people_weight: Amount = 1.0,
        train_encoder: bool = True,
        **recipe: Any,
    ) -> None:
        super().__init__(optimizer, **recipe)
        self.vae = vae
        self.kl_weight, self.people_weight = kl_weight, people_weight
        self.train_encoder = train_encoder
        for part in (vae.encoder, vae.quant_conv):  # all that the latents depend on
            if part is not None:
                part.requires_grad_(train_encoder)

    def training_step(self, batch: SceneBatch, batch_idx: int) -> Tensor:
        """Reconstruct a batch of scenes."""
        with torch.set_grad_enabled(self.train_encoder):
            posterior = self.vae.encode(batch.pixel_values).latent_dist
        error = self.vae.decode(posterior.sample(self.step_generator())).sample - batch.pixel_values
        weight = 1 + self.people_weight * (batch.segment_maps > 0).unsqueeze(1)
        reconstruction = (weight * (error.abs() + 8 * error.square())).sum() / (weight.sum() * error.shape[1])
        kl = 0.5 * (posterior.mean.square() + posterior.var - 1 - posterior.logvar).mean()
        loss = reconstruction + self.kl_weight * kl
        self.log_dict({"train/loss": loss, "train/kl": kl}, prog_bar=True)
        return loss

    def validation_step(self, batch: SceneBatch, batch_idx: int) -> None:
        """Measure the peak signal-to-noise ratio of held-out scenes in dB, mean over images."""
        with self.averaged_weights():
            psnr = reconstruction_psnr(self.vae, batch.pixel_values)
        self.log("val/psnr", psnr.mean(), prog_bar=True, batch_size=len(batch))

    def write(self, folder: Path) -> None:
        """Write ``vae/`` of a base folder, with the scale that gives latents of unit variance."""
        if self.train_encoder:
            bank = self.scenes.train
            pixels = bank.batch(torch.arange(min(len(bank), 512))).pixel_values.to(self.device)
            deviation = float(self.vae.encode(pixels).latent_dist.mode().std())
            self.vae.register_to_config(scaling_factor=round(1 / deviation, 4))
        super().write(folder)


def reconstruction_psnr(vae: AutoencoderKL, pixels: Tensor) -> Tensor:
    """Peak signal-to-noise ratio (B,) in dB of images (B, 3, H, W) in [-1, 1], encoded and decoded."""
    decoded = vae.decode(vae.encode(pixels).latent_dist.mode()).sample
    error = (decoded.clamp(-1, 1) - pixels).square().mean((1, 2, 3)) / 4
    return -10 * error.clamp(min=1e-10).log10()
