"""LoRA of U-Nets and transformers: trained alone, kept beside the fusion, read by stock diffusers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import StableDiffusion3Pipeline, StableDiffusionPipeline
from peft import LoraConfig
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tiny_architectures import narrow
from tiny_pipeline import reference, seeded

from fastcomposer import FastComposer
from fastcomposer.bench.training_step import noise_batch
from fastcomposer.models.base_files import lora_file
from fastcomposer.models.fusion import FusionConfig
from fastcomposer.models.lora import LoRASettings, lora_settings
from fastcomposer.models.weight_delta import digest
from fastcomposer.models.weights_io import load_trained_weights, save_trained_weights
from fastcomposer.pipeline.kinds import open_pipeline

STOCK: dict[str, Any] = {"sd15": StableDiffusionPipeline, "sd3": StableDiffusion3Pipeline}
PROMPT = "a man <|image|> on the beach"
SETTINGS = LoRASettings(rank=2, alpha=3)
SAMPLER: dict[str, Any] = {"height": 64, "width": 64, "num_inference_steps": 2, "output_type": "np"}


@pytest.fixture(scope="module", params=[*STOCK])
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def base(name: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = narrow(name, tmp_path_factory.mktemp("lora") / name)
    return {"base": "no/base", "architecture": folder, "weights": "random"}


@pytest.fixture(scope="module")
def model(base: dict[str, Any]) -> FastComposer:
    """A model with a LoRA after some changes."""
    torch.manual_seed(0)
    model = FastComposer.from_pretrained(**base)
    model.set_trainable(backbone=SETTINGS, vision_layers=1)
    with torch.no_grad():
        for value in model.trainable_parameters():
            value += 0.05 * torch.randn(value.shape)
    return model


def prediction(model: FastComposer) -> torch.Tensor:
    return model.training_losses(noise_batch(2, 2, 64, 28), generator=seeded()).noise_pred


def sample(pipe: Any, **options: Any) -> np.ndarray:
    return pipe(PROMPT.replace(" <|image|>", ""), generator=seeded(), **SAMPLER, **options).images


def test_adapters_alone_are_trained(name: str, base: dict[str, Any]) -> None:
    model = FastComposer.from_pretrained(**base)
    before = prediction(model)
    model.set_trainable(backbone=SETTINGS, vision_layers=1)
    model.enable_gradient_checkpointing()
    assert torch.equal(prediction(model), before)
    model.train().training_losses(noise_batch(2, 2, 64, 28), generator=seeded()).loss.backward()
    trained = {key for key in model.trainable_state_dict() if key.startswith(f"{model.family.NAME}.")}
    assert all(key.endswith((".lora_A.weight", ".lora_B.weight")) for key in trained)
    adapted = {key.rpartition(".lora_")[0].rpartition("attn")[2].partition(".")[2] for key in trained}
    assert adapted == {*model.family.LORA_TARGETS}
    gradients = {key: p.grad for key, p in model.backbone.named_parameters() if p.grad is not None}
    assert all("lora" in key for key in gradients)
    # Of B alone, as B is zero.
    assert sum(bool(value.norm() > 0) for value in gradients.values()) > 0.4 * len(trained)


@pytest.mark.parametrize(("precision", "error"), [("float32", 0.0), ("float16", 2e-2), ("int8", 2e-2)])
def test_weights_come_back(
    precision: Any, error: float, model: FastComposer, base: dict[str, Any], tmp_path: Path
) -> None:
    save_trained_weights(model, tmp_path / "fastcomposer.safetensors", precision)
    (tmp_path / "other").touch()
    assert len({(file.stat().st_mode, file.suffix == ".tmp") for file in tmp_path.iterdir()}) == 1
    ours = load_file(tmp_path / "fastcomposer.safetensors")
    assert {key.partition(".")[0] for key in ours} == {"fusion", "image_encoder"}
    again = FastComposer.from_checkpoint(tmp_path, **base)
    assert torch.allclose(prediction(again), prediction(model), atol=error, rtol=error)
    again.set_trainable(backbone=SETTINGS, vision_layers=1)
    assert again.changed_state_dict().keys() == model.changed_state_dict().keys()
    with pytest.raises(ValueError, match=r"lora\.rank=\d+ .*lora\.alpha=.* 'method\.lora\.targets="):
        again.set_trainable(backbone=LoRASettings(rank=4))
    with pytest.raises(ValueError, match=r"set method\.train_backbone=lora"):
        again.set_trainable(backbone=True)
    adapters = load_file(tmp_path / "pytorch_lora_weights.safetensors")
    others = {f"other.{key}": value for key, value in adapters.items()}
    save_file(others, tmp_path / "pytorch_lora_weights.safetensors")
    with safe_open(tmp_path / "fastcomposer.safetensors", "pt") as opened:
        metadata = opened.metadata() | {"lora_digest": digest(others)}
    save_file(ours, tmp_path / "fastcomposer.safetensors", metadata)
    with pytest.raises(ValueError, match=r"LoRA .*pytorch_lora_weights.* more$"):
        load_trained_weights(again, tmp_path)
    (tmp_path / "pytorch_lora_weights.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="pytorch_lora_weights"):
        load_trained_weights(again, tmp_path)


def test_files_of_adapters_are_not_mixed(model: FastComposer, base: dict[str, Any], tmp_path: Path) -> None:
    first = save_trained_weights(model, tmp_path / "first.safetensors")
    other = FastComposer.from_pretrained(**base)
    other.set_trainable(backbone=SETTINGS)
    second = save_trained_weights(other, tmp_path / "second.safetensors")
    for file, expected in ((first, model), (second, other)):
        assert torch.equal(prediction(FastComposer.from_checkpoint(file, **base)), prediction(expected))
    lora_file(second).replace(lora_file(first))
    with pytest.raises(ValueError, match=f"{lora_file(first).name} beside it"):
        load_trained_weights(other, first)
    save_trained_weights(FastComposer.from_pretrained(**base), first)
    assert not lora_file(first).exists()


@pytest.mark.parametrize("settings", [LoRASettings(rank=4), None])
def test_a_refused_file_changes_nothing(
    settings: LoRASettings | None, model: FastComposer, base: dict[str, Any], tmp_path: Path
) -> None:
    torch.manual_seed(1)
    other = FastComposer.from_pretrained(**base, fusion=FusionConfig("add"))
    if settings is not None:
        other.set_trainable(backbone=settings)
    names, trained = other.state_dict().keys(), other.trainable_state_dict().keys()
    expected = prediction(other)
    file = save_trained_weights(model, tmp_path / "weights.safetensors")
    with safe_open(file, "pt") as opened:
        metadata = opened.metadata()
    save_file({**load_file(file), "vae.extra": torch.zeros(1)}, file, metadata)
    with pytest.raises(ValueError, match=r"unexpected: vae\.extra"):
        load_trained_weights(other, file)
    assert other.state_dict().keys() == names and other.trainable_state_dict().keys() == trained
    assert lora_settings(other.backbone) == (settings and settings.resolved(other.family.LORA_TARGETS))
    assert torch.equal(prediction(other), expected)


def test_stock_diffusers_reads_the_adapters(
    name: str, model: FastComposer, base: dict[str, Any], tmp_path: Path
) -> None:
    save_trained_weights(model, tmp_path / "fastcomposer.safetensors")
    parts = FastComposer.from_pretrained(**base).to_pipeline().components
    parts.pop("fusion")
    stock = STOCK[name](**parts, **({"requires_safety_checker": False} if name == "sd15" else {}))
    without = sample(stock)
    stock.load_lora_weights(tmp_path, adapter_name="mine")
    pipe = model.to_pipeline()
    assert np.array_equal(sample(stock), sample(pipe, alpha=0))
    assert not np.allclose(sample(stock), without, atol=1e-3)
    # Adapters are weighted and combined as in stock pipelines.
    pipe.load_lora_weights(tmp_path, adapter_name="mine")
    pipe.set_adapters(["mine"], [0.5])
    stock.set_adapters(["mine"], [0.5])
    assert np.array_equal(sample(stock), sample(pipe, alpha=0))
    pipe.delete_adapters("mine")
    pipe.set_adapters("fastcomposer")


def test_saved_pipelines_have_the_adapters_merged(model: FastComposer, tmp_path: Path) -> None:
    pipe = model.to_pipeline()
    options = {"references": [reference(0)], "alpha": 1.0}
    before = prediction(model)
    pipe.save_pretrained(tmp_path)
    assert torch.equal(prediction(model), before)
    loaded = open_pipeline(tmp_path)
    assert not hasattr(loaded.backbone, "peft_config")
    images = [p(PROMPT, generator=seeded(), **SAMPLER, **options).images for p in (pipe, loaded)]
    assert np.allclose(*images, atol=1e-4)
    if model.unet is not None:
        with pytest.raises(ValueError, match="has no LoRA"):
            model.save_published_checkpoint(tmp_path / "pytorch_model.bin")


def test_adapters_of_a_pipeline_change_no_export(
    model: FastComposer, base: dict[str, Any], tmp_path: Path
) -> None:
    save_trained_weights(model, tmp_path / "fastcomposer.safetensors")
    trained = FastComposer.from_pretrained(**base)
    pipe = trained.to_pipeline()
    expected = load_file(save_trained_weights(trained, tmp_path / "before.safetensors"))
    pipe.load_lora_weights(tmp_path, adapter_name="style")
    assert load_file(save_trained_weights(trained, tmp_path / "with.safetensors")).keys() == expected.keys()
    with pytest.raises(ValueError, match="style"):
        trained.set_trainable(backbone=SETTINGS)
    if trained.unet is not None:
        with pytest.raises(ValueError, match="style"):
            trained.save_published_checkpoint(tmp_path / "pytorch_model.bin")
    pipe.unload_lora_weights()
    found = load_file(save_trained_weights(trained, tmp_path / "after.safetensors"))
    assert found.keys() == expected.keys()
    assert all(torch.equal(value, found[key]) for key, value in expected.items())


def test_loading_changes_nothing_of_what_is_trained(
    model: FastComposer, base: dict[str, Any], tmp_path: Path
) -> None:
    save_trained_weights(model, tmp_path / "fastcomposer.safetensors")
    for options in ({}, {"backbone": False}):
        loaded = FastComposer.from_pretrained(**base)
        loaded.set_trainable(**options)
        expected = loaded.trainable_state_dict().keys()
        load_trained_weights(loaded, tmp_path)
        assert loaded.trainable_state_dict().keys() == expected


@pytest.mark.parametrize("enabled", [True, False])
def test_saved_pipelines_sample_as_before(enabled: bool, base: dict[str, Any], tmp_path: Path) -> None:
    """A pipeline with adapters of the backbone, on or off, and of a text encoder."""
    model = FastComposer.from_pretrained(**base)
    pipe = model.to_pipeline()
    for network, target in ((pipe.backbone, "to_q"), (pipe.text_encoder, "q_proj")):
        network.add_adapter(LoraConfig(r=2, target_modules=[target], init_lora_weights=False), "style")
    without = sample(model.to_pipeline())
    if not enabled:
        pipe.backbone.disable_adapters()
    before = sample(pipe)
    pipe.save_pretrained(tmp_path)
    assert np.array_equal(sample(pipe), before)
    assert np.allclose(sample(open_pipeline(tmp_path)), before, atol=1e-4)
    assert np.array_equal(without, before) == enabled


def test_targets_exist(base: dict[str, Any]) -> None:
    model = FastComposer.from_pretrained(**base)
    model.set_trainable(backbone=LoRASettings(targets=("ff.net.2",)))
    assert all(".ff.net.2.lora_" in key for key in model.trainable_state_dict() if "lora" in key)
    with pytest.raises(ValueError, match=r"method\.lora\.targets.*nowhere"):
        FastComposer.from_pretrained(**base).set_trainable(backbone=LoRASettings(targets=("to_q", "nowhere")))


def test_a_target_counts_once(base: dict[str, Any]) -> None:
    model = FastComposer.from_pretrained(**base)
    for targets in (("to_q", "to_q"), ("to_q",)):
        model.set_trainable(backbone=LoRASettings(targets=targets))
