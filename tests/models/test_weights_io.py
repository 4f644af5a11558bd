"""Trained weights alone in a file: in full and half precision, and as differences from the base."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import pytest
import torch
from safetensors.torch import load_file, save_file

from fastcomposer.composer import FastComposer
from fastcomposer.models.fusion import FusionConfig
from fastcomposer.models.lora import LoRASettings
from fastcomposer.models.source import ModelSource
from fastcomposer.models.weight_delta import decode_differences, encode_differences
from fastcomposer.models.weights_io import Precision, load_trained_weights, save_trained_weights


@pytest.fixture(scope="module")
def trained(small_base: Path) -> FastComposer:
    """A model that differs from its base."""
    model = FastComposer.from_pretrained(small_base, max_subjects=3)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for value in model.trainable_parameters():
            value += 0.02 * torch.randn(value.shape, generator=generator)
    return model


def test_eight_bits_by_hand() -> None:
    base = {"w": torch.tensor([[1.0, 2.0], [3.0, 4.0]])}
    trained = {"w": torch.tensor([[1.127, 2.0], [3.0, 4.0 - 2.54]]), "new": torch.tensor([0.5])}
    state = encode_differences(trained, base)
    assert state["w"].tolist() == [[127, 0], [0, -127]]
    assert torch.allclose(state["w.scale"], torch.tensor([0.001, 0.02]), atol=1e-6)
    assert state["new"].dtype == torch.float16 and "new.scale" not in state
    again = decode_differences(state, base)
    assert torch.allclose(again["w"], trained["w"], atol=1e-6) and again["new"].item() == 0.5
    with pytest.raises(ValueError, match="w: a difference without a scale"):
        decode_differences({"w": state["w"]}, base)


@pytest.mark.parametrize(("precision", "error"), [("float32", 0.0), ("float16", 2e-3), ("int8", 4e-4)])
def test_weights_come_back(
    precision: str, error: float, trained: FastComposer, small_base: Path, tmp_path: Path
) -> None:
    file = save_trained_weights(trained, tmp_path / "weights.safetensors", precision)  # type: ignore[arg-type]
    fresh = FastComposer.from_pretrained(small_base, max_subjects=3)
    load_trained_weights(fresh, file)
    wanted, found = trained.trainable_state_dict(), fresh.trainable_state_dict()
    moved = {name: (found[name] - wanted[name]).abs().max().item() for name in wanted}
    limit = {name: error if "fusion" not in name else max(error, 2e-3 * bool(error)) for name in wanted}
    assert all(moved[name] <= limit[name] for name in wanted)


@pytest.mark.parametrize("precision", get_args(Precision))
def test_a_frozen_fusion_is_written_too(
    precision: Precision, trained: FastComposer, small_base: Path, tmp_path: Path
) -> None:
    trained.to_pipeline().save_pretrained(tmp_path / "saved")
    model = FastComposer.from_pretrained(tmp_path / "saved")
    model.set_trainable(backbone=LoRASettings(rank=2), fusion=False, vision_layers=0)
    file = save_trained_weights(model, tmp_path / "run" / "fastcomposer.safetensors", precision)
    again = FastComposer.from_checkpoint(file, base=small_base)
    pairs = zip(trained.fusion.parameters(), again.fusion.parameters(), strict=True)
    assert all(torch.allclose(one, other, atol=1e-3) for one, other in pairs)


def test_what_the_base_has_takes_a_byte(
    trained: FastComposer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read, load = [], ModelSource.load
    monkeypatch.setattr(ModelSource, "load", lambda self, *args: read.append(args[1]) or load(self, *args))
    state = load_file(save_trained_weights(trained, tmp_path / "weights.safetensors", "int8"))
    names = set(trained.trainable_state_dict())
    of_base = {name for name in names if not name.startswith("fusion.")}
    assert all(state[name].dtype == torch.int8 for name in of_base)
    assert set(state) == names | {f"{name}.scale" for name in of_base}
    assert all(state[name].dtype == torch.float16 for name in names - of_base)
    assert {*read} == {name.partition(".")[0] for name in of_base} < {*trained.networks()}


def test_differences_name_their_base(trained: FastComposer, small_base: Path, tmp_path: Path) -> None:
    file = save_trained_weights(trained, tmp_path / "weights.safetensors", "int8")
    other = FastComposer.from_pretrained("no/base", architecture=small_base, weights="random")
    with pytest.raises(ValueError, match=r"weights\.safetensors holds differences from other weights"):
        load_trained_weights(other, file)


def test_differences_are_added_to_the_base_in_float32(
    trained: FastComposer, small_base: Path, tmp_path: Path
) -> None:
    file = save_trained_weights(trained, tmp_path / "weights.safetensors", "int8")
    half = FastComposer.from_pretrained(small_base, dtype=torch.float16)
    for _ in range(2):
        load_trained_weights(half, file)
        found = half.unet.conv_in.weight.float()
        assert torch.allclose(found, trained.unet.conv_in.weight, atol=1e-3)


def test_weights_must_fit(trained: FastComposer, small_base: Path, tmp_path: Path) -> None:
    file = save_trained_weights(trained, tmp_path / "weights.safetensors")
    state = load_file(file)
    fresh = FastComposer.from_pretrained(small_base, max_subjects=3)
    save_file({**state, "unet.extra": torch.zeros(1)}, file)
    with pytest.raises(ValueError, match=r"does not fit the base model(.|\n)*unexpected: unet.extra"):
        load_trained_weights(fresh, file)
    lost = state.pop("fusion.layer_norm.bias")
    assert lost is not None
    save_file(state, file)
    with pytest.raises(ValueError, match=r"no FastComposer: it has no fusion\.layer_norm\.bias$"):
        load_trained_weights(fresh, file)
    save_file({"unet.extra": torch.zeros(1)}, file)
    with pytest.raises(ValueError, match=r"no FastComposer: it has no ([\w.]+, ){2}[\w.]+ and \d+ more$"):
        load_trained_weights(fresh, file)


def test_weights_bring_their_kind_of_fusion(small_base: Path, tmp_path: Path) -> None:
    kind = FusionConfig("add", "attention")
    model = FastComposer.from_pretrained(small_base, fusion=kind)
    torch.nn.init.normal_(model.fusion.reference_attention.query)
    file = save_trained_weights(model, tmp_path / "weights.safetensors")
    fresh = FastComposer.from_pretrained(small_base)
    load_trained_weights(fresh, file)
    assert fresh.fusion.kind == kind
    assert all(
        torch.equal(value, fresh.fusion.state_dict()[name])
        for name, value in model.fusion.state_dict().items()
    )
    assert set(fresh.trainable_state_dict()) == set(model.trainable_state_dict())
    with pytest.raises(ValueError, match="has the paper's fusion alone"):
        fresh.save_published_checkpoint(tmp_path / "pytorch_model.bin")


def test_attention_over_references_starts_from_weights_without(
    trained: FastComposer, small_base: Path, tmp_path: Path
) -> None:
    file = save_trained_weights(trained, tmp_path / "weights.safetensors")
    model = FastComposer.from_pretrained(small_base, fusion=FusionConfig(pooling="attention"))
    load_trained_weights(model, file, keep_fusion=True)
    assert model.fusion.kind.pooling == "attention"
    assert torch.equal(model.fusion.mlp1.fc1.weight, trained.fusion.mlp1.fc1.weight)
    later = save_trained_weights(model, tmp_path / "later.safetensors")
    with pytest.raises(ValueError, match=r"method\.model\.fusion\.pooling=attention"):
        load_trained_weights(FastComposer.from_pretrained(small_base), later, keep_fusion=True)
    other = FastComposer.from_pretrained(small_base, fusion=FusionConfig(mode="replace"))
    with pytest.raises(ValueError, match=r"fusion mode mlp: set method\.model\.fusion\.mode"):
        load_trained_weights(other, file, keep_fusion=True)
