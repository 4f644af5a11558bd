"""A tiny data folder and a tiny tokenizer."""

from __future__ import annotations

import string
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from toy_records import LEFT, RIGHT, add_record

from fastcomposer.data.records import write_ids


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Ten records of two people: 0 to 7 to train on, 8 and 9 to test on."""
    root = tmp_path / "scenes"
    ids = [f"{number:07d}" for number in range(10)]
    for number, record_id in enumerate(ids):
        add_record(root, record_id, LEFT, RIGHT, seed=number)
    write_ids(root, "train", ids[:8])
    write_ids(root, "test", ids[8:])
    write_ids(root, "all", ids)
    return root


@pytest.fixture(scope="session")
def make_tokenizer() -> Callable[[int], Any]:
    """Builds CLIP tokenizers of a given limit: 'a', 'man', 'woman' and 'and' are one token each."""
    from transformers import CLIPTokenizer

    letters = string.ascii_lowercase + "."
    entries = [*letters, *(f"{letter}</w>" for letter in letters)]
    merges = ["a n", "m an</w>", "a n</w>", "w o", "wo man</w>", "an d</w>"]
    entries += [merge.replace(" ", "") for merge in merges]
    entries += ["<|startoftext|>", "<|endoftext|>"]
    vocabulary = {entry: number for number, entry in enumerate(entries)}
    pairs = [tuple(merge.split()) for merge in merges]

    def build(limit: int) -> Any:
        return CLIPTokenizer(vocab=vocabulary, merges=pairs, model_max_length=limit)

    return build


@pytest.fixture(scope="session")
def tokenizer(make_tokenizer: Callable[[int], Any]) -> Any:
    return make_tokenizer(12)
