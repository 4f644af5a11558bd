"""Bases that are no folder: random weights, and a single file with an architecture."""

from __future__ import annotations

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


def test_bases_differ_by_their_weights(tmp_path: Path) -> None:
    folder = narrow("sd15", tmp_path / "sd15")
    random: dict[str, Any] = {"base": "no/base", "architecture": str(folder), "weights": "random"}
    assert source_fingerprint(**random) == source_fingerprint(**random | {"base": "other/base"})
    assert source_fingerprint(**random) != source_fingerprint(folder)
    state = single_file_state(FastComposer.from_pretrained(**random))
    one, other = folder / "model.safetensors", tmp_path / "moved.safetensors"
    save_file({name: value.contiguous() for name, value in state.items()}, one)
    content = bytearray(one.read_bytes())
    other.write_bytes(content)
    found = source_fingerprint(str(one), architecture=str(folder))
    assert source_fingerprint(str(other), architecture=str(folder)) == found
    content[-1] ^= 1
    other.write_bytes(content)
    assert source_fingerprint(str(other), architecture=str(folder)) != found


def test_a_base_with_two_text_encoders_is_named(make: Callable[..., Any], tmp_path: Path) -> None:
    two = narrow("sdxl", tmp_path / "sdxl")
    with pytest.raises(ValueError, match=r"model\.base.*one text encoder and a U-Net"):
        make("dreambooth", architecture=str(two), weights="random", images=PortraitSettings(64))
