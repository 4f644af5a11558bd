"""Where a model comes from, and what does not fit."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from fastcomposer import FastComposer
from fastcomposer.models.fusion import FusionConfig
from fastcomposer.models.loading import source_fingerprint


class TestLoading:
    def test_missing_base_is_named(self, tmp_path: Path) -> None:
        with pytest.raises(FileNotFoundError, match=f"base model {tmp_path}/absent: there is no such folder"):
            FastComposer.from_pretrained(tmp_path / "absent")
        with pytest.raises(FileNotFoundError, match="base model no/such/folder: there is no such folder"):
            FastComposer.from_pretrained("no/such/folder")
        with pytest.raises(
            FileNotFoundError, match=r"base model models/absent .* no such folder, and the hub"
        ):
            FastComposer.from_pretrained("models/absent")

    def test_folder_without_a_model_is_named(self, tmp_path: Path) -> None:
        with pytest.raises(FileNotFoundError, match=f"base model {tmp_path} has no readable configuration"):
            FastComposer.from_pretrained(tmp_path)

    def test_missing_image_encoder_is_named_before_anything_loads(
        self, tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("fastcomposer.models.networks.load_networks", lambda *_: pytest.fail("loaded"))
        with pytest.raises(
            FileNotFoundError, match=f"image encoder {tmp_path}/clip: there is no such folder"
        ):
            FastComposer.from_pretrained(tiny_base, tmp_path / "clip")

    def test_image_encoder_of_another_width_goes_through_the_fusions_own_projection(
        self, write_base: Callable[..., Path], tiny_base: Path, published_checkpoint: Path, tmp_path: Path
    ) -> None:
        other = write_base(tmp_path / "other", vision={"projection_dim": 48}, tokenizer=False)
        for encoder in (other, other / "image_encoder"):
            model = FastComposer.from_pretrained(tiny_base, encoder)
            assert model.fusion.image_projection.weight.shape == (32, 48)
        # The released fusion has none.
        with pytest.raises(ValueError, match=r"missing: fusion\.image_projection\.weight"):
            FastComposer.from_published_checkpoint(published_checkpoint, base=tiny_base, image_encoder=other)

    def test_incomplete_weights_are_refused(self, tiny_base: Path, tmp_path: Path) -> None:
        from safetensors.torch import load_file, save_file

        broken = Path(shutil.copytree(tiny_base, tmp_path / "broken"))
        for folder, name, key in (
            ("image_encoder", "model", "visual_projection.weight"),
            ("unet", "diffusion_pytorch_model", "conv_in.weight"),
        ):
            path = broken / folder / f"{name}.safetensors"
            state = load_file(path)
            removed = state.pop(key)
            save_file(state, path, {"format": "pt"})
            with pytest.raises(ValueError, match=f"lacks 1 weights: {key}"):
                FastComposer.from_pretrained(broken)
            save_file({**state, key: removed}, path, {"format": "pt"})
        FastComposer.from_pretrained(broken)

    def test_saved_pipeline_brings_its_fusion(self, golden_model: FastComposer, tmp_path: Path) -> None:
        golden_model.to_pipeline().save_pretrained(tmp_path / "saved")
        again = FastComposer.from_pretrained(tmp_path / "saved")
        state = again.state_dict()
        for name, value in golden_model.state_dict().items():
            assert torch.equal(state[name], value), name
        assert type(again.sampling_scheduler) is type(golden_model.sampling_scheduler)
        with pytest.raises(ValueError, match=r"mode mlp, pooling mean .*method\.model\.fusion"):
            FastComposer.from_pretrained(tmp_path / "saved", fusion=FusionConfig(pooling="attention"))

    def test_unknown_prediction_type(self, write_base: Callable[..., Path], tmp_path: Path) -> None:
        base = write_base(tmp_path / "base", prediction_type="sample", tokenizer=False)
        with pytest.raises(ValueError, match="prediction_type 'sample' is not one of"):
            FastComposer.from_pretrained(base)

    def test_older_text_encoder_names_are_read(self, tiny_base: Path, tmp_path: Path) -> None:
        from safetensors.torch import load_file, save_file

        old = Path(shutil.copytree(tiny_base, tmp_path / "old"))
        path = old / "text_encoder" / "model.safetensors"
        state = {
            f"text_model.{key.removeprefix('text_model.')}": value for key, value in load_file(path).items()
        }
        save_file(state, path, {"format": "pt"})
        expected = FastComposer.from_pretrained(tiny_base).text_encoder.state_dict()
        for name, value in FastComposer.from_pretrained(old).text_encoder.state_dict().items():
            assert torch.equal(value, expected[name])

    def test_a_variant_is_read_from_the_files_of_its_name(
        self, tiny_base: Path, write_base: Callable[..., Path], tmp_path: Path
    ) -> None:
        base = Path(shutil.copytree(tiny_base, tmp_path / "base"))
        plain = FastComposer.from_pretrained(base)
        parts = ("vae", "unet", "text_encoder", "image_encoder")
        other = FastComposer.from_pretrained(base)
        for name in parts:
            network = getattr(other, name).half()
            with torch.no_grad():
                next(network.parameters()).add_(1)
            network.save_pretrained(base / name, variant="fp16")
        model = FastComposer.from_pretrained(base, variant="fp16")
        again = FastComposer.from_pretrained(base)
        for name in parts:
            half, own = getattr(other, name).state_dict(), getattr(model, name).state_dict()
            assert all(torch.equal(own[key], value.float()) for key, value in half.items()), name
            before, after = getattr(plain, name).state_dict(), getattr(again, name).state_dict()
            assert all(torch.equal(after[key], value) for key, value in before.items()), name
        elsewhere = write_base(tmp_path / "elsewhere", tokenizer=False)
        FastComposer.from_pretrained(base, elsewhere, variant="fp16")
        assert source_fingerprint(base) != source_fingerprint(base, variant="fp16")

    @pytest.mark.parametrize("lacking", ["vae", "unet", "text_encoder", "image_encoder"])
    def test_a_variant_that_is_not_there_is_named_before_anything_loads(
        self, lacking: str, tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        base = Path(shutil.copytree(tiny_base, tmp_path / "base"))
        for name in {"vae", "unet", "text_encoder", "image_encoder"} - {lacking}:
            (base / name / "model.fp16.safetensors").touch()
        monkeypatch.setattr("fastcomposer.models.networks.load_networks", lambda *_: pytest.fail("loaded"))
        with pytest.raises(FileNotFoundError, match=f"model.variant=fp16: {lacking}/ of {base}"):
            FastComposer.from_pretrained(base, variant="fp16")
