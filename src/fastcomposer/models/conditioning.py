"""Prompts and reference images as conditioning of the U-Net: the only file that fuses subjects."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import CLIPTextConfig, CLIPVisionConfig, CLIPVisionModelWithProjection
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

from fastcomposer.models.fusion import Fusion
from fastcomposer.prompt import ParsedPrompt, parse_prompt


class ReferenceNormalizer(nn.Module):
    """CLIP's mean and standard deviation as buffers, which follow the device and stay out of checkpoints."""

    mean: Tensor
    std: Tensor

    def __init__(self, device: torch.device | None = None) -> None:
        super().__init__()
        for name, values in (("mean", OPENAI_CLIP_MEAN), ("std", OPENAI_CLIP_STD)):
            self.register_buffer(name, torch.tensor(values, device=device)[:, None, None], persistent=False)

    def forward(self, pixels: Tensor) -> Tensor:
        """Normalize (…, 3, R, R) in [0, 1]."""
        return (pixels - self.mean) / self.std


def check_widths(
    text_configs: Sequence[CLIPTextConfig | None],
    vision_config: CLIPVisionConfig | None,
    fusion: Fusion,
    *,
    base: str = "the base model",
    image_encoder: str = "given",
) -> None:
    """Refuse parts of other widths than the fusion's by ``ValueError``; ``None`` is a missing part."""
    widths = tuple(None if config is None else config.hidden_size for config in text_configs)
    pairs = zip(fusion.text_dims, widths, strict=False)
    if len(widths) != len(fusion.text_dims) or any(width not in (own, None) for own, width in pairs):
        own, found = (" and ".join(str(one) for one in some if one) for some in (fusion.text_dims, widths))
        raise ValueError(
            f"the fusion is {own} wide, but the text encoder of {base} is {found} wide: they belong to "
            "different models"
        )
    projected = fusion.image_dim if vision_config is None else vision_config.projection_dim
    if fusion.image_dim != projected:
        raise ValueError(
            f"the image encoder {image_encoder} projects to {projected} numbers, but the fusion of {base} "
            f"takes {fusion.image_dim}: choose an image_encoder with projection_dim {fusion.image_dim}"
        )


def encode_references(
    image_encoder: CLIPVisionModelWithProjection,
    normalizer: ReferenceNormalizer,
    pixels: Tensor,
    present: Tensor | None = None,
) -> Tensor:
    """Embed reference images: pooled output through CLIP's projection, no L2 norm (docs/method.md, eq. 1).

    Args:
        image_encoder: CLIP vision encoder with projection.
        normalizer: CLIP's mean and standard deviation.
        pixels: (..., 3, R, R) in [0, 1].
        present: (...) bool. On the CPU, absent references are not encoded and become zeros; on an
            accelerator, leaving them out would wait for the device and cost more than it saves.

    Returns:
        (..., d).
    """
    shape = pixels.shape[:-3]
    if not shape.numel():  # the encoder takes no empty batch
        width = image_encoder.config.projection_dim
        return pixels.new_zeros(*shape, width, dtype=image_encoder.dtype)
    flat = pixels.flatten(0, -4)
    chosen = None
    if present is not None and pixels.device.type == "cpu":
        chosen = present.flatten().nonzero().squeeze(1)
        if not len(chosen):  # the encoder takes no empty batch
            chosen = chosen.new_zeros(1)
        flat = flat[chosen]
    embeds = image_encoder(normalizer(flat).to(image_encoder.dtype)).image_embeds
    if chosen is not None:
        embeds = embeds.new_zeros(shape.numel(), embeds.shape[-1]).index_copy(0, chosen, embeds)
    return embeds.unflatten(0, shape)


def subject_slots(parsed: Sequence[ParsedPrompt], device: torch.device | str) -> tuple[Tensor, Tensor]:
    """Token positions (B, K) and presence (B, K) of prompts whose subject counts may differ."""
    positions = [torch.tensor(prompt.subject_token_idx, dtype=torch.long) for prompt in parsed]
    token_idx = pad_sequence(positions, batch_first=True)
    counts = torch.tensor([prompt.num_subjects for prompt in parsed])
    present = torch.arange(token_idx.shape[1])[None] < counts[:, None]
    return token_idx.to(device), present.to(device)


def fuse_references(
    text_embeds: Tensor,
    parsed: Sequence[ParsedPrompt],
    references: Sequence[Sequence[Tensor]],
    image_encoder: CLIPVisionModelWithProjection,
    fusion: Fusion,
) -> Tensor:
    """Fuse every prompt's references into its text embeddings (B, T, d).

    Args:
        text_embeds: (B, T, d) hidden states of the text encoder for ``parsed``.
        parsed: B prompts.
        references: For each prompt the references (N, 3, R, R) in [0, 1] of each subject, in the order of
            its markers.
        image_encoder: CLIP vision encoder with projection.
        fusion: Subject fusion of the same width.
    """
    device = text_embeds.device
    token_idx, present = subject_slots(parsed, device)
    subject_embeds = text_embeds.new_zeros(*token_idx.shape, fusion.image_dim)
    subjects = [subject for row in references for subject in row]
    if subjects:
        # Only real references are encoded: prompts with fewer subjects must not pay for empty slots.
        pixels = torch.cat(subjects).to(device=device, dtype=torch.float32)
        embeds = encode_references(image_encoder, ReferenceNormalizer(device), pixels).to(text_embeds.dtype)
        counts = [len(subject) for subject in subjects]
        several = pad_sequence(list(embeds.split(counts)), batch_first=True)  # (subjects, N, d)
        there = torch.arange(max(counts))[None] < torch.tensor(counts)[:, None]
        pooled = fusion.pool(several, there.to(device))
        subject_embeds = pad_sequence(list(pooled.split([len(row) for row in references])), batch_first=True)
    return fusion(text_embeds, subject_embeds, token_idx, present)


def parse_prompts(
    prompts: Sequence[str], num_references: Sequence[int] | None, tokenizer: Any, fusion: Any
) -> list[ParsedPrompt]:
    """Parse prompts and check their subjects against the references given, if any, and the model's limit.

    Raises:
        PromptError: See :func:`fastcomposer.prompt.parse_prompt`.
        ValueError: If there is no tokenizer.
    """
    if tokenizer is None:
        raise ValueError(
            "this model has no tokenizer, so it cannot read prompts: put one into the base folder's "
            "tokenizer/, or give embeddings instead of prompts"
        )
    counts = [None] * len(prompts) if num_references is None else num_references
    most = None if fusion is None else fusion.config.max_subjects
    return [
        parse_prompt(prompt, tokenizer, num_references=count, max_subjects=most)
        for prompt, count in zip(prompts, counts, strict=True)
    ]
