"""New words for a text encoder: in copies of its tokenizer and its table, never in the base folder."""

from __future__ import annotations

import copy
from collections.abc import Collection, Mapping, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from transformers import CLIPTextModel

_Module = TypeVar("_Module", bound=nn.Module)


class NewTokens(nn.Module):
    """A frozen table of token embeddings with trained rows ``ids``, starting from ``initial`` (n, d).

    The rows are a parameter of their own, so that the optimizer touches no other token.
    """

    ids: Tensor

    def __init__(self, table: nn.Embedding, ids: Sequence[int], initial: Tensor) -> None:
        super().__init__()
        self.table = table
        self.new = nn.Parameter(initial.detach().clone())
        self.register_buffer("ids", torch.tensor(ids), persistent=False)

    def forward(self, input_ids: Tensor) -> Tensor:
        """Embed token ids (B, T) as (B, T, d)."""
        known = self.table(input_ids.clamp(max=self.table.num_embeddings - 1))
        matches = input_ids[..., None] == self.ids
        return torch.where(matches.any(-1, keepdim=True), self.new[matches.int().argmax(-1)], known)


def with_tokens(tokenizer: Any, tokens: Sequence[str]) -> tuple[Any, list[int]]:
    """Copy a CLIP tokenizer and add new tokens such as ``<adam>``; returns the copy and their ids."""
    names = [token.lower() for token in tokens]
    known = {str(token).lower() for token in tokenizer.get_vocab()}
    taken = sorted({name for name in names if name in known or names.count(name) > 1})
    if taken:
        raise ValueError(f"token {', '.join(taken)} is there already: give each person another name")
    grown = copy.deepcopy(tokenizer)
    grown.add_tokens(list(tokens))
    return grown, grown.convert_tokens_to_ids(list(tokens))


def word_embedding(tokenizer: Any, text_encoder: CLIPTextModel, word: str) -> Tensor:
    """Embedding (d,) of a word; the mean over its tokens where it has several."""
    ids = tokenizer(word, add_special_tokens=False).input_ids
    if not ids:
        raise ValueError(f"method.initial_word={word!r}: the tokenizer makes no token of this word")
    table: Any = text_encoder.get_input_embeddings()
    return table.weight.detach()[torch.tensor(ids, device=table.weight.device)].mean(0)


def entry_embedding(tokenizer: Any, text_encoder: CLIPTextModel, entry: str) -> Tensor:
    """Embedding (d,) of an entry of the vocabulary, which may only begin longer words; else of the word."""
    number = tokenizer.get_vocab().get(entry)
    if number is None:
        return word_embedding(tokenizer, text_encoder, entry)
    table: Any = text_encoder.get_input_embeddings()
    return table.weight.detach()[number]


def with_vectors(
    tokenizer: Any, text_encoder: CLIPTextModel, vectors: Mapping[str, Tensor]
) -> tuple[Any, CLIPTextModel]:
    """Copy tokenizer and text encoder, sharing all but the table, and add embeddings (d,) by token."""
    tokenizer, ids = with_tokens(tokenizer, list(vectors))
    table: Any = text_encoder.get_input_embeddings()
    weight = table.weight.detach()
    for token, vector in vectors.items():
        if vector.shape != weight.shape[1:]:
            raise ValueError(
                f"the concept's token {token} has {len(vector)} numbers, but the base's tokens have "
                f"{weight.shape[1]}: it was learned from another base"
            )
    missing = max(0, max(ids) + 1 - len(weight))
    weight = torch.cat([weight, weight.new_zeros(missing, weight.shape[1])])
    weight[ids] = torch.stack(list(vectors.values())).to(weight)
    text_encoder = shared_copy(text_encoder)
    text_encoder.set_input_embeddings(nn.Embedding.from_pretrained(weight, freeze=True))
    text_encoder.config.vocab_size = len(weight)
    return tokenizer, text_encoder


def shared_copy(module: _Module, own: Collection[str] = ()) -> _Module:
    """Copy a network without copying its weights, but for the parameters named in ``own``."""
    memo: dict[int, Any] = {}
    for name, value in module.named_parameters():
        data = value.detach().clone() if name in own else value.detach()
        memo[id(value)] = nn.Parameter(data, value.requires_grad)
    for buffer in module.buffers():
        memo[id(buffer)] = buffer.detach()
    return copy.deepcopy(module, memo)
