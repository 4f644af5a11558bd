"""Cross-attention that also gives the columns of the subjects' words: in one fused call, or as written."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable


def fused_attention(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, subject_token_idx: Tensor
) -> tuple[Tensor, Tensor]:
    """Attend by the fused kernel, and keep of the softmax map the subjects' columns alone.

    The backward pass forms the map once more, for both results together; in between, nothing of the T columns
    is held.

    Args:
        query: (B, heads, positions, d).
        key: (B, heads, T, d).
        value: (B, heads, T, d).
        mask: Added to the logits, or ``None``; it gets no gradient.
        subject_token_idx: (B, K) long, the columns.

    Returns:
        The output (B, heads, positions, d), and the probabilities (B, heads, positions, K) in float32.
    """
    return _FusedAttention.apply(query, key, value, mask, subject_token_idx)


def explicit_attention(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, subject_token_idx: Tensor
) -> tuple[Tensor, Tensor]:
    """Attend with the whole softmax map, as the paper writes it: twin of :func:`fused_attention`."""
    with torch.autocast(query.device.type, enabled=False):
        probabilities = _logits(query, key, mask).softmax(dim=-1)
    output = probabilities.to(value.dtype) @ value
    return output, probabilities.gather(-1, _columns(probabilities, subject_token_idx))


class _FusedAttention(torch.autograd.Function):
    """See :func:`fused_attention`."""

    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, subject_token_idx: Tensor
    ) -> tuple[Tensor, Tensor]:
        output = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        with torch.autocast(query.device.type, enabled=False):
            probabilities = _logits(query, key, mask).softmax(dim=-1)
        maps = probabilities.gather(-1, _columns(probabilities, subject_token_idx))
        ctx.save_for_backward(query, key, value, mask, subject_token_idx, output, maps)
        ctx.set_materialize_grads(False)
        return output, maps

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor | None, grad_maps: Tensor | None) -> tuple[Tensor | None, ...]:
        query, key, value, mask, subject_token_idx, output, maps = ctx.saved_tensors
        with torch.autocast(query.device.type, enabled=False):
            probabilities = _logits(query, key, mask).softmax(dim=-1)
            # A softmax gives p·(g − Σ p·g) of the gradient g of its map, whose sum needs no map.
            grad_value = None
            if grad_output is None:
                gradient = torch.zeros_like(probabilities)
            else:
                grad_output = grad_output.float()
                grad_value = (probabilities.transpose(-1, -2) @ grad_output).to(value.dtype)
                gradient = grad_output @ value.float().transpose(-1, -2)
                gradient.sub_((grad_output * output.float()).sum(dim=-1, keepdim=True))
            if grad_maps is None:
                gradient.mul_(probabilities)
            else:
                columns = grad_maps * maps
                gradient.sub_(columns.sum(dim=-1, keepdim=True)).mul_(probabilities)
                gradient.scatter_add_(-1, _columns(gradient, subject_token_idx), columns)
            gradient.mul_(query.shape[-1] ** -0.5)
            grad_query = (gradient @ key.float()).to(query.dtype)
            grad_key = (gradient.transpose(-1, -2) @ query.float()).to(key.dtype)
        return grad_query, grad_key, grad_value, None, None


def _logits(query: Tensor, key: Tensor, mask: Tensor | None) -> Tensor:
    # In float32: columns far below the maximum vanish in half precision, and with them their gradient.
    logits = query.float() @ key.float().transpose(-1, -2) * query.shape[-1] ** -0.5
    return logits if mask is None else logits + mask.float()


def _columns(scores: Tensor, subject_token_idx: Tensor) -> Tensor:
    """Index of the subjects' columns of (B, heads, positions, T)."""
    return subject_token_idx[:, None, None, :].expand(*scores.shape[:3], -1)
