"""Single files are read as the folders that they were made from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning_checkpoint import LIGHTNING_CLASS, write_lightning_checkpoint
from safetensors.torch import save_file
from single_file_layout import single_file_state
from tiny_architectures import add_t5, narrow

from fastcomposer import FastComposer
from fastcomposer.models.loading import load_tokenizer, open_source

NAMES = ("sd15", "sd21", "sdxl", "sd3", "sd3_with_t5")


@pytest.fixture(scope="module", params=NAMES)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An architecture, a single file of it and a CLIP folder with tokenizer."""
    name = request.param.removesuffix("_with_t5")
    folder = narrow(name, tmp_path_factory.mktemp("single") / request.param)
    folder = folder if name == request.param else add_t5(folder)
    model = FastComposer.from_pretrained("no/base", architecture=folder, weights="random")
    state = {name: value.contiguous() for name, value in single_file_state(model).items()}
    save_file(state, folder / "model.safetensors")
    torch.save({"state_dict": state}, folder / "model.ckpt")
    model.image_encoder.save_pretrained(folder / "clip")
    model.tokenizer.save_pretrained(folder / "clip")
    return folder


@pytest.mark.parametrize("suffix", ["safetensors", "ckpt"])
def test_every_weight_is_read(folder: Path, suffix: str) -> None:
    expected = FastComposer.from_pretrained("no/base", architecture=folder, weights="random")
    model = FastComposer.from_pretrained(folder / f"model.{suffix}", folder / "clip", architecture=folder)
    wanted = expected.state_dict()
    found = model.state_dict()
    assert wanted.keys() == found.keys()
    for name, value in wanted.items():
        # Such a file of Stable Diffusion 3 has no projection of CLIP-L: diffusers makes it the identity.
        projection = name == "text_encoder.text_projection.weight"
        if not name.startswith("fusion.") and not projection:
            assert torch.equal(found[name], value), name
    assert model.tokenizer.pad_token_id == expected.tokenizer.pad_token_id
    assert model.tokenizer.get_vocab() == expected.tokenizer.get_vocab()
    if expected.tokenizer_2 is not None:
        assert model.tokenizer_2.pad_token_id == expected.tokenizer_2.pad_token_id == 0
    read = load_tokenizer(str(folder / "model.safetensors"), str(folder / "clip"), str(folder))
    clip = read
    if expected.tokenizer_3 is not None:
        clip = read.clip
        assert read.t5.get_vocab() == model.tokenizer_3.get_vocab() == expected.tokenizer_3.get_vocab()
    assert clip.get_vocab() == model.tokenizer.get_vocab()


def test_t5_in_8_bits_is_read_or_may_be_left_out(tmp_path: Path) -> None:
    folder = add_t5(narrow("sd3", tmp_path / "sd3"))
    expected = FastComposer.from_pretrained("no/base", architecture=folder, weights="random")
    expected.image_encoder.save_pretrained(tmp_path / "clip")
    expected.tokenizer.save_pretrained(tmp_path / "clip")
    state = {name: value.contiguous() for name, value in single_file_state(expected).items()}
    t5 = [name for name in state if "t5xxl" in name]
    save_file(state | {n: state[n].to(torch.float8_e4m3fn) for n in t5}, tmp_path / "model.safetensors")
    save_file({n: state[n] for n in state.keys() - {*t5}}, tmp_path / "without.safetensors")
    options: dict[str, Any] = {"image_encoder": tmp_path / "clip", "architecture": folder}
    model = FastComposer.from_pretrained(tmp_path / "model.safetensors", **options)
    wanted = expected.text_encoder_3.state_dict()
    for name, value in model.text_encoder_3.state_dict().items():
        assert torch.equal(value, wanted[name].to(torch.float8_e4m3fn).float()), name
    with pytest.raises(ValueError, match=r"model\.t5"):
        FastComposer.from_pretrained(tmp_path / "without.safetensors", **options)
    without = FastComposer.from_pretrained(tmp_path / "without.safetensors", t5=False, **options)
    assert without.text_encoder_3 is None and without.prompt_tokenizer is without.tokenizer


def test_a_single_file_of_a_training_is_not_unpickled(folder: Path, tmp_path: Path) -> None:
    write_lightning_checkpoint(tmp_path / "v1-5-pruned.ckpt", {"weight": torch.zeros(1)})
    with pytest.raises(
        ValueError, match=rf"base model {tmp_path}/v1-5-pruned\.ckpt .*{LIGHTNING_CLASS}"
    ) as error:
        FastComposer.from_pretrained(tmp_path / "v1-5-pruned.ckpt", folder / "clip", architecture=folder)
    assert "take the .safetensors file" in str(error.value)


def test_what_is_wrong_is_named_before_anything_loads(folder: Path) -> None:
    file, clip = folder / "model.safetensors", folder / "clip"
    with pytest.raises(ValueError, match=r"the single file .*model.safetensors needs an architecture"):
        open_source(file, clip)
    with pytest.raises(FileNotFoundError, match=r"base model .*absent.ckpt does not exist"):
        open_source(folder / "absent.ckpt", clip, architecture=folder)
    with pytest.raises(ValueError, match=r"model\.variant=fp16: the single file .*model\.safetensors"):
        open_source(file, clip, architecture=folder, variant="fp16")
    source = open_source(file, folder / "image_encoder", architecture=folder)
    with pytest.raises(FileNotFoundError, match="no tokenizer of CLIP in"):
        source.tokenizer()


def test_missing_weights_are_refused(folder: Path) -> None:
    state = single_file_state(FastComposer.from_pretrained("no/base", architecture=folder, weights="random"))
    short = {name: value.contiguous() for name, value in state.items() if "_blocks" not in name}
    save_file(short, folder / "short.safetensors")
    with pytest.raises(ValueError, match=r"of the file .*short.safetensors (lacks weights|does not fit)"):
        FastComposer.from_pretrained(folder / "short.safetensors", folder / "clip", architecture=folder)
    kept = {name for name in state if "mlp" not in name or "diffusion_model" in name}
    short = {name: state[name].contiguous() for name in kept}
    save_file(short, folder / "short.safetensors")
    with pytest.raises(ValueError, match=r"CLIPTextModel\w* from .* lacks 8 weights: .*0\.mlp\.fc1\.bias"):
        FastComposer.from_pretrained(folder / "short.safetensors", folder / "clip", architecture=folder)
