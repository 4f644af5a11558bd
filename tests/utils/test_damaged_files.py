"""Damaged files of ours: an error with the name of the file, whatever it holds or is."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from fastcomposer.cli.common import message_of
from fastcomposer.composer import FastComposer
from fastcomposer.data.reference import prepare_reference
from fastcomposer.evaluation.results import read_results
from fastcomposer.models.weights_io import load_trained_weights, save_trained_weights
from fastcomposer.sweeps.jobs import read_job
from fastcomposer.training.checkpoints import newest_complete
from fastcomposer.training.personalization.concept import read_concepts
from fastcomposer.utils.json_files import read_json_as

READERS: dict[str, Callable[[Path], Any]] = {
    "job.json": lambda file: read_job(file.parent),
    "results.json": read_results,
    "concept.json": lambda file: read_concepts(file.parent),
    "training.json": lambda file: read_json_as(list[int], file, "record"),
    "last.ckpt": lambda file: newest_complete(file.parent),
    "face.png": lambda file: prepare_reference(file, 8),
}
CONTENTS = [b"", b"\xcd\x80", b"null", b"5", b'{"number": null}', b"[" * 100_000]


@pytest.mark.parametrize("content", [*CONTENTS, "FIFO", "folder"], ids=lambda content: repr(content[:12]))
@pytest.mark.parametrize("name", READERS)
def test_damage_is_named(name: str, content: bytes | str, tmp_path: Path) -> None:
    file = tmp_path / name
    if isinstance(content, bytes):
        file.write_bytes(content)
    else:
        os.mkfifo(file) if content == "FIFO" else file.mkdir()
    with pytest.raises(Exception) as caught:
        READERS[name](file)
    assert name in (message_of(caught.value) or "")


@pytest.mark.parametrize("damage", [float("nan"), float("inf"), "type", "shape"])
def test_weights_that_are_none_are_refused(damage: Any, tiny_base: Path, tmp_path: Path) -> None:
    base = shutil.copytree(tiny_base, tmp_path / "base")
    model = FastComposer.from_pretrained(base)
    trained = save_trained_weights(model, tmp_path / "trained.safetensors")
    own = base / "text_encoder" / "model.safetensors"
    for file, read in (
        (trained, lambda: load_trained_weights(model, trained)),
        (own, lambda: FastComposer.from_pretrained(base)),
    ):
        state = load_file(file)
        name = next(name for name in state if name.endswith("weight"))
        changed = {"type": state[name].to(torch.int64), "shape": state[name].flatten()[:1].clone()}
        bad = changed.get(damage) if isinstance(damage, str) else torch.full_like(state[name], damage)
        if file == own and damage == "type":  # the library casts these
            continue
        save_file({**state, name: bad}, file, {"format": "pt"})
        with pytest.raises(ValueError, match=str(tmp_path)) as caught:
            read()
        assert damage == "shape" or name.removeprefix("text_model.") in str(caught.value)


_WRONG: list[bytes | None] = [b"\xcd\x80", b"null", b'{"model_max_length": "x"}', None]
_TOKENIZERS = [(name, content) for name in ("vocab.json", "merges.txt") for content in _WRONG]
_TOKENIZERS += [("tokenizer_config.json", content) for content in _WRONG[:-1]]


@pytest.mark.parametrize(("name", "content"), _TOKENIZERS)
def test_damaged_tokenizers_are_named(
    name: str, content: bytes | None, tiny_base: Path, tmp_path: Path
) -> None:
    base = shutil.copytree(tiny_base, tmp_path / "base")
    (base / "tokenizer" / name).unlink()
    if content is not None:
        (base / "tokenizer" / name).write_bytes(content)
    with pytest.raises(ValueError, match=f"tokenizer of {base}"):
        FastComposer.from_pretrained(base)
