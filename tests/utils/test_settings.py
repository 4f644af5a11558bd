"""Settings that a result depends on, in plain values."""

from __future__ import annotations

import shutil
from functools import partial
from pathlib import Path

import pytest
import torch

from fastcomposer.training.personalization.dreambooth import DreamBooth
from fastcomposer.utils.settings import base_fingerprint, described, differences


def test_settings_are_described_in_full() -> None:
    optimizer = partial(torch.optim.AdamW, lr=1e-3, betas=(0.9, 0.99))
    found = described(partial(DreamBooth, base=Path("base"), optimizer=optimizer))
    assert found["optimizer"] == {"_target_": "torch.optim.adamw.AdamW", "lr": 1e-3, "betas": [0.9, 0.99]}
    assert found["base"] == "base"
    assert differences({"a": {"b": 1}, "c": 2}, {"a": {"b": 3}}) == ["a.b: 1, not 3", "c: 2, not None"]
    with pytest.raises(TypeError, match=r"method\.optimizer"):
        described(partial(DreamBooth, optimizer=object()))


def test_fingerprints_follow_the_weights(small_base: Path, tmp_path: Path) -> None:
    shutil.copytree(small_base, tmp_path / "base")
    assert base_fingerprint(tmp_path / "base") == base_fingerprint(small_base)
    file = tmp_path / "base" / "unet" / "diffusion_pytorch_model.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    assert base_fingerprint(tmp_path / "base") != base_fingerprint(small_base)
    assert base_fingerprint("some/model") == "some/model"
