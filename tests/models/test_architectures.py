"""Every architecture trains, localizes and samples; at full width its parts have the published sizes."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import StableDiffusion3Pipeline, StableDiffusionPipeline, StableDiffusionXLPipeline
from tiny_architectures import ARCHITECTURES, PROMPT, REFERENCES, batch_of, narrow
from tiny_pipeline import seeded

from fastcomposer import FastComposer
from fastcomposer.losses import LossConfig
from fastcomposer.models.loading import load_tokenizer, network_classes, open_source
from fastcomposer.pipeline.kinds import open_pipeline
from fastcomposer.pipeline.variants import Variant
from fastcomposer.prompt import parse_prompt, strip_markers

NAMES = ("sd15", "sd21", "sdxl", "sd3")
STOCK: dict[str, Any] = {
    "sd15": StableDiffusionPipeline,
    "sd21": StableDiffusionPipeline,
    "sdxl": StableDiffusionXLPipeline,
    "sd3": StableDiffusion3Pipeline,
}
# Of the released models; the sum of the image encoder leaves out CLIP's text tower.
PARAMETERS = {
    "sd15": (859_520_964, 83_653_863, 123_060_480, 303_966_208),
    "sd21": (865_910_724, 83_653_863, 340_387_840, 303_966_208),
    "sdxl": (2_567_463_684, 83_653_863, 123_060_480, 303_966_208, 694_659_840),
    "sd3": (2_243_171_520, 83_819_683, 123_650_304, 303_966_208, 694_659_840),
}
# Localized layers of the middle five blocks, and the resolution of most of them.
LOCALIZED = {"sd15": 11, "sd21": 11, "sdxl": 4 + 6 + 3 + 9 + 6, "sd3": 3}


@pytest.fixture(scope="module", params=NAMES)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def folder(name: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return narrow(name, tmp_path_factory.mktemp("architectures") / name)


@pytest.fixture(scope="module")
def model(folder: Path) -> FastComposer:
    return FastComposer.from_pretrained(
        "no/base",
        architecture=folder,
        weights="random",
        max_subjects=3,
        loss_config=LossConfig(mask_loss_probability=0),
    )


def sampler(**more: Any) -> dict[str, Any]:
    size = {"height": 64, "width": 64, "num_inference_steps": 2, "guidance_scale": 5.0}
    return {**size, "output_type": "np", **more}


@pytest.mark.parametrize("full", NAMES)
def test_full_size_parts_are_the_published_ones(full: str) -> None:
    source = open_source("no/base", None, architecture=ARCHITECTURES / full, weights="random")
    known = json.loads((ARCHITECTURES / full / "parameters.json").read_text())
    classes = network_classes(source)
    with torch.device("meta"):
        sizes = {
            part: sum(p.numel() for p in source.configured(classes[part], part).parameters())
            for part in known
        }
    assert known.keys() == classes.keys()
    assert tuple(sizes.values()) == PARAMETERS[full]
    assert known == sizes
    expected = {"sd15": "epsilon", "sd21": "v_prediction", "sdxl": "epsilon", "sd3": None}[full]
    assert source.noise_scheduler().config.get("prediction_type") == expected


class TestTraining:
    def test_a_step_reaches_everything_that_is_trained(self, name: str, model: FastComposer) -> None:
        model.zero_grad()
        losses = model.train().training_losses(batch_of(model), generator=seeded())
        losses.loss.backward()
        assert losses.loss.isfinite()
        assert len(losses.localization_per_layer) == LOCALIZED[name] == len(model.localized_layers)
        assert losses.localization_loss.item() != 0
        for part in (model.backbone, model.fusion, model.image_encoder.vision_model.encoder.layers[-1]):
            without = [n for n, p in part.named_parameters() if p.grad is None or not p.grad.norm() > 0]
            # A softmax does not see the keys' bias, nor anything where there is one position alone.
            single = [n for n in without if n.startswith("mid_block") and "attn1.to_" in n]
            # Nothing reads the text after the last joint attention.
            single += [n for n in without if n.startswith("transformer_blocks.2.attn.") and "added_q" in n]
            single += [n for n in without if n.startswith("transformer_blocks.2.attn.add_q_proj")]
            assert [n for n in without if not n.endswith("k_proj.bias") and n not in single] == []
        assert all(p.grad is None for p in model.vae.parameters())
        assert all(p.grad is None for p in model.text_encoder.parameters())

    def test_all_keys_are_for_joint_attention(self, name: str, model: FastComposer) -> None:
        before, mean = model.loss_config, LossConfig(localization=lambda maps, *_: maps.mean())
        try:
            model.loss_config = mean
            text = model.training_losses(batch_of(model), generator=seeded()).localization_loss
            model.loss_config = replace(mean, localization_keys="all")
            mass = model.training_losses(batch_of(model), generator=seeded()).localization_loss
            assert name == "sd3" and 0 < mass < text  # the image's own tokens take the rest
        except ValueError as error:
            assert name != "sd3" and "localization_keys" in str(error)
        finally:
            model.loss_config = before


class TestText:
    def test_states_are_those_that_the_pipeline_encodes(self, name: str, model: FastComposer) -> None:
        batch = batch_of(model)
        encoded = model.to_pipeline().encode_prompt(
            [PROMPT, "a man <|image|>"], device="cpu", num_images_per_prompt=1,
            do_classifier_free_guidance=True,
        )  # fmt: skip
        states = model.encode_captions(batch)
        assert torch.equal(states.tokens, encoded[0])
        if states.pooled is not None:
            assert torch.equal(states.pooled, encoded[2])
        if name == "sdxl":
            empty = torch.tensor([parse_prompt("", model.tokenizer).input_ids])
            zeros = model.text.encode(empty)
            assert torch.equal(zeros.tokens, encoded[1][:1]) and not zeros.tokens.any()
            assert zeros.pooled is not None and torch.equal(zeros.pooled, encoded[3][:1])
        assert (states.pooled is None) == (name in ("sd15", "sd21"))

    def test_only_subjects_words_change(self, model: FastComposer) -> None:
        batch = batch_of(model)
        prompts, subjects = model.encode_batch(batch)
        changed = (prompts != model.encode_captions(batch).tokens).any(-1)
        expected = torch.zeros_like(changed)
        expected[0, batch.subject_token_idx[0]] = expected[1, batch.subject_token_idx[1, 0]] = True
        assert torch.equal(changed, expected)
        assert subjects.shape == (2, 2, 32)
        # Each text encoder's part of the word is fused.
        word, dims = batch.subject_token_idx[0, 0], model.fusion.text_dims
        states = (model.encode_captions(batch).tokens, prompts)
        before, after = (value[0, word, : sum(dims)].split(dims) for value in states)
        assert all(not torch.equal(a, b) for a, b in zip(before, after, strict=True))

    def test_stand_in_tokenizer_has_the_encoders_special_tokens(self, name: str, folder: Path) -> None:
        tokenizer = load_tokenizer("no/base", architecture=folder, weights="random")
        ids = parse_prompt(PROMPT, tokenizer).input_ids
        assert ids[0] == 49406 and 49407 in ids and len(ids) == 77 == tokenizer.model_max_length
        assert ids[-1] == (0 if name == "sd21" else 49407)
        assert ids.index(49407) == 9
        mini = load_tokenizer("data/mini")
        assert ids[1:9] == mini(strip_markers(PROMPT)).input_ids[1:-1]


class TestSampling:
    def test_alpha_zero_is_the_stock_pipeline(self, name: str, model: FastComposer) -> None:
        pipe = model.to_pipeline()
        assert isinstance(pipe, STOCK[name])
        own = {part for part, value in pipe.components.items() if "fastcomposer" in type(value).__module__}
        assert own == {"fusion"}
        parts = {part: value for part, value in pipe.components.items() if part != "fusion"}
        extra = {"requires_safety_checker": False} if name in ("sd15", "sd21") else {}
        rescaled = {} if name == "sd3" else {"guidance_rescale": 0.3}
        stock = STOCK[name](**parts, **extra)
        for options in (
            {},
            {"num_images_per_prompt": 2, "negative_prompt": "a beach", **rescaled},
            {"guidance_scale": 1.0},
        ):
            given = sampler(**options)
            ours = pipe(PROMPT, references=REFERENCES, alpha=0, generator=seeded(), **given).images
            theirs = stock(strip_markers(PROMPT), generator=seeded(), **given).images
            assert np.array_equal(ours, theirs), options

    def test_subjects_change_the_image_and_attention_is_seen(self, model: FastComposer) -> None:
        pipe = model.to_pipeline()
        found = [
            pipe(
                PROMPT,
                references=REFERENCES,
                alpha=alpha,
                generator=seeded(),
                return_attention=1,
                **sampler(output_type="latent"),
            )
            for alpha in (0.0, 1.0)
        ]
        assert not torch.equal(found[0].images, found[1].images)
        assert found[1].attention_maps.shape == (1, 1, 2, 8, 8)
        assert found[1].attention_maps.gt(0).all()

    def test_variants_are_single_calls(self, model: FastComposer) -> None:
        pipe = model.to_pipeline()
        given = sampler(output_type="latent", num_inference_steps=4)
        variants = [Variant(REFERENCES, alpha) for alpha in (1.0, 0.5)]
        shared = pipe.sample_variants(PROMPT, variants, generator=seeded(), **given).images
        for variant, images in zip(variants, shared, strict=True):
            alone = pipe(
                PROMPT, references=REFERENCES, alpha=variant.alpha, generator=[seeded()], **given
            ).images
            assert torch.equal(images, alone)

    def test_a_saved_pipeline_samples_the_same(self, model: FastComposer, tmp_path: Path) -> None:
        pipe = model.to_pipeline()
        pipe.save_pretrained(tmp_path)
        given = sampler(alpha=1.0, references=REFERENCES)
        loaded = open_pipeline(tmp_path)
        assert type(loaded) is type(pipe)
        # Weights that are mapped from a file lie at other addresses, where sums are rounded otherwise.
        assert np.allclose(
            pipe(PROMPT, generator=seeded(), **given).images,
            loaded(PROMPT, generator=seeded(), **given).images,
            atol=1e-5,
        )
        again = FastComposer.from_pretrained(tmp_path)
        assert torch.equal(
            again.training_losses(batch_of(again), generator=seeded()).prompt_embeds,
            model.training_losses(batch_of(model), generator=seeded()).prompt_embeds,
        )


class TestSettings:
    def test_random_weights_need_an_architecture(self) -> None:
        with pytest.raises(ValueError, match=r"model\.weights=random needs an architecture"):
            open_source("no/base", None, weights="random")
        with pytest.raises(FileNotFoundError, match="architecture data/none: there is no such folder"):
            open_source("no/base", None, architecture=Path("data/none"), weights="random")
        with pytest.raises(ValueError, match=r"model\.weights=some: one of pretrained, random"):
            open_source("no/base", None, weights="some")  # type: ignore[arg-type]

    def test_a_saved_fusion_needs_its_image_encoder(
        self, model: FastComposer, folder: Path, tmp_path: Path
    ) -> None:
        model.to_pipeline().save_pretrained(tmp_path / "saved")
        shutil.copytree(folder / "image_encoder", tmp_path / "clip" / "image_encoder")
        config = tmp_path / "clip" / "image_encoder" / "config.json"
        config.write_text(config.read_text().replace('"projection_dim": 32', '"projection_dim": 20'))
        with pytest.raises(ValueError, match=r"projects to 20 numbers, but the fusion of .* takes 32"):
            open_source(tmp_path / "saved", tmp_path / "clip")
