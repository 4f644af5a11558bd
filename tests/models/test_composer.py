from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

from fastcomposer import FastComposer, PromptError, SubjectBatch
from fastcomposer.losses import LossConfig, denoising_loss, subject_union
from fastcomposer.models.fusion import FusionConfig
from fastcomposer.prompt import parse_prompt

if TYPE_CHECKING:
    from tests.conftest import Golden

CONFIGS = {
    "paper": LossConfig(mask_loss_probability=0),
    "masked": LossConfig(mask_loss_probability=1),
    "normalized": LossConfig(mask_loss_probability=0, normalize_localization=True),
    "v_prediction": LossConfig(mask_loss_probability=0),
}


def deviation(actual: Tensor, expected: Tensor) -> float:
    return (actual - expected).abs().max().item()


@pytest.fixture(scope="module")
def v_base(write_base: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_base(tmp_path_factory.mktemp("v") / "base", prediction_type="v_prediction", tokenizer=False)


class TestReferenceNumbers:
    @pytest.mark.parametrize("implementation", ["fused", "explicit"])
    @pytest.mark.parametrize("name", list(CONFIGS))
    def test_losses(
        self,
        name: str,
        implementation: Any,
        golden: Golden,
        published_checkpoint: Path,
        tiny_base: Path,
        v_base: Path,
    ) -> None:
        model = FastComposer.from_published_checkpoint(
            published_checkpoint,
            base=v_base if name == "v_prediction" else tiny_base,
            loss_config=CONFIGS[name],
            attention_implementation=implementation,
        )
        losses = model.training_losses(golden.batch(), **golden.drawn())
        expected = golden.expected[name]
        for key in ("loss", "denoise_loss", "localization_loss"):
            assert getattr(losses, key).item() == pytest.approx(expected[key], abs=1e-5)
        per_layer = {key: value.item() for key, value in losses.localization_per_layer.items()}
        assert per_layer.keys() == expected["localization_loss_per_layer"].keys() == {*model.localized_layers}
        assert per_layer == pytest.approx(expected["localization_loss_per_layer"], abs=1e-5)

    def test_conditioning_and_prediction(self, golden_model: FastComposer, golden: Golden) -> None:
        losses = golden_model.training_losses(golden.batch(), **golden.drawn())
        tensors = golden.tensors
        assert deviation(losses.noise_pred, tensors["paper.noise_pred"]) < 1e-5
        assert deviation(losses.prompt_embeds, tensors["paper.prompt_embeds"]) < 1e-5
        assert deviation(losses.subject_embeds, tensors["paper.subject_embeds"].squeeze(2)) < 1e-5

    def test_empty_slots_need_not_be_encoded(self, golden_model: FastComposer, golden: Golden) -> None:
        """The losses and every gradient stay the same; without any subject at all, too."""
        batch = golden.batch()
        assert not batch.subject_present.all()
        nobody = batch.replace(subject_present=torch.zeros_like(batch.subject_present))
        for given in (batch, nobody):
            found = []
            for skip_empty in (False, True):
                golden_model.zero_grad()
                losses = golden_model.training_losses(
                    given, generator=torch.Generator().manual_seed(0), skip_empty=skip_empty
                )
                losses.loss.backward()
                gradients = [p.grad for p in golden_model.trainable_parameters() if p.grad is not None]
                found.append((losses.loss.item(), torch.nn.utils.get_total_norm(gradients).item()))
            assert found[0] == pytest.approx(found[1], rel=1e-5)

    @pytest.mark.parametrize("checkpointed", [False, True])
    def test_gradients(self, checkpointed: bool, golden_model: FastComposer, golden: Golden) -> None:
        golden_model.loss_config = CONFIGS["paper"]
        if checkpointed:
            golden_model.enable_gradient_checkpointing()
        golden_model.train()
        golden_model.training_losses(golden.batch(), **golden.drawn()).loss.backward()
        parameters = dict(golden_model.named_parameters())
        expected = golden.expected["paper"]["grad_norms"]
        for name, norm in expected.items():
            gradient = parameters[name.replace("postfuse_module.", "fusion.")].grad
            assert gradient is not None and gradient.norm().item() == pytest.approx(norm, rel=1e-5, abs=1e-7)

    def test_latent_mean(self, golden_model: FastComposer, golden: Golden) -> None:
        moments = golden_model.encode_moments(golden.tensors["batch.pixel_values"])
        mean = moments.chunk(2, dim=1)[0] * golden_model.vae.config.scaling_factor
        assert deviation(mean, golden.tensors["vae.latent_mean"]) < 1e-5

    def test_text_embeddings(self, golden_model: FastComposer, golden: Golden) -> None:
        batch = golden.batch()
        none = batch.replace(subject_present=torch.zeros_like(batch.subject_present))
        assert deviation(golden_model.encode_batch(none)[0], golden.tensors["text_embeds"]) < 1e-5


class TestLosses:
    def test_precomputed_moments_and_text_take_the_encoders_place(
        self, golden_model: FastComposer, golden: Golden
    ) -> None:
        golden_model.loss_config = CONFIGS["paper"]
        batch = golden.batch()

        def loss(batch: SubjectBatch) -> float:
            generator = torch.Generator().manual_seed(3)
            return golden_model.training_losses(batch, generator=generator).loss.item()

        ready = batch.replace(
            latent_moments=golden_model.encode_moments(batch.pixel_values).detach(),
            text_embeds=golden.tensors["text_embeds"],
        )
        expected = loss(batch)
        blind = ready.replace(
            pixel_values=torch.zeros_like(batch.pixel_values), input_ids=torch.zeros_like(batch.input_ids)
        )
        assert loss(blind) == pytest.approx(expected, abs=1e-5)

    def test_one_generator_decides_everything(self, golden_model: FastComposer, golden: Golden) -> None:
        golden_model.loss_config = LossConfig(mask_loss_probability=0.5, mask_loss_per_sample=True)

        def loss(seed: int) -> float:
            generator = torch.Generator().manual_seed(seed)
            return golden_model.training_losses(golden.batch(), generator=generator).loss.item()

        torch.manual_seed(1)
        first = loss(0)
        torch.manual_seed(2)
        assert loss(0) == first
        assert loss(1) != first

    def test_mask_is_drawn_per_batch_or_per_sample(self, golden_model: FastComposer, golden: Golden) -> None:
        batch = golden.batch()
        union = subject_union(batch.subject_masks, batch.subject_present, (32, 32))
        ones = torch.ones_like(union)
        size = (32, 32)
        golden_model.loss_config = LossConfig(mask_loss_probability=0.5)
        seen = set()
        for seed in range(20):
            mask = golden_model._loss_mask(batch, size, torch.Generator().manual_seed(seed))
            assert mask is not None
            seen.add(tuple(torch.equal(row, other) for row, other in zip(mask, union, strict=True)))
            assert torch.equal(mask, union) or torch.equal(mask, ones)
        assert seen == {(True, True, True), (False, False, False)}
        golden_model.loss_config = LossConfig(mask_loss_probability=0.5, mask_loss_per_sample=True)
        patterns = set()
        for seed in range(40):
            mask = golden_model._loss_mask(batch, size, torch.Generator().manual_seed(seed))
            assert mask is not None
            patterns.add(tuple(torch.equal(row, other) for row, other in zip(mask, union, strict=True)))
        assert len(patterns) == 8

    def test_unconditional_samples_can_be_left_unmasked(
        self, golden_model: FastComposer, golden: Golden
    ) -> None:
        batch = golden.batch()
        golden_model.loss_config = LossConfig(mask_loss_probability=1, mask_loss_skip_unconditional=True)
        losses = golden_model.training_losses(batch, **golden.drawn())
        union = subject_union(batch.subject_masks, batch.subject_present, (32, 32))
        assert union[2].sum() == 0
        union[2] = 1
        expected = denoising_loss(losses.noise_pred, golden.tensors["batch.noise"], union)
        assert losses.denoise_loss.item() == pytest.approx(expected.item())
        assert losses.denoise_loss.item() > golden.expected["masked"]["denoise_loss"]

    def test_localization_blocks_can_be_replaced(self, golden_model: FastComposer, golden: Golden) -> None:
        golden_model.loss_config = LossConfig(localization_blocks=("mid_block",), mask_loss_probability=0)
        losses = golden_model.training_losses(golden.batch(), **golden.drawn())
        (name,) = losses.localization_per_layer
        assert name == "mid_block.attentions.0.transformer_blocks.0.attn2"
        expected = golden.expected["paper"]["localization_loss_per_layer"][name]
        assert losses.localization_loss.item() == pytest.approx(expected, abs=1e-5)
        with pytest.raises(ValueError, match="are no cross-attention blocks"):
            golden_model.loss_config = LossConfig(localization_blocks=("mid",))
        assert golden_model.loss_config.localization_blocks == ("mid_block",)

    def test_localization_can_be_measured_only_or_left_out(
        self, golden_model: FastComposer, golden: Golden
    ) -> None:
        golden_model.loss_config = replace(CONFIGS["paper"], localization_weight=0)
        measured = golden_model.training_losses(golden.batch(), **golden.drawn())
        assert measured.localization_loss.item() == pytest.approx(-0.0069051, abs=1e-6)
        assert not measured.localization_loss.requires_grad
        assert measured.loss.item() == measured.denoise_loss.item()
        golden_model.loss_config = replace(CONFIGS["paper"], num_localized_blocks=0)
        left_out = golden_model.training_losses(golden.batch(), **golden.drawn())
        assert left_out.localization_loss.item() == 0 and left_out.localization_per_layer == {}
        assert left_out.denoise_loss.item() == measured.denoise_loss.item()

    def test_image_size_is_checked_first(self, golden_model: FastComposer, golden: Golden) -> None:
        assert golden_model.size_factor == 16
        batch = golden.batch().replace(pixel_values=torch.zeros(3, 3, 64, 72))
        with pytest.raises(ValueError, match=r"64 by 72 pixels .* multiples of 16"):
            golden_model.training_losses(batch)

    def test_own_checkpointing_of_the_unet_is_refused(
        self, golden_model: FastComposer, golden: Golden
    ) -> None:
        golden_model.unet.enable_gradient_checkpointing()
        with pytest.raises(RuntimeError, match="enable_gradient_checkpointing of the FastComposer model"):
            golden_model.training_losses(golden.batch(), **golden.drawn())

    def test_nothing_waits_for_values(self, golden_model: FastComposer, golden: Golden) -> None:
        golden_model.loss_config = LossConfig(
            mask_loss_per_sample=True, mask_loss_skip_unconditional=True, normalize_localization=True
        )
        with FakeTensorMode(allow_non_fake_inputs=True) as mode:
            batch = golden.batch()
            fake = {field.name: getattr(batch, field.name) for field in fields(batch)}
            fake = {k: mode.from_tensor(v) if isinstance(v, Tensor) else v for k, v in fake.items()}
            # A tensor without values: reading one on the way to the loss would raise.
            golden_model.training_losses(SubjectBatch(**fake)).loss.backward()
            with pytest.raises(DataDependentOutputException):
                fake["subject_present"].any().item()

    def test_autocast_keeps_the_losses_in_float32(self, golden_model: FastComposer, golden: Golden) -> None:
        golden_model.loss_config = CONFIGS["paper"]
        with torch.autocast("cpu", torch.bfloat16):
            losses = golden_model.training_losses(golden.batch(), **golden.drawn())
        assert losses.loss.dtype == torch.float32
        expected = golden.expected["paper"]
        assert losses.denoise_loss.item() == pytest.approx(expected["denoise_loss"], rel=0.02)
        assert losses.localization_loss.item() == pytest.approx(expected["localization_loss"], rel=0.1)

    def test_half_precision_caches_are_taken(self, golden_model: FastComposer, golden: Golden) -> None:
        batch = golden.batch()
        moments = golden_model.encode_moments(batch.pixel_values).detach()
        cached = batch.replace(
            latent_moments=moments.half(), text_embeds=golden.tensors["text_embeds"].half()
        )
        losses = golden_model.training_losses(cached)
        assert losses.prompt_embeds.dtype == losses.noise_pred.dtype == torch.float32

    def test_half_precision_weights_train(self, tiny_base: Path, golden: Golden) -> None:
        model = FastComposer.from_pretrained(tiny_base, dtype=torch.bfloat16)
        losses = model.training_losses(golden.batch(), **golden.drawn())
        assert losses.noise_pred.dtype == torch.bfloat16
        assert losses.loss.dtype == losses.localization_loss.dtype == torch.float32
        losses.loss.backward()


class TestTrainable:
    def test_default_is_the_papers(self, golden_model: FastComposer) -> None:
        trained = set(golden_model.trainable_state_dict())
        parts = {name.split(".")[0] for name in trained}
        assert parts == {"unet", "fusion", "image_encoder"}
        layers = {name.split(".")[4] for name in trained if name.startswith("image_encoder")}
        assert layers == {"1", "2"}
        assert all("encoder.layers" in name for name in trained if name.startswith("image_encoder"))

    def test_frozen_parts_stay_in_eval_mode(self, golden_model: FastComposer) -> None:
        golden_model.train()
        assert golden_model.training and golden_model.unet.training and golden_model.fusion.training
        assert not golden_model.vae.training and not golden_model.text_encoder.training
        assert not golden_model.image_encoder.training
        layers = golden_model.image_encoder.vision_model.encoder.layers
        assert [layer.training for layer in layers] == [False, True, True]
        golden_model.set_trainable(unet=False, vision_layers=0)
        assert {name.split(".")[0] for name in golden_model.trainable_state_dict()} == {"fusion"}
        assert not golden_model.unet.training and golden_model.fusion.training
        golden_model.eval()
        assert not any(module.training for module in golden_model.modules())

    def test_only_trained_parameters_get_gradients(self, golden_model: FastComposer, golden: Golden) -> None:
        golden_model.set_trainable(unet=False, vision_layers=1)
        golden_model.training_losses(golden.batch(), **golden.drawn()).loss.backward()
        with_gradient = {name for name, p in golden_model.named_parameters() if p.grad is not None}
        assert with_gradient == set(golden_model.trainable_state_dict())
        assert sum(1 for _ in golden_model.trainable_parameters()) == len(with_gradient)

    def test_too_many_vision_layers(self, golden_model: FastComposer) -> None:
        with pytest.raises(ValueError, match=r"vision_layers must lie in \[0, 3\], not 4"):
            golden_model.set_trainable(vision_layers=4)

    def test_normalization_constants_are_not_saved(self, golden_model: FastComposer) -> None:
        assert not any("normalizer" in name for name in golden_model.state_dict())
        assert golden_model.to(torch.float64).reference_normalizer.mean.dtype == torch.float64


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
        self,
        write_base: Callable[..., Path],
        tiny_base: Path,
        published_checkpoint: Path,
        tmp_path: Path,
    ) -> None:
        other = write_base(tmp_path / "other", vision={"projection_dim": 48}, tokenizer=False)
        for encoder in (other, other / "image_encoder"):
            model = FastComposer.from_pretrained(tiny_base, encoder)
            assert model.fusion.image_projection.weight.shape == (32, 48)
        # The released fusion has none.
        with pytest.raises(ValueError, match=r"missing: fusion\.image_projection\.weight"):
            FastComposer.from_published_checkpoint(published_checkpoint, base=tiny_base, image_encoder=other)

    def test_image_encoder_from_elsewhere(
        self, write_base: Callable[..., Path], tiny_base: Path, tmp_path: Path
    ) -> None:
        other = write_base(tmp_path / "other", vision={"num_hidden_layers": 2}, tokenizer=False)
        model = FastComposer.from_pretrained(tiny_base, other / "image_encoder")
        assert len(model.image_encoder.vision_model.encoder.layers) == 2

    def test_image_encoder_may_be_a_whole_clip_model(self, tiny_base: Path, tmp_path: Path) -> None:
        from transformers import CLIPConfig, CLIPModel

        own = FastComposer.from_pretrained(tiny_base)
        config = CLIPConfig(
            text_config=own.text_encoder.config.to_dict(),
            vision_config=own.image_encoder.config.to_dict(),
            projection_dim=32,
        )
        clip = CLIPModel(config)
        clip.save_pretrained(tmp_path / "clip")
        model = FastComposer.from_pretrained(tiny_base, tmp_path / "clip")
        for name, value in model.image_encoder.state_dict().items():
            assert torch.equal(value, clip.state_dict()[name]), name

    def test_incomplete_weights_are_refused(self, tiny_base: Path, tmp_path: Path) -> None:
        import shutil

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
        with pytest.raises(ValueError, match=r"mode mlp that pools by mean: set method\.model\.fusion"):
            FastComposer.from_pretrained(tmp_path / "saved", fusion=FusionConfig(pooling="attention"))

    def test_new_fusion_takes_its_width_from_the_text_encoder(self, tiny_base: Path) -> None:
        model = FastComposer.from_pretrained(tiny_base, max_subjects=3)
        assert model.fusion.config.embed_dim == 32 and model.fusion.config.max_subjects == 3

    def test_unknown_prediction_type(self, write_base: Callable[..., Path], tmp_path: Path) -> None:
        base = write_base(tmp_path / "base", prediction_type="sample", tokenizer=False)
        with pytest.raises(ValueError, match="prediction_type 'sample' is not one of"):
            FastComposer.from_pretrained(base)

    def test_older_text_encoder_names_are_read(self, tiny_base: Path, tmp_path: Path) -> None:
        import shutil

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


