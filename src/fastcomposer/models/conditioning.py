"""Prompts and reference images as conditioning of the backbone: the only file that fuses subjects."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import CLIPTextConfig, CLIPVisionConfig, CLIPVisionModelWithProjection, T5Config
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

from fastcomposer.models.fusion import Fusion
from fastcomposer.models.resampler import PatchStates, free_positions, subject_columns
from fastcomposer.prompt import ParsedPrompt, PromptError, parse_prompt


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
    text_configs: Sequence[CLIPTextConfig | T5Config | None],
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
    return encode_reference_states(image_encoder, normalizer, pixels, present)[0]


def encode_reference_states(
    image_encoder: CLIPVisionModelWithProjection,
    normalizer: ReferenceNormalizer,
    pixels: Tensor,
    present: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Embed reference images, and keep the last hidden states of their patches.

    Args are those of :func:`encode_references`.

    Returns:
        (..., d), and (..., P, w) states, the class token's first.
    """
    shape = pixels.shape[:-3]
    if not shape.numel():  # the encoder takes no empty batch
        width, patches = image_encoder.config.projection_dim, patch_shape(image_encoder.config)
        empty = pixels.new_zeros(shape, dtype=image_encoder.dtype)
        return empty[..., None].expand(*shape, width), empty[..., None, None].expand(*shape, *patches)
    flat = pixels.flatten(0, -4)
    chosen = None
    if present is not None and pixels.device.type == "cpu":
        chosen = present.flatten().nonzero().squeeze(1)
        if not len(chosen):  # the encoder takes no empty batch
            chosen = chosen.new_zeros(1)
        flat = flat[chosen]
    output = image_encoder(normalizer(flat).to(image_encoder.dtype))
    found = (output.image_embeds, output.last_hidden_state)
    if chosen is not None:
        found = tuple(v.new_zeros(shape.numel(), *v.shape[1:]).index_copy(0, chosen, v) for v in found)
    return found[0].unflatten(0, shape), found[1].unflatten(0, shape)


def patch_shape(config: CLIPVisionConfig) -> tuple[int, int]:
    """Number P of the image encoder's states, the class token's included, and their width w."""
    side: Any = config.image_size
    return (side // config.patch_size) ** 2 + 1, config.hidden_size


def token_columns(
    parsed: Sequence[ParsedPrompt], fusion: Fusion | None, device: torch.device | str
) -> tuple[Tensor, Tensor]:
    """Positions of the subjects' tokens that attention maps are for, and presence (B, K).

    Returns:
        (B, K) of the words, or (B, K, M) where the fusion gives a subject several tokens or T5 reads its word
        (:func:`~fastcomposer.models.resampler.subject_columns`); and (B, K) bool.
    """
    token_idx, present = subject_slots(parsed, device)
    num_tokens = 1 if fusion is None else fusion.kind.num_tokens
    input_ids = torch.tensor([prompt.input_ids for prompt in parsed], device=device)
    return subject_columns(input_ids, token_idx, present, num_tokens, t5_slots(parsed, device)), present


def subject_slots(parsed: Sequence[ParsedPrompt], device: torch.device | str) -> tuple[Tensor, Tensor]:
    """Token positions (B, K) and presence (B, K) of prompts whose subject counts may differ."""
    token_idx = _padded([prompt.subject_token_idx for prompt in parsed])
    counts = torch.tensor([prompt.num_subjects for prompt in parsed])
    present = torch.arange(token_idx.shape[1])[None] < counts[:, None]
    return token_idx.to(device), present.to(device)


def t5_slots(parsed: Sequence[ParsedPrompt], device: torch.device | str) -> Tensor | None:
    """Token positions (B, K) among T5's, where its tokenizer has read the prompts."""
    if not parsed[0].input_ids_3:
        return None
    return _padded([prompt.subject_token_idx_3 for prompt in parsed]).to(device)


def _padded(positions: Sequence[Sequence[int]]) -> Tensor:
    return pad_sequence([torch.tensor(row, dtype=torch.long) for row in positions], batch_first=True)


def fuse_references(
    text_embeds: Tensor,
    parsed: Sequence[ParsedPrompt],
    references: Sequence[Sequence[Tensor]],
    image_encoder: CLIPVisionModelWithProjection,
    fusion: Fusion,
) -> Tensor:
    """Fuse every prompt's references into its text embeddings (B, T, d).

    Args:
        text_embeds: (B, T, d) hidden states of the text encoders for ``parsed``.
        parsed: B prompts.
        references: For each prompt the references (N, 3, R, R) in [0, 1] of each subject, in the order of
            its markers.
        image_encoder: CLIP vision encoder with projection.
        fusion: Subject fusion of the same width.
    """
    device = text_embeds.device
    columns, present = token_columns(parsed, fusion, device)
    token_idx = columns if columns.ndim == 2 else columns[..., 0].clamp(min=0)
    subject_embeds = text_embeds.new_zeros(*token_idx.shape, fusion.image_dim)
    patches = None
    subjects = [subject for row in references for subject in row]
    if subjects:
        # Only real references are encoded: prompts with fewer subjects must not pay for empty slots.
        pixels = torch.cat(subjects).to(device=device, dtype=torch.float32)
        counts, rows = [len(subject) for subject in subjects], [len(row) for row in references]
        there = (torch.arange(max(counts))[None] < torch.tensor(counts)[:, None]).to(device)

        def by_subject(values: Tensor) -> Tensor:  # (subjects, N, ...)
            return pad_sequence(list(values.to(text_embeds.dtype).split(counts)), batch_first=True)

        def by_prompt(values: Tensor) -> Tensor:  # (B, K, ...)
            return pad_sequence(list(values.split(rows)), batch_first=True)

        embeds, states = encode_reference_states(image_encoder, ReferenceNormalizer(device), pixels)
        subject_embeds = by_prompt(fusion.pool(by_subject(embeds), there))
        if fusion.kind.num_tokens > 1:
            patches = PatchStates(by_prompt(by_subject(states)), by_prompt(there), columns)
    return fusion(text_embeds, subject_embeds, token_idx, present, patches, t5_slots(parsed, device))


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
    parsed = [
        parse_prompt(prompt, tokenizer, num_references=count, max_subjects=most)
        for prompt, count in zip(prompts, counts, strict=True)
    ]
    if fusion is not None:
        _check_room(parsed, fusion.kind.num_tokens - 1)
    return parsed


def _check_room(parsed: Sequence[ParsedPrompt], further: int) -> None:
    """Refuse prompts whose padding does not hold so many further tokens of each subject."""
    for prompt in parsed:
        free = int(free_positions(torch.tensor([prompt.input_ids])))
        if prompt.num_subjects * further > free:
            length = len(prompt.input_ids)
            if further > length - 3:  # the word alone, between start and end
                raise ValueError(
                    f"the checkpoint has num_tokens={further + 1} of each subject, more than any prompt of "
                    f"{length} positions holds"
                )
            raise PromptError(
                f"prompt {prompt.text!r} leaves {free} positions, and each of its {prompt.num_subjects} "
                f"subjects takes {further} beside its word: shorten it"
            )
