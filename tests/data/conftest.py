"""A tiny data folder and a tiny tokenizer."""

from __future__ import annotations

import string
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from toy_records import LEFT, RIGHT, add_record

from fastcomposer.data.datamodule import StreamingDataModule
from fastcomposer.data.records import write_ids
from fastcomposer.data.shards import write_shards


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


@pytest.fixture
def shards(folder: Path, tmp_path: Path) -> Path:
    """The ten records in shards of three."""
    assert write_shards(folder, tmp_path / "shards", records_per_shard=3, num_workers=0) == 10
    return tmp_path / "shards"


@pytest.fixture
def streamed(shards: Path, tokenizer: Any) -> Callable[..., StreamingDataModule]:
    """Builds data modules over the shards."""

    def build(root: Any = shards, **changes: Any) -> StreamingDataModule:
        settings: dict[str, Any] = {"resolution": 24, "reference_size": 24, "batch_size": 2}
        return StreamingDataModule(root, tokenizer, **(settings | changes))

    return build


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
