from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

from fastcomposer import FastComposer, SubjectBatch
from fastcomposer.losses import LossConfig, denoising_loss, subject_union

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


def loss_and_gradient(model: FastComposer, batch: SubjectBatch, **options: Any) -> tuple[float, float]:
    """The loss, and the norm of all gradients."""
    model.zero_grad()
    loss = model.training_losses(batch, generator=torch.Generator().manual_seed(0), **options).loss
    loss.backward()
    gradients = [p.grad for p in model.trainable_parameters() if p.grad is not None]
    return loss.item(), torch.nn.utils.get_total_norm(gradients).item()


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
        batch = golden.batch()
        assert not batch.subject_present.all()
        nobody = batch.replace(subject_present=torch.zeros_like(batch.subject_present))
        for given in (batch, nobody):
            found = [loss_and_gradient(golden_model, given, skip_empty=skip) for skip in (False, True)]
            assert found[0] == pytest.approx(found[1], rel=1e-5)

    @pytest.mark.parametrize("localization", ["balanced_l1", "cross_entropy", "token_compose"])
    def test_batches_without_slots_are_those_of_empty_ones(
        self, localization: Any, golden_model: FastComposer, golden: Golden
    ) -> None:
        golden_model.loss_config = LossConfig(localization=localization, mask_loss_per_sample=True)
        given = golden.batch()
        nobody = given.replace(subject_present=torch.zeros_like(given.subject_present))
        names = ("subject_pixel_values", "subject_token_idx", "subject_present", "subject_masks")
        none = given.replace(**{name: getattr(given, name)[:, :0] for name in names})
        found = [loss_and_gradient(golden_model, batch) for batch in (nobody, none)]
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
        for per_sample in (False, True):
            golden_model.loss_config = LossConfig(mask_loss_probability=0.5, mask_loss_per_sample=per_sample)
            seen = set()
            for seed in range(40):
                mask = golden_model._loss_mask(batch, (32, 32), torch.Generator().manual_seed(seed))
                assert mask is not None
                seen.add(tuple(torch.equal(row, other) for row, other in zip(mask, union, strict=True)))
                assert all(row.equal(own) or row.eq(1).all() for row, own in zip(mask, union, strict=True))
            assert len(seen) == 8 if per_sample else seen == {(True,) * 3, (False,) * 3}

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
        golden_model.set_trainable(backbone=False, vision_layers=0)
        assert {name.split(".")[0] for name in golden_model.trainable_state_dict()} == {"fusion"}
        assert not golden_model.unet.training and golden_model.fusion.training
        golden_model.eval()
        assert not any(module.training for module in golden_model.modules())

    def test_only_trained_parameters_get_gradients(self, golden_model: FastComposer, golden: Golden) -> None:
        golden_model.set_trainable(backbone=False, vision_layers=1)
        golden_model.training_losses(golden.batch(), **golden.drawn()).loss.backward()
        with_gradient = {name for name, p in golden_model.named_parameters() if p.grad is not None}
        assert with_gradient == set(golden_model.trainable_state_dict())
        assert sum(1 for _ in golden_model.trainable_parameters()) == len(with_gradient)

    def test_normalization_constants_are_not_saved(self, golden_model: FastComposer) -> None:
        assert not any("normalizer" in name for name in golden_model.state_dict())
        assert golden_model.to(torch.float64).reference_normalizer.mean.dtype == torch.float64
