from __future__ import annotations

import os
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from tiny_architectures import narrow

from fastcomposer import FastComposer
from fastcomposer.models.loading import configured_networks, open_source
from fastcomposer.models.published_checkpoint import published_state, read_checkpoint

if TYPE_CHECKING:
    from tests.conftest import Golden


@pytest.mark.parametrize("name", ["export.bin", "export.safetensors"])
def test_export_gives_back_the_released_file_bit_for_bit(
    golden_model: FastComposer, golden: Golden, tmp_path: Path, name: str
) -> None:
    state = read_checkpoint(golden_model.save_published_checkpoint(tmp_path / name))
    assert state.keys() == golden.weights.keys()
    for key, value in golden.weights.items():
        assert state[key].dtype == value.dtype
        assert torch.equal(state[key], value), key


def test_half_precision_comes_back_bit_for_bit(golden: Golden, tiny_base: Path, tmp_path: Path) -> None:
    half = {
        key: value.half() if value.is_floating_point() else value for key, value in golden.weights.items()
    }
    torch.save(half, tmp_path / "half.bin")
    model = FastComposer.from_published_checkpoint(tmp_path / "half.bin", base=tiny_base, dtype=torch.float16)
    state = read_checkpoint(model.save_published_checkpoint(tmp_path / "export.bin"))
    assert state.keys() == half.keys()
    assert all(state[key].dtype == half[key].dtype and torch.equal(state[key], half[key]) for key in half)


def test_full_size_layout_has_the_released_names() -> None:
    source = open_source("no/base", None, architecture="data/architectures/sd15", weights="random")
    with torch.device("meta"):
        state = published_state(configured_networks(source, 4))
    parts = Counter(key.split(".")[0] for key in state)
    # position_ids are one more for each encoder than today's networks have.
    counts = {"unet": 686, "vae": 248, "text_encoder": 197, "image_encoder": 393, "postfuse_module": 14}
    assert parts == counts
    shapes = {
        "vae.decoder.mid_block.attentions.0.proj_attn.weight": (512, 512),
        "text_encoder.embeddings.position_ids": (1, 77),
        "image_encoder.vision_model.embeddings.position_ids": (1, 257),
        "image_encoder.visual_projection.weight": (768, 1024),
        "postfuse_module.mlp1.fc1.weight": (768, 1536),
        "postfuse_module.mlp2.layernorm.bias": (768,),
    }
    assert {key: tuple(state[key].shape) for key in shapes} == shapes


def test_other_positions_are_unexpected(golden: Golden, tiny_base: Path, tmp_path: Path) -> None:
    name = "text_encoder.embeddings.position_ids"
    torch.save({**golden.weights, name: golden.weights[name] + 1}, tmp_path / "model.bin")
    with pytest.raises(ValueError, match=f"unexpected: {name}$"):
        FastComposer.from_published_checkpoint(tmp_path / "model.bin", base=tiny_base)


def test_an_export_that_fails_leaves_the_earlier_one(
    golden_model: FastComposer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = golden_model.save_published_checkpoint(tmp_path / "model.bin")
    before = file.read_bytes()

    def fail(state: Any, stream: Any) -> None:
        stream.write(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(torch, "save", fail)
    with pytest.raises(OSError, match="disk full"):
        golden_model.save_published_checkpoint(file)
    assert file.read_bytes() == before


def test_two_text_encoders_have_no_names_in_the_layout(tmp_path: Path) -> None:
    folder = narrow("sdxl", tmp_path / "sdxl")
    model = FastComposer.from_pretrained("no/base", architecture=folder, weights="random")
    with pytest.raises(ValueError, match="released layout has one text encoder and this model has two"):
        model.save_published_checkpoint(tmp_path / "model.bin")
    assert not (tmp_path / "model.bin").exists()


def test_todays_vae_names_are_read_as_well(golden: Golden, tiny_base: Path, tmp_path: Path) -> None:
    names = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
    state = {}
    for key, value in golden.weights.items():
        for old, new in names.items():
            key = key.replace(f".attentions.0.{old}.", f".attentions.0.{new}.") if key[:3] == "vae" else key
        state[key] = value
    assert state.keys() != golden.weights.keys()
    torch.save(state, tmp_path / "new.bin")
    model = FastComposer.from_published_checkpoint(tmp_path / "new.bin", base=tiny_base)
    expected = golden.weights["vae.decoder.mid_block.attentions.0.query.weight"]
    assert torch.equal(model.vae.decoder.mid_block.attentions[0].to_q.weight, expected)


def test_every_mismatch_is_listed(golden: Golden, tiny_base: Path, tmp_path: Path) -> None:
    state = dict(golden.weights)
    del state["postfuse_module.layer_norm.bias"], state["unet.conv_in.bias"]
    state["unet.extra.weight"] = torch.zeros(1)
    state["vae.encoder.conv_in.bias"] = torch.zeros(3)
    torch.save(state, tmp_path / "model.bin")
    with pytest.raises(ValueError) as error:
        FastComposer.from_published_checkpoint(tmp_path / "model.bin", base=tiny_base)
    message = str(error.value)
    assert f"checkpoint {tmp_path / 'model.bin'} does not fit the base model" in message
    assert message.count("\n") == 4
    for line in (
        "missing: fusion.layer_norm.bias",
        "missing: unet.conv_in.bias",
        "unexpected: unet.extra.weight",
        "shape: vae.encoder.conv_in.bias is (3,), the model has (8,)",
    ):
        assert line in message


class _Malicious:
    def __reduce__(self) -> Any:
        return os.system, ("true",)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"weight": _Malicious()}, "cannot be read as a file of weights"),
        ([torch.zeros(1)], "is no mapping of names to tensors"),
        ({"epoch": 3}, "is no mapping of names to tensors"),
    ],
)
def test_only_tensors_are_unpickled(content: Any, message: str, tiny_base: Path, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "model.bin")
    with pytest.raises(ValueError, match=f"model.bin {message}"):
        FastComposer.from_published_checkpoint(tmp_path / "model.bin", base=tiny_base)


@pytest.mark.parametrize("name", ["model.bin", "model.safetensors"])
def test_a_broken_file_is_named(name: str, tiny_base: Path, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(b"<html>not found</html>")
    with pytest.raises(ValueError, match=f"checkpoint .*{name} cannot be read") as refusal:
        FastComposer.from_published_checkpoint(tmp_path / name, base=tiny_base)
    assert "\n" not in str(refusal.value) and "weights_only" not in str(refusal.value)
