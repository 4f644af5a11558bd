"""Text conditioning of the backbone, by one, two or three text encoders.

Stable Diffusion has one CLIP text encoder and attends to its last hidden states. Stable Diffusion XL (Podell
et al. 2023, section 2) has two: it attends to the states before the last of both, side by side, and takes the
second encoder's pooled embedding and the sizes of the image with the timestep. Stable Diffusion 3 (Esser et
al. 2024) has the same two, both with a projection, and takes the pooled embeddings of both. The states of a
third one, T5, follow theirs along the sequence where a base has it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import CLIPTextModel, CLIPTextModelWithProjection, T5EncoderModel

ENCODERS: Mapping[str, Any] = {
    "text_encoder": CLIPTextModel,
    "text_encoder_2": CLIPTextModelWithProjection,
    "text_encoder_3": T5EncoderModel,
}
"""Usual classes of the text encoders by the names of their folders; bases have the first, two or all."""


@dataclass(frozen=True)
class TextStates:
    """Encoded prompts.

    Attributes:
        tokens: (B, T, d) states that the backbone attends to; of two encoders side by side, and then T5's,
            to whose width zeros pad the others. Zeros replace those of a missing T5.
        pooled: (B, p) of the encoders that have a projection, or ``None`` where there is one encoder alone.
    """

    tokens: Tensor
    pooled: Tensor | None = None

    def expand(self, count: int) -> TextStates:
        """Those of one prompt, as those of ``count`` prompts."""
        pooled = None if self.pooled is None else self.pooled.expand(count, -1)
        return TextStates(self.tokens.expand(count, -1, -1), pooled)


class TextConditioner:
    """Encodes token ids for the backbone.

    Args:
        text_encoder: The first encoder.
        text_encoder_2: The second one, or ``None``.
        tokenizer: The first encoder's tokenizer; both are needed where there are two encoders.
        tokenizer_2: The second one's: the same vocabulary, with other padding.
        zero_empty: Whether an empty prompt gives zeros: ``force_zeros_for_empty_prompt`` in sampling.
        text_encoder_3: T5, or ``None``.
        t5_shape: Number and width of T5's states, or of the zeros in their place; ``None`` for other bases.

    Raises:
        ValueError: If a tokenizer is missing or the vocabularies differ.
    """

    def __init__(
        self,
        text_encoder: CLIPTextModel,
        text_encoder_2: CLIPTextModelWithProjection | None = None,
        tokenizer: Any = None,
        tokenizer_2: Any = None,
        zero_empty: bool = False,
        text_encoder_3: T5EncoderModel | None = None,
        t5_shape: tuple[int, int] | None = None,
    ) -> None:
        if text_encoder_2 is not None and (tokenizer is None or tokenizer_2 is None):
            raise ValueError("a model with two text encoders needs tokenizer/ and tokenizer_2/ in its base")
        check_tokenizers(tokenizer, tokenizer_2)
        self.encoder, self.second, self.third = text_encoder, text_encoder_2, text_encoder_3
        self.tokenizer, self.tokenizer_2, self.zero_empty = tokenizer, tokenizer_2, zero_empty
        self.t5_shape = t5_shape

    @property
    def length(self) -> int:
        """Number of CLIP's tokens."""
        return self.encoder.config.max_position_embeddings

    def encode(self, input_ids: Tensor, *, pad: bool = True) -> TextStates:
        """Encode token ids (B, T): those of the first encoder's tokenizer, then T5's where it is there.

        Zeros replace the states of a missing T5; with ``pad=False``, as in a cache, they are left out.

        Raises:
            ValueError: If T5 is there and its ids are missing.
        """
        clip = self._clip_states(input_ids[:, : self.length])
        if self.third is None:
            return self.pad(clip) if pad else clip
        if input_ids.shape[1] <= self.length:
            raise ValueError("text_encoder_3 needs T5's ids in input_ids: read captions by a JointTokenizer")
        states = self.third(input_ids[:, self.length :])[0]
        return TextStates(torch.cat([self.pad(clip).tokens[:, : self.length], states], dim=1), clip.pooled)

    def pad(self, states: TextStates) -> TextStates:
        """Pad states with zeros to T5's width, and to its number of states where these are missing."""
        if self.t5_shape is None:
            return states
        (_, t, d), (length, width) = states.tokens.shape, self.t5_shape
        return replace(states, tokens=F.pad(states.tokens, (0, width - d, 0, self.length + length - t)))

    def _clip_states(self, input_ids: Tensor) -> TextStates:
        if self.second is None:
            return TextStates(encode_text(self.encoder, input_ids))
        first: Any = self.encoder(input_ids, output_hidden_states=True)
        second: Any = self.second(self._second_ids(input_ids), output_hidden_states=True)
        tokens = torch.cat([first.hidden_states[-2], second.hidden_states[-2]], dim=-1)
        both = [output.text_embeds for output in (first, second) if "text_embeds" in output]
        pooled = torch.cat(both, dim=-1)
        if self.zero_empty:
            empty = input_ids[:, 1] == self.tokenizer.eos_token_id
            tokens = tokens.masked_fill(empty[:, None, None], 0)
            pooled = pooled.masked_fill(empty[:, None], 0)
        return TextStates(tokens, pooled)

    def _second_ids(self, input_ids: Tensor) -> Tensor:
        """The same words with the second tokenizer's padding, which begins after the first end token."""
        # The tokenizer's end token: that in the configurations of released encoders is another.
        end = (input_ids == self.tokenizer.eos_token_id).int()
        return input_ids.masked_fill(end.cumsum(dim=1) > end, self.tokenizer_2.pad_token_id)

    def added_condition(self, pooled: Tensor | None, sizes: Tensor) -> dict[str, Tensor] | None:
        """The U-Net's ``added_cond_kwargs``: ``None`` with one encoder. A transformer takes the embeds.

        Args:
            pooled: (B, p) of :class:`TextStates`.
            sizes: (B, 6) or (6,): height and width of the image before it was resized, top and left of the
                crop, height and width wanted; pixels.

        Raises:
            ValueError: If the pooled embeddings are missing.
        """
        if self.second is None:
            return None
        if pooled is None:
            raise ValueError(
                "this model has two text encoders: precomputed text_embeds need pooled_text_embeds beside"
            )
        return {"text_embeds": pooled, "time_ids": sizes.to(pooled).expand(len(pooled), 6)}


def encode_text(text_encoder: CLIPTextModel, input_ids: Tensor) -> Tensor:
    """Last hidden states (B, T, d) of token ids (B, T)."""
    return text_encoder(input_ids).last_hidden_state


def sequence_length(index: Mapping[str, Any]) -> int:
    """Number of T5's tokens, or of the zeros in place of its states, by a base's ``model_index.json``."""
    return index.get("max_sequence_length", 256)


def check_tokenizers(first: Any, second: Any) -> None:
    """Refuse tokenizers of different vocabularies: a subject's word must have one position in both."""
    if first is not None and second is not None and first.get_vocab() != second.get_vocab():
        raise ValueError("tokenizer and tokenizer_2 have different vocabularies: subjects cannot be placed")