class TestPrompts:
    def test_prompts_and_batches_are_conditioned_alike(
        self, golden_model: FastComposer, golden: Golden
    ) -> None:
        prompts = [
            "a man <|image|> and a woman <|image|> on the beach",
            "a photo of a person <|image|>",
            "a beach",
        ]
        references = golden.tensors["batch.object_pixel_values"]
        rows = [[references[0, 0], references[0, 1]], [references[1, 0]], []]
        encoded = golden_model.encode_prompts(prompts, rows)
        assert encoded.subject_present.tolist() == [[True, True], [True, False], [False, False]]
        parsed = [parse_prompt(prompt, golden_model.tokenizer) for prompt in prompts]
        batch = golden.batch().replace(
            input_ids=torch.tensor([p.input_ids for p in parsed]),
            subject_pixel_values=references[:, :2],
            subject_token_idx=encoded.subject_token_idx,
            subject_present=encoded.subject_present,
        )
        prompt_embeds, subject_embeds = golden_model.encode_batch(batch)
        present = encoded.subject_present
        torch.testing.assert_close(encoded.prompt_embeds, prompt_embeds, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(
            encoded.subject_embeds[present], subject_embeds[present], rtol=1e-5, atol=1e-5
        )
        assert not encoded.subject_embeds[~present].any()
        assert torch.equal(encoded.prompt_embeds[2], encoded.text_embeds[2])

    @pytest.mark.parametrize("pooling", ["mean", "attention"])
    def test_several_references_are_pooled_in_prompts_as_in_batches(
        self, pooling: Any, golden_model: FastComposer, golden: Golden
    ) -> None:
        golden_model.adopt_fusion(FusionConfig(pooling=pooling))
        for parameter in golden_model.fusion.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
        a, b, c = golden.tensors["batch.object_pixel_values"].flatten(0, 1)[:3]
        prompt = "a man <|image|> and a woman <|image|>"
        encoded = golden_model.encode_prompts([prompt], [[torch.stack([a, b]), c]])
        pixels = torch.stack([a, c])[None]
        extra = torch.stack([b, torch.rand_like(b)])[None, :, None]
        batch = golden.batch()
        batch = batch.replace(
            input_ids=torch.tensor([parse_prompt(prompt, golden_model.tokenizer).input_ids]),
            subject_pixel_values=pixels,
            subject_token_idx=encoded.subject_token_idx,
            subject_present=encoded.subject_present,
            extra_pixel_values=extra,
            extra_present=torch.tensor([[[True], [False]]]),
        )
        for skip_empty in (False, True):
            prompts, subjects = golden_model.encode_batch(batch, skip_empty=skip_empty)
            torch.testing.assert_close(encoded.subject_embeds, subjects, rtol=1e-5, atol=1e-5)
            torch.testing.assert_close(encoded.prompt_embeds, prompts, rtol=1e-5, atol=1e-5)
        one, two = (golden_model.encode_prompts(["a man <|image|>"], [[x]]).subject_embeds for x in (a, b))
        if pooling == "mean":
            torch.testing.assert_close(subjects[0, 0], (one + two)[0, 0] / 2, rtol=1e-5, atol=1e-5)
        else:
            assert not torch.allclose(subjects[0, 0], (one + two)[0, 0] / 2, atol=1e-3)

    def test_masked_references_change_nothing(self, golden_model: FastComposer, golden: Golden) -> None:
        batch, drawn = golden.batch(), golden.drawn()
        golden_model.loss_config = LossConfig(mask_loss_probability=0)
        plain = golden_model.training_losses(batch, **drawn, skip_empty=True)
        shape = batch.subject_pixel_values.shape
        padded = batch.replace(
            extra_pixel_values=torch.rand(*shape[:2], 2, *shape[2:]),
            extra_present=torch.zeros(*shape[:2], 2, dtype=torch.bool),
        )
        losses = golden_model.training_losses(padded, **drawn, skip_empty=True)
        assert losses.loss.item() == plain.loss.item()
        assert torch.equal(losses.subject_embeds, plain.subject_embeds)

    def test_references_must_match(self, golden_model: FastComposer) -> None:
        with pytest.raises(PromptError, match="1 lists of references for 2 prompts"):
            golden_model.encode_prompts(["a man", "a woman"], [[]])
        with pytest.raises(PromptError, match=r"0 reference image\(s\) for 1 marker"):
            golden_model.encode_prompts(["a man <|image|>"])
        many = "a man <|image|> " * 5
        with pytest.raises(PromptError, match=r"5 subjects .* the model takes 4 at most"):
            golden_model.encode_prompts([many], [[torch.zeros(3, 56, 56)] * 5])

    def test_missing_tokenizer_matters_only_for_prompts(
        self, v_base: Path, published_checkpoint: Path, golden: Golden
    ) -> None:
        model = FastComposer.from_published_checkpoint(published_checkpoint, base=v_base)
        assert model.tokenizer is None
        model.training_losses(golden.batch(), **golden.drawn())
        with pytest.raises(ValueError, match="no tokenizer, so it cannot read prompts"):
            model.encode_prompts(["a man"])


def test_importing_the_package_does_not_import_torch() -> None:
    import subprocess
    import sys

    code = (
        "import sys, fastcomposer; print(json.dumps([m for m in ('torch', 'diffusers') if m in sys.modules]))"
    )
    result = subprocess.run(
        [sys.executable, "-c", f"import json; {code}"], capture_output=True, text=True, check=True
    )
    assert json.loads(result.stdout) == []


def test_public_names() -> None:
    import fastcomposer

    for name in fastcomposer.__all__:
        assert getattr(fastcomposer, name).__name__ == name
    assert set(fastcomposer.__all__) <= set(dir(fastcomposer))
    with pytest.raises(AttributeError, match="no attribute 'FastComposr'"):
        _ = fastcomposer.FastComposr  # type: ignore[attr-defined]
