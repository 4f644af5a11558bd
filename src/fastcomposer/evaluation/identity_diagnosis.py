"""Where identity is lost: what each stage of the conditioning holds of it, and what predictions show."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from fastcomposer.batch import SubjectBatch
from fastcomposer.composer import FastComposer
from fastcomposer.models.conditioning import encode_reference_states
from fastcomposer.models.resampler import subject_states

Embed = Callable[[Tensor, Tensor], Tensor]
"""From images (B, 3, H, W) in [0, 1] and boxes (B, K, 4) in pixels to unit vectors (B, K, d)."""


@dataclass(frozen=True)
class CurvePoint:
    """Identity of predictions x̂₀ at one noise level, means over faces.

    Attributes:
        timestep: The noise level; -1 is the autoencoder's round trip, without noise.
        subjects: Similarity to the target's face, conditioned on the subjects.
        text: The same, conditioned on the text alone.
        faces: Number of faces.
    """

    timestep: float
    subjects: float
    text: float
    faces: int


@torch.no_grad()
def identity_curve(
    model: FastComposer,
    batches: Iterable[SubjectBatch],
    embed: Embed,
    timesteps: Sequence[float],
    seed: int = 0,
    num_subjects: Sequence[int] | None = None,
) -> list[CurvePoint]:
    """Measure the identity of one-step predictions of the clean image, with the subjects and without.

    Args:
        model: The model.
        batches: Records with annotated faces.
        embed: Embeds the faces of targets and predictions; the one that scores.
        timesteps: Noise levels to measure at, of the process that the model is trained on.
        seed: Of the noise, which is the same at all levels.
        num_subjects: Count records with so many subjects only; ``None`` for all.

    Raises:
        ValueError: If no record has an annotated face, or the process has no such timestep.
    """
    model.eval()
    sums: dict[float, tuple[float, float]]
    sums = dict.fromkeys([-1, *timesteps], (0.0, 0.0))
    faces = 0
    for number, batch in enumerate(batches):
        slots, boxes = batch.annotated_faces(), batch.subject_face_boxes
        assert boxes is not None
        if num_subjects is not None:
            allowed = torch.tensor(list(num_subjects), device=slots.device)
            slots = slots & torch.isin(batch.subject_present.sum(1), allowed)[:, None]
        faces += int(slots.sum())
        wanted = embed(batch.pixel_values.float() / 2 + 0.5, boxes)
        generator = Generator(batch.pixel_values.device).manual_seed(seed + number)
        latents = model.encode_latents(batch, generator)
        noise = torch.randn(latents.shape, generator=generator, device=latents.device)
        size = (latents.shape[-2], latents.shape[-1])
        text = model.encode_captions(batch)
        prompts = (model.encode_batch(batch, text=text)[0], text.tokens)
        for timestep in sums:
            found = []
            for prompt in prompts if timestep >= 0 else prompts[:1]:
                clean = latents
                if timestep >= 0:
                    levels = model.family.timesteps_at(timestep, len(batch), latents.device)
                    noisy = model.family.add_noise(latents, noise, levels)
                    added = model.added_condition(batch, text)
                    with model.routed(batch, size) if prompt is prompts[0] else nullcontext():
                        prediction = model.predict(noisy, levels, prompt, added)
                    clean = model.family.clean_latents(noisy, prediction, levels)
                similar = (embed(model.decode_latents(clean).clamp(0, 1), boxes) * wanted).sum(-1)
                found.append(float(similar[slots].sum()))
            before = sums[timestep]
            sums[timestep] = (before[0] + found[0], before[1] + found[-1])
    if not faces:
        raise ValueError("no record has an annotated face of these: nothing to measure identity on")
    return [CurvePoint(t, one / faces, other / faces, faces) for t, (one, other) in sums.items()]


@torch.no_grad()
def stage_features(
    model: FastComposer, batches: Iterable[SubjectBatch], embed: Embed
) -> tuple[dict[str, Tensor], Tensor]:
    """Collect what each stage of the conditioning says of each subject, and the embedding of its face.

    Args:
        model: The model.
        batches: Records with annotated faces.
        embed: Embeds the targets' faces.

    Returns:
        (N, width) of each stage: ``pooled embedding``, ``patch states``, ``fused word`` and, where there are
        several, ``tokens``; and (N, d) of the faces.
    """
    model.eval()
    parts: dict[str, list[Tensor]] = {}
    wanted = []
    for batch in batches:
        slots, boxes = batch.annotated_faces(), batch.subject_face_boxes
        assert boxes is not None
        wanted.append(embed(batch.pixel_values.float() / 2 + 0.5, boxes)[slots])
        pixels, present = batch.references()
        embeds, states = encode_reference_states(model.image_encoder, model.reference_normalizer, pixels)
        prompts, _ = model.encode_batch(batch)
        tokens = subject_states(prompts, model.subject_columns(batch))
        found = {
            "pooled embedding": model.fusion.pool(embeds, present),
            "patch states": _mean_reference(states, present).flatten(2),
            "fused word": tokens[:, :, 0],
        }
        if tokens.shape[2] > 1:
            found["tokens"] = tokens.flatten(2)
        for name, values in found.items():
            parts.setdefault(name, []).append(values[slots].float())
    return {name: torch.cat(values) for name, values in parts.items()}, torch.cat(wanted)


def _mean_reference(states: Tensor, present: Tensor) -> Tensor:
    """Mean (B, K, P, c) of the patch states (B, K, N, P, c) of the references (B, K, N) that are present."""
    return (states * present[..., None, None]).sum(2) / present.sum(2)[..., None, None].clamp(min=1)


def read_out(
    features: Mapping[str, Tensor], faces: Tensor, held_out: Mapping[str, Tensor], held_out_faces: Tensor
) -> dict[str, float]:
    """Predict the faces' embeddings from each stage by ridge regression, and score them on other people.

    The penalty is that of a few which is best on the last fifth of the records that are fitted.

    Args:
        features: (N, width) of each stage, see :func:`stage_features`.
        faces: (N, d) unit vectors.
        held_out: The same of people whom nothing is fitted on.
        held_out_faces: Theirs.

    Returns:
        Mean cosine of predicted and true embeddings by stage.
    """
    scores = {}
    fitted = len(faces) * 4 // 5
    for name, values in features.items():
        mean, scale = values.mean(0), values.std(0).clamp(min=1e-6)
        known, unknown = ((x - mean) / scale / x.shape[1] ** 0.5 for x in (values, held_out[name]))
        target = faces - faces.mean(0)

        def predicted(rows: int, inputs: Tensor, penalty: float, known=known, target=target) -> Tensor:  # type: ignore[no-untyped-def]
            kernel = known[:rows] @ known[:rows].T
            weights = torch.linalg.solve(
                kernel + penalty * torch.eye(rows, device=kernel.device), target[:rows]
            )
            return F.normalize(inputs @ known[:rows].T @ weights + faces.mean(0), dim=-1)

        penalties = (1e-3, 1e-2, 1e-1, 1.0)
        rest = [(predicted(fitted, known[fitted:], p) * faces[fitted:]).sum(-1).mean() for p in penalties]
        best = penalties[int(torch.stack(rest).argmax())]
        scores[name] = float((predicted(len(faces), unknown, best) * held_out_faces).sum(-1).mean())
    return scores
