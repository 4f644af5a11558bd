"""The released checkpoint through every command: what the Python API makes of it, bit for bit."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from configurations import composed
from hydra.utils import instantiate
from lightning_checkpoint import LIGHTNING_CLASS, write_lightning_checkpoint
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

from fastcomposer import FastComposer
from fastcomposer.cli import generate
from fastcomposer.cli.common import model_parts, trained_pipeline
from fastcomposer.models.weights_io import load_trained_weights, save_trained_weights

Run = Callable[..., tuple[int, str, str]]


def write_layout(kind: str, weights: dict[str, Tensor], folder: Path) -> Path:
    """A file in the released layout, with positions and the VAE's old names."""
    assert "vae.encoder.mid_block.attentions.0.query.weight" in weights
    assert "text_encoder.embeddings.position_ids" in weights
    file = folder / ("model.safetensors" if kind == "safetensors" else "pytorch_model.bin")
    if kind == "half":
        weights = {
            name: value.half() if value.is_floating_point() else value for name, value in weights.items()
        }
    if kind == "safetensors":
        save_file(weights, file)
    else:
        torch.save(weights, file, _use_new_zipfile_serialization=kind != "old pickle")
    return file


@pytest.fixture(params=["pickle", "old pickle", "half", "safetensors"])
def checkpoint(request: pytest.FixtureRequest, golden: Any, tmp_path: Path) -> Path:
    return write_layout(request.param, golden.weights, tmp_path)


def networks(owner: Any) -> dict[str, Tensor]:
    """Weights of a model or pipeline by name."""
    names = ("vae", "unet", "text_encoder", "image_encoder", "fusion")
    return {
        f"{name}.{key}": value.clone()
        for name in names
        for key, value in getattr(owner, name).state_dict().items()
    }


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], value) for name, value in expected.items())


def test_every_command_loads_what_the_api_loads(checkpoint: Path, tiny_base: Path, small_base: Path) -> None:
    expected = networks(FastComposer.from_published_checkpoint(checkpoint, base=tiny_base))
    model = [f"model.base={tiny_base}", "model.resolution=32", "model.reference_size=56"]
    named = [*model, f"checkpoint={checkpoint}"]
    for command in ("generate", "demo"):
        assert_same(networks(trained_pipeline(composed(command, *named), None)), expected)
    config = composed("evaluate", *named, "compared=[fastcomposer]")
    assert_same(networks(instantiate(config.methods.fastcomposer.pipeline)()), expected)
    assert_same(networks(FastComposer.from_checkpoint(checkpoint, **model_parts(config.model))), expected)
    config = composed(
        "train", "experiment=mini", *model, f"method.weights={checkpoint}", "method.vision_layers=1"
    )
    module = instantiate(config.method, _convert_="object")
    assert_same(networks(module.model), expected)
    assert module.trained_before.steps == 0


def test_generate_samples_what_the_api_samples(
    run: Run, tiny_base: Path, published_checkpoint: Path, tmp_path: Path
) -> None:
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 40, 3), dtype=np.uint8)).save("me.png")
    status, _, err = run(
        generate,
        f"model.base={tiny_base}",
        f"checkpoint={published_checkpoint}",
        "prompt=a man <|image|> on the beach",
        "references=me.png",
        "sampler.num_inference_steps=3",
        "sampler.guidance_scale=3",
        "alpha=0.7",
        "seed=7",
        "output=images",
    )
    assert status == 0, err
    pipe = FastComposer.from_published_checkpoint(published_checkpoint, base=tiny_base).to_pipeline()
    expected = pipe(
        "a man <|image|> on the beach",
        references=["me.png"],
        num_inference_steps=3,
        guidance_scale=3,
        alpha=0.7,
        generator=[torch.Generator().manual_seed(7)],
    ).images[0]
    found = Image.open(Path("images") / "a_man_on_the_beach_7.png")
    assert np.array_equal(np.asarray(found), np.asarray(expected))


def test_what_a_training_leaves_has_the_networks_that_the_base_does_not_give(
    tiny_base: Path, published_checkpoint: Path, tmp_path: Path
) -> None:
    """A released VAE and text encoder that differ from the base's go into the export, frozen or not."""
    model = [f"model.base={tiny_base}", "model.resolution=32", "model.reference_size=56"]
    frozen = [
        "method.train_backbone=false",
        "method.vision_layers=0",
        f"method.weights={published_checkpoint}",
    ]
    config = composed("train", "experiment=mini", *model, *frozen)
    module = instantiate(config.method, _convert_="object")
    expected = networks(module.model)
    base = networks(FastComposer.from_pretrained(tiny_base))
    assert not torch.equal(expected["vae.encoder.conv_in.weight"], base["vae.encoder.conv_in.weight"])
    again = FastComposer.from_checkpoint(_export(module, tmp_path / "run"), base=tiny_base)
    assert_same(networks(again), expected)


def test_what_equals_the_base_is_not_written_again(tiny_base: Path, tmp_path: Path) -> None:
    """Here the text encoder differs and nothing else but the fusion, which the base does not have."""
    released = FastComposer.from_pretrained(tiny_base)
    released.text_encoder.embeddings.token_embedding.weight.data.add_(1)
    released.save_published_checkpoint(tmp_path / "pytorch_model.bin")
    model = FastComposer.from_pretrained(tiny_base)
    load_trained_weights(model, tmp_path)
    assert {name for name in model.replaced if not name.startswith("fusion.")} == {
        "text_encoder.embeddings.token_embedding.weight"
    }
    model.set_trainable(backbone=False, vision_layers=1)
    file = save_trained_weights(model, tmp_path / "trained.safetensors")
    parts = {name.split(".")[0] for name in load_file(file)}
    assert parts == {"fusion", "text_encoder", "image_encoder"}
    assert_same(networks(FastComposer.from_checkpoint(file, base=tiny_base)), networks(released))


def test_objects_in_a_checkpoint_are_not_unpickled(tiny_base: Path, tmp_path: Path) -> None:
    for name in ("last.ckpt", "pytorch_model.bin"):
        write_lightning_checkpoint(tmp_path / name, {"model.unet.conv_in.bias": torch.zeros(8)})
        with pytest.raises(ValueError, match=f"{name} .*{LIGHTNING_CLASS}.* take the .safetensors"):
            FastComposer.from_checkpoint(tmp_path / name, base=tiny_base)


def _export(module: Any, folder: Path) -> Path:
    module.trainer = type("Trainer", (), {"is_global_zero": True, "global_step": 0})()
    return module.export(folder)
