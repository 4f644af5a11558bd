"""Custom Diffusion's closed-form merge of people who were learned apart (Kumari et al. 2023, section 3.2)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import Tensor
from transformers import CLIPTextModel

from fastcomposer.models.text import encode_text

_TEMPLATE = "photo of a {}"
_NUM_WORDS = 1000
_RIDGE = 0.1
"""Fraction of its mean that is added to a diagonal: states of people of one class are nearly the same, and
exact constraints would make weights that are useless for every other text."""


@torch.no_grad()
def merged_weights(
    unet: UNet2DConditionModel,
    tokenizer: Any,
    text_encoder: CLIPTextModel,
    weights: Sequence[Mapping[str, Tensor]],
    phrases: Sequence[Sequence[str]],
) -> dict[str, Tensor]:
    """Key and value projections that give each person's words what their own training gave them.

    Of all such ``W`` the one nearest to the base on other texts: ``min ‖(W − W₀) C_regᵀ‖`` such that
    ``W c = W_n c`` for the states ``c`` of person n's words and of the end after them. The original takes
    ``C_reg`` from web captions; here they are words of the tokenizer's own vocabulary, so that nothing else
    is needed.

    Args:
        unet: The base's U-Net, with ``W₀``.
        tokenizer: Tokenizer with the people's tokens.
        text_encoder: Text encoder with their embeddings.
        weights: Of each training, ``unet.<name>`` to ``W_n`` (o, d).
        phrases: Of each training, what stands for its people in prompts.
    """
    if any(set(state) != set(weights[0]) for state in weights):
        raise ValueError("these concepts cannot be merged: they changed different weights of the U-Net")
    words = sorted(entry.removesuffix("</w>") for entry in tokenizer.get_vocab() if entry.endswith("</w>"))
    spread = max(1, len(words) // _NUM_WORDS)
    others = _states(tokenizer, text_encoder, words[::spread], first=1)
    first = 1 + len(tokenizer(_TEMPLATE.format(""), add_special_tokens=False).input_ids)
    targets = [_states(tokenizer, text_encoder, group, first) for group in phrases]
    states = torch.cat(targets)  # C (m, d)
    reach = torch.linalg.solve(_regular(others.T @ others), states.T)  # G⁻¹ Cᵀ (d, m)
    inner = _regular(states @ reach)
    own = unet.state_dict()
    merged = {}
    for name in weights[0]:
        base = own[name.removeprefix("unet.")].to(states)
        wanted = torch.cat([c @ state[name].to(states).T for c, state in zip(targets, weights, strict=True)])
        merged[name] = (base + (reach @ torch.linalg.solve(inner, wanted - states @ base.T)).T).float()
    return merged


def _regular(gram: Tensor) -> Tensor:
    return gram + _RIDGE * gram.diagonal().mean() * torch.eye(len(gram), dtype=gram.dtype, device=gram.device)


def _states(tokenizer: Any, text_encoder: CLIPTextModel, names: Sequence[str], first: int) -> Tensor:
    """States (m, d) in float64 of texts about some things, from position ``first`` to the end token."""
    found = []
    for start in range(0, len(names), 64):
        texts = [_TEMPLATE.format(name) for name in names[start : start + 64]]
        # Attention is causal: what pads a text changes none of its states.
        encoded = tokenizer(texts, padding=True, truncation=True, return_tensors="pt")
        encoded = encoded.to(text_encoder.device)
        kept = encoded.attention_mask.bool()
        kept[:, :first] = False
        found.append(encode_text(text_encoder, encoded.input_ids)[kept].double())
    return torch.cat(found)
