"""Models with random weights, from configurations alone: for tests and dry runs, with nothing to download."""

from __future__ import annotations

import json
import zlib
from typing import Any

import torch
from transformers import CLIPTextConfig, CLIPTokenizer

from fastcomposer.models.source import ModelSource, with_dtype
from fastcomposer.utils.assets import packaged

# Merges of the embedded base: CLIP's own 48 894 are not in this repository.
_WORDS = packaged("data/mini/tokenizer/tokenizer.json")


class RandomSource(ModelSource):
    """An architecture whose weights are drawn, the same ones each time."""

    def load(self, cls: Any, subfolder: str, dtype: torch.dtype = torch.float32) -> Any:
        """Build a network and draw its weights; those of a part depend on its name alone."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(zlib.crc32(subfolder.encode()))
            return with_dtype(self.configured(cls, subfolder), dtype).eval()

    def tokenizer(self, subfolder: str = "tokenizer") -> CLIPTokenizer | None:
        """The architecture's tokenizer, or one that stands in for CLIP's where it has none."""
        if self.has(subfolder):
            return super().tokenizer(subfolder)
        config = self.text_config_of(subfolder)
        return None if config is None else stand_in_tokenizer(config)


def stand_in_tokenizer(config: CLIPTextConfig) -> CLIPTokenizer:
    """Make a tokenizer for a text encoder that was never trained.

    It splits words as the embedded base does and puts start, end and padding where the encoder looks for
    them. A trained encoder would understand none of it.

    Args:
        config: Configuration of the text encoder.

    Raises:
        ValueError: If the encoder's vocabulary is too small.
    """
    model = json.loads(_WORDS.read_text(encoding="utf-8"))["model"]
    special: Any = {"<|startoftext|>": config.bos_token_id, "<|endoftext|>": config.eos_token_id}
    words = {word: index for word, index in model["vocab"].items() if word not in special}
    if max(words.values()) >= min(special.values()):
        raise ValueError(
            f"a vocabulary of {config.vocab_size} with its end at {config.eos_token_id} has no room for "
            f"the {len(words)} words of {_WORDS.parent}"
        )
    pads = {index: word for word, index in (words | special).items()}
    return CLIPTokenizer(
        vocab=words | special,
        merges=[tuple(merge) for merge in model["merges"]],  # type: ignore[misc]
        pad_token=pads[config.pad_token_id],  # type: ignore[index]
        model_max_length=config.max_position_embeddings,
    )
