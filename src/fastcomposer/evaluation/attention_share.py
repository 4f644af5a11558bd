"""How much of a subject word's attention falls on that subject."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass

import torch
from torch import Generator

from fastcomposer.batch import SubjectBatch
from fastcomposer.composer import FastComposer
from fastcomposer.losses import map_size, resize_masks
from fastcomposer.models.attention_capture import AttentionCapture, select_blocks


@dataclass(frozen=True)
class AttentionShare:
    """Means over subjects, localized layers and heads."""

    inside: float  # fraction of the attention on a subject's word that lies inside the subject's mask
    area: float  # fraction of the image that the mask covers, as of an even spread
    subjects: int  # how many were measured

    def as_dict(self) -> dict[str, float]:
        """Plain numbers by name."""
        return asdict(self)


@torch.no_grad()
def attention_share(
    model: FastComposer, batches: Iterable[SubjectBatch], seed: int = 0, timestep: int | None = None
) -> AttentionShare:
    """Measure the attention on records, at timesteps and noise that depend on the seed alone.

    Args:
        model: The model; its default localized layers are measured, whatever it was trained with.
        batches: Records with masks.
        seed: Of noise and timesteps.
        timestep: The timestep, from 0 for next to no noise; ``None`` draws one for each record.

    Raises:
        ValueError: If no record has a subject.
    """
    model.eval()
    capture = AttentionCapture(model.backbone, select_blocks(model.backbone))
    inside = area = 0.0
    subjects = 0
    for number, batch in enumerate(batches):
        generator = Generator().manual_seed(seed + number)
        latents = model.encode_latents(batch, generator)
        noise = torch.randn(latents.shape, generator=generator)
        total = model.noise_scheduler.config.num_train_timesteps
        timesteps = torch.randint(total, (len(batch),), generator=generator)
        if timestep is not None:
            timesteps = torch.full_like(timesteps, timestep)
        noisy = model.family.add_noise(latents, noise, timesteps)
        text = model.encode_captions(batch)
        prompts, _ = model.encode_batch(batch, text=text)
        size = (latents.shape[-2], latents.shape[-1])
        routed, recorded = (
            model.routed(batch, size),
            capture.record(model.subject_columns(batch), detach=True),
        )
        with routed, recorded as maps:
            model.predict(noisy, timesteps, prompts, model.added_condition(batch, text))
        for layer in maps.values():
            masks = resize_masks(batch.subject_masks, map_size(layer.shape[2], size)).flatten(2)
            attention = layer.mean(dim=1).transpose(1, 2)  # (B, K, positions)
            share = (attention * masks).sum(-1) / attention.sum(-1).clamp(min=1e-12)
            inside += float(share[batch.subject_present].sum()) / len(maps)
            area += float(masks.mean(-1)[batch.subject_present].sum()) / len(maps)
        subjects += int(batch.subject_present.sum())
    if not subjects:
        raise ValueError("no record has a subject: nothing to measure attention on")
    return AttentionShare(inside / subjects, area / subjects, subjects)
