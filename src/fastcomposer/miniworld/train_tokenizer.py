"""Training of the embedded base's tokenizer: byte-pair encoding of CLIP's kind."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tokenizers.pre_tokenizers import ByteLevel
from tokenizers.trainers import BpeTrainer
from transformers import CLIPTokenizer

from fastcomposer.data.records import read_ids, read_json

_SPECIAL = ("<|startoftext|>", "<|endoftext|>")


def train_tokenizer(captions: Iterable[str], vocab_size: int = 1024) -> CLIPTokenizer:
    """Learn merges from captions; the vocabulary has at most ``vocab_size`` tokens, special ones included.

    The tokenizer gives 77 tokens, padded with the end token as in Stable Diffusion.
    """
    blank = CLIPTokenizer().backend_tokenizer  # CLIP's normalization and splitting around an empty vocabulary
    alphabet = sorted(ByteLevel.alphabet())
    trainer = BpeTrainer(
        vocab_size=vocab_size - len(_SPECIAL),
        end_of_word_suffix="</w>",
        initial_alphabet=alphabet,
        show_progress=False,
    )
    blank.train_from_iterator(sorted(set(captions)), trainer)  # sorted: the same captions, the same merges
    model = json.loads(blank.to_str())["model"]
    vocab = model["vocab"]
    # Single bytes at the end of a word must be tokens, or unseen words would lose letters.
    for token in (*(byte + "</w>" for byte in alphabet), *_SPECIAL):
        vocab.setdefault(token, len(vocab))
    merges: Any = [tuple(pair) for pair in model["merges"]]
    return CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=77)


def tokenizer_of(folder: str | Path, root: str | Path) -> CLIPTokenizer:
    """Load the tokenizer of a base folder; where there is none, learn it from captions.

    Args:
        folder: The base folder.
        root: Data folder of rendered scenes, for the captions.
    """
    if not (Path(folder) / "tokenizer").is_dir():
        records = [read_json(root, record_id) for record_id in read_ids(root, "train")]
        rich = [str(record.extra.get("rich_caption", record.caption)) for record in records]
        tokenizer = train_tokenizer([*(record.caption for record in records), *rich])
        tokenizer.save_pretrained(Path(folder) / "tokenizer")
    return CLIPTokenizer.from_pretrained(folder, subfolder="tokenizer")
