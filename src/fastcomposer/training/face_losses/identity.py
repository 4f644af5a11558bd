"""Identity loss: whose face is in the image that a prediction amounts to?"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fastcomposer.batch import SubjectBatch
from fastcomposer.training.face_losses.face_loss import FaceLoss, mean_over
from fastcomposer.utils.ranges import Count, Fraction, Positive, Whole

if TYPE_CHECKING:
    from fastcomposer.composer import FastComposer, TrainingLosses


class IdentityLoss(FaceLoss):
    """``1 − cos(f(x̂), f(x))`` at each annotated face of the target x (docs/method.md, eq. 9).

    x̂ is the decoded prediction of the clean latent, f a frozen embedder of faces. Nothing is detected: the
    faces are cut out of both images at the annotated boxes. The loss counts at those noise levels where
    identity is decided, and sees a part of each batch, for the decoder costs more than the denoising
    network of a small model. With several steps x̂ is sampled on from the first prediction, and is sharp.

    Args:
        embedder: See :class:`FaceLoss`.
        weight: See :class:`FaceLoss`.
        timesteps: Lowest and highest timestep at which it counts.
        steps: Deterministic steps, in equal parts of the noise level, from the batch's timestep to x̂; all of
            them have gradients.
        fraction: See :class:`FaceLoss`; samples with the most faces come first.
        warmup_steps: See :class:`FaceLoss`.
        checkpointing: See :class:`FaceLoss`.

    Raises:
        ValueError: If a setting is out of range.
    """

    def __init__(
        self,
        embedder: Any,
        weight: Positive = 0.1,
        timesteps: tuple[int, int] = (0, 999),
        steps: Count = 1,
        fraction: Fraction = 1.0,
        warmup_steps: Whole = 0,
        checkpointing: bool = False,
    ) -> None:
        super().__init__(embedder, weight, fraction, warmup_steps, checkpointing)
        low, high = timesteps
        if not 0 <= low <= high:
            raise ValueError(f"identity.loss.timesteps={list(timesteps)}: a lowest and a highest timestep")
        if steps < 1:
            raise ValueError(f"identity.loss.steps={steps}: at least 1")
        self.timesteps, self.steps = (int(low), int(high)), steps

    def forward(self, model: FastComposer, batch: SubjectBatch, losses: TrainingLosses, *_: Any) -> Tensor:
        """Mean over the faces that count; see :class:`FaceLoss`."""
        low, high = self.timesteps
        timesteps = losses.timesteps
        faces = batch.annotated_faces() & ((timesteps >= low) & (timesteps <= high))[:, None]
        rows = faces.sum(1).topk(self.count(len(batch)), sorted=False).indices
        faces, boxes = faces[rows], batch.subject_face_boxes[rows]  # type: ignore[index]
        with torch.no_grad():
            wanted = self.embed(batch.pixel_values[rows].float() / 2 + 0.5, boxes)
        found = self.embed(self.decode(model, self._sharpened(model, batch, losses, rows)), boxes)
        return mean_over(1 - (found * wanted).sum(-1), faces)

    def _sharpened(
        self, model: FastComposer, batch: SubjectBatch, losses: TrainingLosses, rows: Tensor
    ) -> Tensor:
        """Scaled latents (b, C, h, w) of some rows after all steps; the losses hold the first."""
        clean, noisy = losses.clean_latents[rows], losses.noisy_latents[rows].float()
        if self.steps == 1:
            return clean
        part, start, prompts = batch.select(rows), losses.timesteps[rows], losses.prompt_embeds[rows]
        timesteps, added = start, losses.added_at(rows)
        with model.routed(part, (clean.shape[-2], clean.shape[-1])):
            for left in range(self.steps - 1, 0, -1):
                following = (start * (left / self.steps)).to(start.dtype)
                noisy = model.family.denoise(noisy, clean, timesteps, following)
                timesteps = following
                prediction = model.predict(noisy, timesteps, prompts, added)
                clean = model.family.clean_latents(noisy, prediction, timesteps)
        return clean
