"""Training of the embedded base's tokenizer: byte-pair encoding of CLIP's kind."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tokenizers.trainers import BpeTrainer
from transformers import CLIPTokenizer

from fastcomposer.data.records import read_ids, read_json

MAX_LENGTH = 77
_SPECIAL = ("<|startoftext|>", "<|endoftext|>")


def train_tokenizer(captions: Iterable[str], vocab_size: int = 1024) -> CLIPTokenizer:
    """Learn merges from captions.

    Args:
        captions: Texts to learn from.
        vocab_size: Upper bound of the vocabulary, special tokens included.

    Returns:
        A tokenizer of 77 tokens, padded with the end token as in Stable Diffusion.
    """
    blank = CLIPTokenizer().backend_tokenizer  # CLIP's normalization and splitting around an empty vocabulary
    trainer = BpeTrainer(
        vocab_size=vocab_size - len(_SPECIAL),
        end_of_word_suffix="</w>",
        initial_alphabet=_byte_alphabet(),
        show_progress=False,
    )
    blank.train_from_iterator(sorted(set(captions)), trainer)  # sorted: the same captions, the same merges
    learned = blank.model
    vocab, merges = _pieces(learned)
    vocab |= {token: len(vocab) + i for i, token in enumerate(_SPECIAL)}
    return CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=MAX_LENGTH)


def tokenizer_of(folder: str | Path, root: str | Path) -> CLIPTokenizer:
    """Load the tokenizer of a base folder; where there is none, learn it from a data folder's captions.

    Args:
        folder: The base folder.
        root: Data folder of rendered scenes.
    """
    if not (Path(folder) / "tokenizer").is_dir():
        captions: list[str] = []
        for record_id in read_ids(root, "train"):
            record = read_json(root, record_id)
            captions += [record.caption, str(record.extra.get("rich_caption", record.caption))]
        save_tokenizer(train_tokenizer(captions), folder)
    return CLIPTokenizer.from_pretrained(folder, subfolder="tokenizer")


def save_tokenizer(tokenizer: CLIPTokenizer, folder: str | Path) -> None:
    """Write ``tokenizer/`` of a base folder."""
    tokenizer.save_pretrained(Path(folder) / "tokenizer")


def _byte_alphabet() -> list[str]:
    from tokenizers.pre_tokenizers import ByteLevel

    return sorted(ByteLevel.alphabet())


def _pieces(model: object) -> tuple[dict[str, int], Any]:
    import json
    import tempfile

    # The library hands out a trained model through files only.
    with tempfile.TemporaryDirectory() as folder:
        model.save(folder)  # type: ignore[attr-defined]
        vocab = json.loads((Path(folder) / "vocab.json").read_text())
        lines = (Path(folder) / "merges.txt").read_text().splitlines()
    merges = [tuple(line.split()) for line in lines if line and not line.startswith("#")]
    # Single bytes at the end of a word must be known, or unseen words would lose letters.
    for byte in _byte_alphabet():
        vocab.setdefault(byte + "</w>", len(vocab))
    return vocab, merges
