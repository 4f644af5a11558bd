"""Training of the embedded base's autoencoder."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from torch import Tensor, nn

from fastcomposer.miniworld.scene_dataset import SceneBank, SceneBatch
from fastcomposer.training.base_module import OptimizerFactory, RecipeModule


class VAEModule(RecipeModule):
    """Reconstruction with a KL term (Kingma and Welling 2014; Rombach et al. 2022 without GAN and LPIPS).

    People count more than background: faces are small and carry identity.

    Args:
        vae: The autoencoder.
        optimizer: Makes the optimizer.
        kl_weight: Weight of the KL divergence, mean over latent elements.
        people_weight: How much more a pixel of a person weighs.
        train_encoder: Whether the encoder learns too. Without it the latents stay as they are, so that a
            decoder can be finished after a U-Net has been trained on them.
        recipe: Further arguments of :class:`RecipeModule`.
    """

    LOGGED: ClassVar[tuple[str, ...]] = ("train/loss", "train/kl", "val/psnr")

    def __init__(
        self,
        vae: AutoencoderKL,
        optimizer: OptimizerFactory,
        kl_weight: float = 5e-4,
        people_weight: float = 1.0,
        train_encoder: bool = True,
        **recipe: Any,
    ) -> None:
        super().__init__(optimizer, **recipe)
        self.vae = vae
        self.kl_weight, self.people_weight = kl_weight, people_weight
        self.train_encoder = train_encoder
        for part in encoder_of(vae):
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
            decoded = self.vae.decode(self.vae.encode(batch.pixel_values).latent_dist.mode()).sample
        error = (decoded.clamp(-1, 1) - batch.pixel_values).square().mean((1, 2, 3)) / 4
        self.log("val/psnr", (-10 * error.log10()).mean(), prog_bar=True, batch_size=len(batch))

    @torch.no_grad()
    def export(self, folder: str | Path) -> None:
        """Write ``vae/`` of a base folder, with the scale that gives latents of unit variance."""
        with self.averaged_weights():
            if self.train_encoder:
                self.vae.register_to_config(scaling_factor=round(1 / self._latent_deviation(), 4))
            save_half(self.vae, Path(folder) / "vae")

    def _latent_deviation(self) -> float:
        bank: SceneBank = self.trainer.datamodule.train  # type: ignore[attr-defined]
        sample = bank.batch(torch.arange(min(len(bank), 512))).pixel_values
        return float(self.vae.encode(sample.to(self.device)).latent_dist.mode().std())


def encoder_of(vae: AutoencoderKL) -> list[nn.Module]:
    """The modules that decide the latents."""
    return [part for part in (vae.encoder, vae.quant_conv) if part is not None]


def save_half(model: nn.Module, folder: Path) -> None:
    """Save a diffusers or transformers model in float16 without changing the model itself."""
    original = {name: value.detach().clone() for name, value in model.state_dict().items()}
    model.half()
    model.save_pretrained(folder, safe_serialization=True)  # type: ignore[operator]
    model.float()
    model.load_state_dict(original)
