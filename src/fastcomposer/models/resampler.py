"""Further tokens of a subject: what the patch states of its references hold, beside its fused word."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class PatchStates:
    """What a resampler reads, and where its tokens go.

    Attributes:
        states: (B, K, N, P, w) last hidden states of the image encoder for N references of K subjects, the
            class token's first.
        present: (B, K, N) bool, which references there are.
        columns: (B, K, M) long, of the words and their further tokens, see :func:`subject_columns`.
    """

    states: Tensor
    present: Tensor
    columns: Tensor


class _Layer(nn.Module):
    """Cross-attention to the patches and an MLP, each on a residual."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.layer_norm1 = nn.LayerNorm(width)
        self.to_q = nn.Linear(width, width, bias=False)
        self.to_kv = nn.Linear(width, 2 * width, bias=False)
        self.to_out = nn.Linear(width, width)
        self.layer_norm2 = nn.LayerNorm(width)
        self.fc1 = nn.Linear(width, 4 * width)
        self.fc2 = nn.Linear(4 * width, width)

    def forward(self, tokens: Tensor, patches: Tensor, mask: Tensor) -> Tensor:
        """Map tokens (S, M, d), which attend to patches (S, P, d) where mask (S, 1, 1, P) is true."""
        query, key, value = (
            x.unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for x in (self.to_q(self.layer_norm1(tokens)), *self.to_kv(patches).chunk(2, dim=-1))
        )
        found = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        tokens = tokens + self.to_out(found.transpose(1, 2).flatten(2))
        return tokens + self.fc2(F.gelu(self.fc1(self.layer_norm2(tokens))))


class Resampler(nn.Module):
    """Learned queries, shifted by the subject's word, read the patch states of all its references.

    Two layers of cross-attention over ``W·LN(p) + position`` and an MLP, and a layer norm at the end, after
    the image projection of IP-Adapter-plus (Ye et al. 2023, arXiv 2308.06721). What comes out is added to the
    states of the padding that the tokens take the positions of. The last layer norm starts at zero: an
    untrained resampler leaves the conditioning as it is, and training begins at the model without it.

    Args:
        embed_dim: Width d of the text encoder.
        num_tokens: Number M of tokens of a subject.
        patches: Number P and width w of the image encoder's states.
        num_layers: Number of layers.
        head_dim: Width of a head of attention; one that divides d.
    """

    def __init__(
        self,
        embed_dim: int,
        num_tokens: int,
        patches: tuple[int, int],
        num_layers: int = 2,
        head_dim: int = 32,
    ) -> None:
        super().__init__()
        count, width = patches
        heads = embed_dim // head_dim if embed_dim % head_dim == 0 else 1
        self.queries = nn.Parameter(torch.randn(num_tokens, embed_dim) * embed_dim**-0.5)
        self.word = nn.Linear(embed_dim, embed_dim)
        self.norm_patches = nn.LayerNorm(width)
        self.proj_patches = nn.Linear(width, embed_dim)
        self.position = nn.Parameter(torch.randn(count, embed_dim) * 0.02)
        self.layers = nn.ModuleList(_Layer(embed_dim, heads) for _ in range(num_layers))
        self.layer_norm = nn.LayerNorm(embed_dim)
        nn.init.zeros_(self.layer_norm.weight)

    def forward(self, words: Tensor, states: Tensor, present: Tensor) -> Tensor:
        """Make the tokens of each subject.

        Args:
            words: (S, d) states of the subjects' words.
            states: (S, N, P, w) patch states of their references.
            present: (S, N) bool, which references there are; those of a subject without any count as one.

        Returns:
            (S, M, d).
        """
        patches = self.proj_patches(self.norm_patches(states)) + self.position
        seen = present | ~present.any(-1, keepdim=True)  # a softmax over nothing would be NaN
        mask = seen.repeat_interleave(states.shape[2], dim=1)[:, None, None]
        tokens = self.queries + self.word(words).unsqueeze(1)
        for layer in self.layers:
            tokens = layer(tokens, patches.flatten(1, 2), mask)
        return self.layer_norm(tokens)


def free_positions(input_ids: Tensor) -> Tensor:
    """Count the positions of padding (B,) of token ids (B, T); the end token is none of them.

    They are the ids at the end that are the same, less one: the end token, which most tokenizers pad with.
    """
    same = input_ids.flip(1) == input_ids[:, -1:]
    return same.cumprod(dim=1).sum(dim=1) - 1


def subject_columns(
    input_ids: Tensor,
    subject_token_idx: Tensor,
    subject_present: Tensor,
    num_tokens: int,
    subject_token_idx_3: Tensor | None = None,
) -> Tensor:
    """Find the positions of the tokens of each subject: its word's, those in the padding, its word's of T5.

    The first subject has the last positions of the prompt, the second those before, and so on; empty slots
    take none. Tokens that would lie on words are left out.

    Args:
        input_ids: (B, T) long, of CLIP.
        subject_token_idx: (B, K) long, position of each subject's word.
        subject_present: (B, K) bool.
        num_tokens: Tokens of a subject among CLIP's, its word included.
        subject_token_idx_3: (B, K) long, position of each subject's word among T5's, where there are some.

    Returns:
        ``subject_token_idx`` with one token of a subject and without T5; else (B, K, M) long, -1 for tokens
        that there are none of; M is ``num_tokens``, and one more with T5's.
    """
    if num_tokens == 1 and subject_token_idx_3 is None:
        return subject_token_idx
    length = input_ids.shape[1]
    more = num_tokens - 1
    rank = subject_present.long().cumsum(dim=1)
    offsets = torch.arange(more, device=input_ids.device)
    further = length - rank[..., None] * more + offsets
    room = (length - free_positions(input_ids))[:, None, None]
    columns = [subject_token_idx[..., None], further.where(further >= room, -1)]
    columns += [] if subject_token_idx_3 is None else [subject_token_idx_3[..., None]]
    return torch.cat(columns, dim=-1).where(subject_present[..., None], -1)


def subject_states(states: Tensor, columns: Tensor) -> Tensor:
    """Gather the states of each subject's tokens.

    Args:
        states: (B, T, d) of the prompt.
        columns: (B, K) or (B, K, M), see :meth:`~fastcomposer.FastComposer.subject_columns`.

    Returns:
        (B, K, M, d), 0 for tokens that there are none of.
    """
    columns = columns if columns.ndim == 3 else columns[..., None]
    index = columns.clamp(min=0).flatten(1)[..., None].expand(-1, -1, states.shape[-1])
    return states.gather(1, index).unflatten(1, columns.shape[1:]) * (columns >= 0)[..., None]
