"""Matching reward: are the right people in images that the training samples, each once?"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Protocol

import torch
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from fastcomposer.batch import SubjectBatch
from fastcomposer.models.text import TextStates
from fastcomposer.training.face_losses.face_loss import FaceLoss
from fastcomposer.utils.matching import optimal_pairs
from fastcomposer.utils.ranges import Amount, Count, Fraction, Positive, Whole
from fastcomposer.utils.rng import Source, uniform

if TYPE_CHECKING:
    from fastcomposer.composer import FastComposer, TrainingLosses


class FaceDetector(Protocol):
    """Finds faces; gradients are not needed."""

    def __call__(self, images: Tensor) -> Sequence[Tensor]:
        """Boxes (n, 4), x1, y1, x2, y2 in pixels, of each of the images (N, 3, H, W) in [0, 1]."""


class MatchingReward(FaceLoss):
    """Reward of the faces found in sampled images that match the targets' (docs/method.md, eq. 11).

    A part of each batch is sampled from noise in a few deterministic steps with classifier-free guidance. The
    faces that a detector finds in the images are matched one to one with the subjects, and pushed away from
    the other subjects, after the matching reward of UMO (Cheng et al. 2025). As in DRTune (Wu et al. 2024),
    the input of every step is cut off the graph and gradients flow through a few steps: the first, which
    settles who stands where, and some of the others.

    Args:
        embedder: Embeds faces, with gradients; frozen here. Never the one that scores.
        detector: Finds the faces, a :class:`FaceDetector`.
        timesteps: Of the sampling steps, falling; those of a flow are float.
        weight: Of this loss in the total, above 0.
        gradient_steps: How many of the steps have gradients, at least 1.
        guidance_scale: Of classifier-free guidance.
        separation: Weight of the similarity to other subjects than the matched one.
        fraction: Fraction of a batch that is sampled, in (0, 1]; samples with faces come first.
        warmup_steps: Steps over which the weight grows linearly.
        checkpointing: Decode again in the backward pass, in place of keeping the decoder's activations.

    Raises:
        ValueError: If a setting is out of range.
    """

    KEY = "reward"

    def __init__(
        self,
        embedder: Any,
        detector: Any,
        timesteps: Sequence[float],
        weight: Positive = 1.0,
        gradient_steps: Count = 3,
        guidance_scale: Amount = 3.0,
        separation: Amount = 0.5,
        fraction: Fraction = 0.25,
        warmup_steps: Whole = 0,
        checkpointing: bool = False,
    ) -> None:
        super().__init__(embedder, weight, fraction, warmup_steps, checkpointing)
        if not callable(detector):
            raise ValueError(f"reward.loss.detector={detector}: a node that makes a detector of faces")
        falling = all(before > after for before, after in pairwise(timesteps))
        if not timesteps or not falling or timesteps[-1] < 0:
            raise ValueError(f"reward.loss.timesteps={list(timesteps)}: falling, none below 0")
        if not 1 <= gradient_steps <= len(timesteps):
            raise ValueError(f"reward.loss.gradient_steps={gradient_steps}: 1 to {len(timesteps)}")
        self.detector = detector
        self.requires_grad_(False)
        self.timesteps, self.gradient_steps = tuple(timesteps), gradient_steps
        self.guidance_scale, self.separation = guidance_scale, separation

    def forward(
        self,
        model: FastComposer,
        batch: SubjectBatch,
        losses: TrainingLosses,
        empty: TextStates,
        source: Source = None,
    ) -> Tensor:
        """See :class:`FaceLoss`."""
        faces = batch.annotated_faces()
        chance = uniform((len(batch),), faces.device, source)
        rows = (faces.any(1) + chance).topk(self.count(len(batch)), sorted=False).indices
        if isinstance(source, list):
            source = [source[row] for row in rows.tolist()]
        part, faces = batch.select(rows), faces[rows]
        latents = self._sample(model, part, losses, rows, empty, source)
        images = self.decode(model, latents)
        with torch.autocast(images.device.type, enabled=False):
            loss = self._compare(images, part, faces)
        return latents.sum() * 0 if loss is None else loss

    def _compare(self, images: Tensor, part: SubjectBatch, faces: Tensor) -> Tensor | None:
        """The loss of sampled images (b, 3, H, W) with annotated faces (b, K); ``None`` without any pair."""
        with torch.no_grad():
            found = self.detector(images.detach().clamp(0, 1))
            if not any(map(len, found)):
                return None
            boxes: Any = part.subject_face_boxes
            wanted = self.embed(part.pixel_values.float() / 2 + 0.5, boxes)
        vectors = self.embed(images, pad_sequence([*found], batch_first=True))
        matched, others = [], []
        for each, own, people, there in zip(vectors, found, wanted, faces, strict=True):
            similarity = each[: len(own)] @ people[there].T
            pairs = torch.zeros_like(similarity, dtype=torch.bool)
            for pair in optimal_pairs(similarity.detach().cpu().numpy()):
                pairs[pair] = True
            matched.append(similarity[pairs])
            others.append(similarity[~pairs])
        right, wrong = torch.cat(matched), torch.cat(others)
        if not len(right):
            return None
        loss = 1 - right.mean()
        return loss + self.separation * wrong.relu().mean() if len(wrong) else loss

    def _sample(
        self,
        model: FastComposer,
        part: SubjectBatch,
        losses: TrainingLosses,
        rows: Tensor,
        empty: TextStates,
        source: Source,
    ) -> Tensor:
        """Scaled latents (b, C, h, w) from noise; gradients reach the predictions of some steps."""
        prompt_embeds, added = losses.prompt_embeds[rows], losses.added_at(rows)
        count, device, family = len(part), prompt_embeds.device, model.family
        channels, *size = losses.clean_latents.shape[1:]
        empty = empty.expand(count)
        added_empty = model.added_condition(part, empty)
        first = source[0] if isinstance(source, list) else source
        order = uniform((len(self.timesteps) - 1,), "cpu", first).argsort().tolist()
        learned = {0, *(1 + index for index in order[: self.gradient_steps - 1])}
        noisy = randn_tensor((count, channels, *size), generator=source, device=torch.device(device))
        steps = torch.tensor(self.timesteps, device=device)[:, None].expand(-1, count)
        for index, timesteps in enumerate(steps):
            seen = noisy.detach()
            with torch.no_grad():
                plain = model.predict(seen, timesteps, empty.tokens, added_empty)
            with torch.set_grad_enabled(index in learned), model.routed(part, (size[0], size[1])):
                guided = model.predict(seen, timesteps, prompt_embeds, added)
            prediction = plain + self.guidance_scale * (guided - plain)
            clean = family.clean_latents(noisy, prediction, timesteps)
            if index + 1 < len(steps):
                noisy = family.denoise(noisy, clean, timesteps, steps[index + 1])
        return clean
