"""Identity loss: whose face is in the image that a prediction amounts to?"""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from fastcomposer.batch import SubjectBatch
from fastcomposer.models.latents import unscale_latents
from fastcomposer.utils.ranges import Amount, Fraction, Whole


class FaceEmbedder(Protocol):
    """Embeds annotated faces; gradients reach the images. Never the one that scores."""

    def __call__(self, images: Tensor, boxes: Tensor) -> Tensor:
        """Map images (B, 3, H, W) in [0, 1] and boxes (B, K, 4) in pixels to unit vectors (B, K, d)."""


def check_faces(samples: Any, count: int = 16) -> None:
    """Refuse training records without annotated faces.

    Args:
        samples: A dataset of :class:`~fastcomposer.batch.SubjectBatch`.
        count: How many samples to look at.

    Raises:
        ValueError: If none of them has a face, with the command that adds them.
    """
    for number in range(min(count, len(samples))):
        boxes = samples[number].subject_face_boxes
        if boxes is not None and bool(boxes.any()):
            return
    raise ValueError(
        "identity=x0 needs records with annotated faces, and the first of these have none: fastcomposer "
        "prepare faces=true adds them; or identity=none"
    )


class IdentityLoss(nn.Module):
    """``1 − cos(f(x̂), f(x))`` at each annotated face of the target x (docs/method.md, eq. 9).

    x̂ is the decoded prediction of the clean latent, f a frozen embedder of faces. Nothing is detected: the
    faces are cut out of both images at the annotated boxes. The loss counts at those noise levels where
    identity is decided, and sees a part of each batch, for the decoder costs more than the U-Net of a small
    model.

    Args:
        embedder: The embedder f; frozen here.
        weight: Of this loss in the total, above 0.
        timesteps: Lowest and highest timestep at which it counts.
        fraction: Fraction of a batch that is decoded, in (0, 1]; samples at these timesteps with a face
            come first.
        warmup_steps: Steps over which the weight grows linearly.
        checkpointing: Decode again in the backward pass, in place of keeping the decoder's activations.

    Raises:
        ValueError: If a setting is out of range.
    """

    def __init__(
        self,
        embedder: Any,
        weight: Amount = 0.1,
        timesteps: tuple[int, int] = (0, 999),
        fraction: Fraction = 1.0,
        warmup_steps: Whole = 0,
        checkpointing: bool = False,
    ) -> None:
        super().__init__()
        if not weight > 0:
            raise ValueError(f"identity.loss.weight={weight}: above 0; identity=none leaves the loss out")
        if not 0 < fraction <= 1:
            raise ValueError(f"identity.loss.fraction={fraction}: above 0 and at most 1")
        low, high = timesteps
        if not 0 <= low <= high:
            raise ValueError(f"identity.loss.timesteps={list(timesteps)}: a lowest and a highest timestep")
        if warmup_steps < 0:
            raise ValueError(f"identity.loss.warmup_steps={warmup_steps}: must not be negative")
        self.embedder: Any = embedder
        self.requires_grad_(False)
        self.weight, self.timesteps, self.fraction = weight, (int(low), int(high)), fraction
        self.warmup_steps, self.checkpointing = warmup_steps, checkpointing

    def train(self, mode: bool = True) -> IdentityLoss:
        """Stay in eval mode."""
        return super().train(False)

    def weight_at(self, step: int) -> float:
        """Weight of the loss in the total at a training step."""
        return self.weight * (min(1.0, (step + 1) / self.warmup_steps) if self.warmup_steps else 1.0)

    def forward(self, vae: Any, clean_latents: Tensor, timesteps: Tensor, batch: SubjectBatch) -> Tensor:
        """Compare the faces of predictions and targets.

        Args:
            vae: Autoencoder; only its decoder is used.
            clean_latents: (B, C, h, w) predictions x̂₀ of the scaled latents, with gradients.
            timesteps: (B,) long.
            batch: B samples; their ``subject_face_boxes`` say where the faces are.

        Returns:
            Scalar in float32, mean over the faces that count; 0 where none does.

        Raises:
            ValueError: If the batch has no ``subject_face_boxes``.
        """
        boxes = batch.subject_face_boxes
        if boxes is None:
            raise ValueError("identity=x0 needs subject_face_boxes, which this batch does not have")
        low, high = self.timesteps
        faces = batch.subject_present & (boxes[..., 2] > boxes[..., 0])
        faces = faces & ((timesteps >= low) & (timesteps <= high))[:, None]
        # How many are decoded does not depend on values that the host would have to wait for.
        count = max(1, round(self.fraction * len(timesteps)))
        rows = faces.any(1).int().topk(count, sorted=False).indices
        faces, boxes = faces[rows], boxes[rows]
        with torch.no_grad():
            wanted = self.embedder(batch.pixel_values[rows].float() / 2 + 0.5, boxes)
        latents = unscale_latents(vae, clean_latents[rows]).to(vae.dtype)
        decode = (lambda z: vae.decode(z).sample) if not self.checkpointing else self._decode_again(vae)
        found = self.embedder(decode(latents).float() / 2 + 0.5, boxes)
        loss = 1 - (found * wanted).sum(-1)
        return (loss * faces).sum() / faces.sum().clamp(min=1)

    @staticmethod
    def _decode_again(vae: Any) -> Any:
        return lambda z: checkpoint(lambda latents: vae.decode(latents).sample, z, use_reentrant=False)
