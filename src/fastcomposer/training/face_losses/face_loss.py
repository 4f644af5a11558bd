"""What losses of faces share: an embedder that does not score, a weight that grows, decoding."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, Self

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from fastcomposer.batch import SubjectBatch
from fastcomposer.models.text import TextStates
from fastcomposer.utils.ranges import Fraction, Positive, Whole
from fastcomposer.utils.rng import Source

if TYPE_CHECKING:
    from fastcomposer.composer import FastComposer, TrainingLosses


class FaceEmbedder(Protocol):
    """Embeds annotated faces; gradients reach the images. Never the one that scores."""

    def __call__(self, images: Tensor, boxes: Tensor) -> Tensor:
        """Map images (B, 3, H, W) in [0, 1] and boxes (B, K, 4) in pixels to unit vectors (B, K, d)."""


class FaceLoss(nn.Module, ABC):
    """A loss that compares faces with those of the targets.

    Args:
        embedder: Embeds faces, with gradients; frozen here. Never the one that scores.
        weight: Of this loss in the total, above 0.
        fraction: Fraction of a batch that is decoded, in (0, 1].
        warmup_steps: Steps over which the weight grows linearly.
        checkpointing: Decode again in the backward pass, in place of keeping the decoder's activations.

    Raises:
        ValueError: If a setting is out of range.
    """

    KEY: ClassVar = "identity"
    """The configuration group."""

    def __init__(
        self,
        embedder: Any,
        weight: Positive,
        fraction: Fraction = 1.0,
        warmup_steps: Whole = 0,
        checkpointing: bool = False,
    ) -> None:
        super().__init__()
        if not callable(embedder):
            raise ValueError(f"{self.KEY}.loss.embedder={embedder}: a node that makes an embedder of faces")
        if not weight > 0:
            raise ValueError(f"{self.KEY}.loss.weight={weight}: above 0; {self.KEY}=none leaves it out")
        if not 0 < fraction <= 1:
            raise ValueError(f"{self.KEY}.loss.fraction={fraction}: above 0 and at most 1")
        if warmup_steps < 0:
            raise ValueError(f"{self.KEY}.loss.warmup_steps={warmup_steps}: must not be negative")
        self.embedder: Any = embedder
        self.requires_grad_(False)
        self.weight, self.fraction = weight, fraction
        self.warmup_steps, self.checkpointing = warmup_steps, checkpointing

    def train(self, mode: bool = True) -> Self:
        """Stay in eval mode."""
        return super().train(False)

    def weight_at(self, step: int) -> float:
        """Weight of the loss in the total at a training step."""
        return self.weight * (min(1.0, (step + 1) / self.warmup_steps) if self.warmup_steps else 1.0)

    @abstractmethod
    def forward(
        self,
        model: FastComposer,
        batch: SubjectBatch,
        losses: TrainingLosses,
        empty: TextStates,
        source: Source = None,
    ) -> Tensor:
        """Compare faces.

        Args:
            model: The model in training.
            batch: B samples; their ``subject_face_boxes`` say where the targets' faces are.
            losses: Of this batch.
            empty: States of one empty prompt.
            source: Source of random numbers; a list has one for each sample.

        Returns:
            Scalar in float32; 0 where there are no faces.

        Raises:
            ValueError: If the batch has no ``subject_face_boxes``.
        """

    def embed(self, images: Tensor, boxes: Tensor) -> Tensor:
        """Embed faces in float32, also under autocast; see :class:`FaceEmbedder`."""
        with torch.autocast(images.device.type, enabled=False):
            return self.embedder(images.float(), boxes)

    def count(self, samples: int) -> int:
        """How many of a batch are decoded; it does not depend on values that the host would wait for."""
        return max(1, round(self.fraction * samples))

    def decode(self, model: FastComposer, latents: Tensor) -> Tensor:
        """See :meth:`~fastcomposer.FastComposer.decode_latents`."""
        if self.checkpointing:
            return checkpoint(model.decode_latents, latents, use_reentrant=False)  # type: ignore[return-value]
        return model.decode_latents(latents)


def mean_over(values: Tensor, faces: Tensor) -> Tensor:
    """Mean of values (B, K) over the faces (B, K) that count; 0 without any."""
    return torch.where(faces, values, 0.0).sum() / faces.sum().clamp(min=1)
