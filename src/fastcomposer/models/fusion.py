"""Composed conditioning: a subject's image embedding fused into the embedding of its word."""

from __future__ import annotations

from typing import Any

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn


class _Mlp(nn.Module):
    """``fc2(GELU(fc1(LN(x))))``, plus ``x`` where ``residual``."""

    def __init__(self, in_dim: int, out_dim: int, hidden_dim: int, *, residual: bool) -> None:
        super().__init__()
        self.layernorm = nn.LayerNorm(in_dim)
        self.fc1 = nn.Linear(in_dim, hidden_dim)
        self.fc2 = nn.Linear(hidden_dim, out_dim)
        self.activation = nn.GELU()
        self.residual = residual

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., in_dim) to (..., out_dim)."""
        out = self.fc2(self.activation(self.fc1(self.layernorm(x))))
        return out + x if self.residual else out


class SubjectFusion(ModelMixin, ConfigMixin):  # type: ignore[misc]
    """Writes each subject's image embedding into the text embedding of its word (PAPER.md, Method 1).

    ``c'_j = LN(MLP2(MLP1([c_j ; e]) + c_j))`` at the subject's token j; every other token stays as it is, bit
    for bit. Parameter names are those of ``postfuse_module`` in the released checkpoint. Saved pipelines name
    this class by its module, so neither can be renamed.

    Args:
        embed_dim: Width d of the text encoder and of the projected image embedding.
        max_subjects: Most subjects in one prompt that the model was trained for; ``None`` for no limit.
    """

    config: Any

    @register_to_config
    def __init__(self, embed_dim: int = 768, max_subjects: int | None = 4) -> None:
        super().__init__()
        self.mlp1 = _Mlp(2 * embed_dim, embed_dim, embed_dim, residual=False)
        self.mlp2 = _Mlp(embed_dim, embed_dim, embed_dim, residual=True)
        self.layer_norm = nn.LayerNorm(embed_dim)

    @classmethod
    def from_pretrained(cls, *args: Any, **kwargs: Any) -> Any:
        """Load a saved fusion, as every diffusers model does."""
        loaded = super().from_pretrained(*args, **kwargs)
        # Weights mapped from a file lie at odd addresses, where products with a single row round differently.
        # Copied, they give the pictures of the model that was saved, bit for bit.
        for parameter in (loaded[0] if isinstance(loaded, tuple) else loaded).parameters():
            parameter.data = parameter.data.clone()
        return loaded

    def fuse(self, word_embeds: Tensor, subject_embeds: Tensor) -> Tensor:
        """Fuse word embeddings (..., d) with subject embeddings (..., d) into (..., d)."""
        fused = self.mlp1(torch.cat([word_embeds, subject_embeds], dim=-1)) + word_embeds
        return self.layer_norm(self.mlp2(fused))

    def forward(
        self, text_embeds: Tensor, subject_embeds: Tensor, subject_token_idx: Tensor, subject_present: Tensor
    ) -> Tensor:
        """Replace the word embedding of every subject.

        Args:
            text_embeds: (B, T, d) hidden states of the text encoder.
            subject_embeds: (B, K, d) projected image embeddings.
            subject_token_idx: (B, K) long, position of each subject's word; ignored in empty slots.
            subject_present: (B, K) bool, which slots hold a subject.

        Returns:
            (B, T, d) embeddings in the dtype of ``text_embeds``.
        """
        if subject_token_idx.shape[1] == 0:
            return text_embeds
        width = text_embeds.shape[-1]
        words = text_embeds.gather(1, subject_token_idx.unsqueeze(-1).expand(-1, -1, width))
        fused = self.fuse(words, subject_embeds.to(text_embeds.dtype)).to(text_embeds.dtype)
        # Each token looks up its slot instead of each slot writing its token: empty slots then need no place
        # to write to, and no shape depends on values that the host would have to wait for.
        tokens = torch.arange(text_embeds.shape[1], device=text_embeds.device)
        owners = (tokens[None, :, None] == subject_token_idx[:, None, :]) & subject_present[:, None, :]
        slot = owners.int().argmax(dim=-1, keepdim=True)
        return fused.gather(1, slot.expand(-1, -1, width)).where(owners.any(-1, keepdim=True), text_embeds)
