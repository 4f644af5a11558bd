"""Training of a LoRA: resumed, averaged, exported and started from."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from fastcomposer.models.lora import LoRASettings
from fastcomposer.models.weights_io import load_trained_weights

Make = Callable[..., Any]


def test_a_lora_is_resumed_averaged_and_loaded(make_module: Make, fit: Make, tmp_path: Path) -> None:
    lora = {"train_backbone": "lora", "lora": LoRASettings(rank=2)}
    straight = make_module(**lora)
    base = straight.model.unet.state_dict()
    frozen = {name: value.clone() for name, value in base.items() if "lora" not in name}
    fit(straight, 6)
    assert all(torch.equal(value, straight.model.unet.state_dict()[name]) for name, value in frozen.items())
    first, second = make_module(**lora), make_module(**lora)
    fit(first, 3).save_checkpoint(tmp_path / "half.ckpt")
    fit(second, 6, resume=tmp_path / "half.ckpt").save_checkpoint(tmp_path / "run/checkpoints/last.ckpt")
    for trained in (straight, second):
        trained.ema.copy_to(trained.trained_parameters().values())
    wanted, found = (one.model.changed_state_dict() for one in (straight, second))
    assert all(torch.equal(value, found[name]) for name, value in wanted.items())
    second.export(tmp_path / "exported")
    assert {file.name for file in (tmp_path / "exported").iterdir()} == {
        *("fastcomposer.safetensors", "pytorch_lora_weights.safetensors")
    }
    for source in (tmp_path / "exported", tmp_path / "run"):
        fresh = make_module()
        load_trained_weights(fresh.model, source)
        loaded = fresh.model.state_dict()
        assert all(torch.equal(value, loaded[name]) for name, value in second.model.state_dict().items())
    later = make_module(**lora, weights=tmp_path / "exported")
    kept = make_module(train_backbone=False, weights=tmp_path / "exported")
    for module in (later, kept):
        assert module.model.changed_state_dict().keys() == wanted.keys()
    assert later.trained_parameters().keys() == second.trained_parameters().keys()
    with pytest.raises(ValueError, match=r"set method\.lora"):
        make_module(train_backbone="lora", weights=tmp_path / "exported")
