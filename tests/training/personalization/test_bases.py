"""The fine-tuning methods on bases of every kind: random weights, and a single file with an architecture."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import save_file
from single_file_layout import single_file_state
from tiny_architectures import narrow

from fastcomposer.composer import FastComposer
from fastcomposer.data.portraits import PortraitSettings
from fastcomposer.models.loading import source_fingerprint

Make = Callable[..., Any]


@pytest.fixture(scope="module", params=["sd15", "sd21"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An architecture, a single file of it, and an image encoder with a tokenizer."""
    folder = narrow(request.param, tmp_path_factory.mktemp("bases") / request.param)
    model = FastComposer.from_pretrained("no/base", architecture=folder, weights="random")
    state = {name: value.contiguous() for name, value in single_file_state(model).items()}
    save_file(state, folder / "model.safetensors")
    model.image_encoder.save_pretrained(folder / "clip")
    model.tokenizer.save_pretrained(folder / "clip")
    return folder


def kinds(folder: Path) -> dict[str, dict[str, Any]]:
    """Two ways to the same weights."""
    file = {"base": str(folder / "model.safetensors"), "image_encoder": str(folder / "clip")}
    return {
        "random": {"base": "no/base", "architecture": str(folder), "weights": "random"},
        "file": {**file, "architecture": str(folder)},
    }


def test_bases_differ_by_their_weights(folder: Path, tmp_path: Path) -> None:
    random, file = kinds(folder)["random"], kinds(folder)["file"]
    file.pop("image_encoder")
    assert source_fingerprint(**random) == source_fingerprint(**random | {"base": "other/base"})
    assert source_fingerprint(**random) != source_fingerprint(folder)
    moved = Path(shutil.copy(folder / "model.safetensors", tmp_path / "moved.safetensors"))
    found = source_fingerprint(**file | {"base": str(moved)})
    assert found == source_fingerprint(**file)
    content = bytearray(moved.read_bytes())
    content[-1] ^= 1
    moved.write_bytes(content)
    assert source_fingerprint(**file | {"base": str(moved)}) != found


def test_bases_that_do_not_fit_are_named(make: Make, folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"model\.weights=random needs an architecture"):
        make("dreambooth", weights="random")
    with pytest.raises(ValueError, match=r"the single file .* needs an architecture"):
        make("dreambooth", base=str(folder / "model.safetensors"))
    two = narrow("sdxl", tmp_path / "sdxl")
    with pytest.raises(ValueError, match="this method takes bases with one text encoder"):
        make("dreambooth", architecture=str(two), weights="random", images=PortraitSettings(64))
