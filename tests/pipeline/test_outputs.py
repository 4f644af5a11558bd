"""What the pipeline gives back, and what callbacks see."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_pipeline import ONE, SIZE, TWO, reference, seeded, stable_diffusion
from tiny_pipeline import scheduler as made

from fastcomposer import FastComposer, FastComposerPipeline
from fastcomposer.evaluation.pipelines import load_trained
from fastcomposer.models.weights_io import save_trained_weights
from fastcomposer.pipeline.stable_diffusion import FastComposerPipelineOutput

if TYPE_CHECKING:
    from collections.abc import Callable


def add_safety_checker(base: Path) -> Path:
    """Give a base a safety checker that objects to everything."""
    from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
    from transformers import CLIPConfig, CLIPImageProcessor

    tiny = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = CLIPConfig(
        vision_config={**tiny, "image_size": 28, "patch_size": 14}, text_config=tiny, projection_dim=8
    )
    checker = StableDiffusionSafetyChecker(config)
    checker.concept_embeds_weights.fill_(-1.0)
    checker.save_pretrained(base / "safety_checker")
    CLIPImageProcessor(size=28, crop_size=28).save_pretrained(base / "feature_extractor")
    index = json.loads((base / "model_index.json").read_text())
    index["safety_checker"] = ["stable_diffusion", "StableDiffusionSafetyChecker"]
    index["feature_extractor"] = ["transformers", "CLIPImageProcessor"]
    (base / "model_index.json").write_text(json.dumps(index))
    return base


class TestOutputs:
    def test_output_types(self, pipe: FastComposerPipeline) -> None:
        options = {**SIZE, "references": [reference(0)]}
        output = pipe(ONE, **options)
        assert isinstance(output, FastComposerPipelineOutput)
        assert output.images[0].size == (32, 32) and output.nsfw_content_detected is None
        assert output.attention_maps is None
        assert pipe(ONE, output_type="pt", **options).images.shape == (1, 3, 32, 32)
        images, unsafe = pipe(ONE, return_dict=False, **options)
        assert images[0].size == (32, 32) and unsafe is None

    def test_default_size_is_the_unets(self, pipe: FastComposerPipeline) -> None:
        output = pipe(ONE, references=[reference(0)], num_inference_steps=1, output_type="latent")
        assert output.images.shape == (1, 4, 32, 32)

    def test_attention_maps(self, pipe: FastComposerPipeline) -> None:
        options = {**SIZE, "references": [[reference(0), reference(1)], [reference(2)]], "output_type": "np"}
        plain = pipe([TWO, ONE], generator=seeded(), **options)
        output = pipe([TWO, ONE], generator=seeded(), return_attention=2, **options)
        assert np.array_equal(output.images, plain.images)
        maps = output.attention_maps
        assert maps.shape == (2, 2, 2, 16, 16) and maps.dtype == torch.float32
        assert maps[0].min() > 0 and maps[1, :, 0].min() > 0 and not maps[1, :, 1].any()
        assert not torch.equal(maps[:, 0], maps[:, 1])
        images, _, again = pipe(
            [TWO, ONE], generator=seeded(), return_attention=2, return_dict=False, **options
        )
        assert torch.equal(again, maps) and np.array_equal(images, plain.images)
        full = pipe([TWO, ONE], generator=seeded(), return_attention=True, **options).attention_maps
        torch.testing.assert_close(full[:, 0], maps.mean(dim=1))

    def test_a_safety_checker_without_all_its_weights_is_refused(
        self, write_base: Callable[..., Path], tmp_path: Path
    ) -> None:
        base = add_safety_checker(write_base(tmp_path / "base"))
        file = base / "safety_checker" / "model.safetensors"
        state = load_file(file)
        del state["concept_embeds"]
        save_file(state, file, {"format": "pt"})
        with pytest.raises(
            ValueError, match=r"StableDiffusionSafetyChecker .* lacks 1 weights: concept_embeds$"
        ):
            FastComposer.from_pretrained(base).to_pipeline()

    def test_safety_checker_runs_where_the_base_has_one(
        self, write_base: Callable[..., Path], tmp_path: Path
    ) -> None:
        base = add_safety_checker(write_base(tmp_path / "base"))
        model = FastComposer.from_pretrained(base)
        pipe = model.to_pipeline()
        output = pipe(ONE, references=[reference(0)], output_type="np", **SIZE)
        assert output.nsfw_content_detected == [True] and not output.images.any()
        pipe.save_pretrained(tmp_path / "saved")
        again = FastComposerPipeline.from_pretrained(tmp_path / "saved")
        assert again.safety_checker is not None and again.config.requires_safety_checker
        assert model.to_pipeline(safety_checker=False).safety_checker is None
        model.set_trainable(backbone=False)
        save_trained_weights(model, tmp_path / "trained.safetensors")
        for checkpoint in (tmp_path / "saved", tmp_path / "trained.safetensors"):
            for wanted in (False, True):
                loaded = load_trained(str(base), checkpoint=str(checkpoint), safety_checker=wanted)
                assert (loaded.safety_checker is not None) is wanted


class TestCallbacks:
    @pytest.mark.parametrize("scheduler", ["ddim", "heun", "pndm"])
    def test_callbacks_of_before_are_called_as_by_stable_diffusion(
        self, pipe: FastComposerPipeline, scheduler: str
    ) -> None:
        pipe.scheduler = made(scheduler)
        seen: list[list[Any]] = [[], []]
        for pipeline, calls in zip((pipe, stable_diffusion(pipe)), seen, strict=True):
            alone = {"alpha": 0} if pipeline is pipe else {}

            def callback(step: int, timestep: Any, latents: Any, calls: list[Any] = calls) -> None:
                calls.append((step, int(timestep), latents.sum().item()))

            given = {"callback": callback, "callback_steps": 2, "generator": seeded(), **SIZE, **alone}
            pipeline("a beach", **given)
        assert seen[0] == seen[1]
        assert seen[0]
        with pytest.raises(ValueError, match="callback_steps"):
            pipe("a beach", alpha=0, callback=print, callback_steps=-1, **SIZE)

    def test_callback_sees_and_changes_tensors(self, pipe: FastComposerPipeline) -> None:
        seen: list[tuple[int, int]] = []

        def callback(pipeline: Any, step: int, timestep: int, tensors: dict[str, Any]) -> dict[str, Any]:
            assert set(tensors) == {"latents", "prompt_embeds", "subject_prompt_embeds"}
            seen.append((step, len(tensors["prompt_embeds"])))
            return {"latents": tensors["latents"] * 0}

        output = pipe(
            ONE,
            references=[reference(0)],
            callback_on_step_end=callback,
            callback_on_step_end_tensor_inputs=["latents", "prompt_embeds", "subject_prompt_embeds"],
            output_type="latent",
            **SIZE,
        )
        assert seen == [(0, 2), (1, 2), (2, 2), (3, 2)]
        assert not output.images.any()

    @pytest.mark.parametrize(("before", "after"), [(5.0, 0.0), (1.0, 5.0)])
    def test_a_callback_that_turns_guidance_on_or_off_may_bring_its_own_prompt(
        self, before: float, after: float, pipe: FastComposerPipeline
    ) -> None:
        other, negative = pipe.encode_prompt("a woman smiling", torch.device("cpu"), 1, True)

        def callback(pipeline: Any, step: int, timestep: int, tensors: dict[str, Any]) -> dict[str, Any]:
            if step != 1:
                return tensors
            pipeline._guidance_scale = after
            return {"prompt_embeds": torch.cat([negative, other]) if after > 1 else other}

        ours, theirs = (
            each(
                "a man",
                guidance_scale=before,
                generator=seeded(),
                callback_on_step_end=callback,
                callback_on_step_end_tensor_inputs=["prompt_embeds"],
                output_type="latent",
                **SIZE,
            ).images
            for each in (pipe, stable_diffusion(pipe))
        )
        assert torch.equal(ours, theirs)

    def test_a_callback_may_ask_for_nothing_and_interrupt_the_loop(self, pipe: FastComposerPipeline) -> None:
        seen: list[dict[str, Any]] = []

        def callback(pipeline: Any, step: int, timestep: int, tensors: dict[str, Any]) -> dict[str, Any]:
            seen.append(tensors)
            pipeline._interrupt = step == 1
            return tensors

        options = {"callback_on_step_end": callback, "callback_on_step_end_tensor_inputs": []}
        pipe("a man", output_type="latent", **options, **SIZE)
        assert seen == [{}] * 2
