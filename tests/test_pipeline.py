from __future__ import annotations

import inspect
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    HeunDiscreteScheduler,
    PNDMScheduler,
    StableDiffusionPipeline,
)
from PIL import Image

from fastcomposer import FastComposer, FastComposerPipeline, PromptError, SubjectFusion
from fastcomposer.evaluation.pipelines import load_trained
from fastcomposer.models.trained import save_trained_weights
from fastcomposer.pipeline import FastComposerPipelineOutput
from fastcomposer.prompt import strip_markers
from fastcomposer.sampling import DelayedConditioning, Schedule

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.conftest import Golden

BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
SCHEDULERS: dict[str, Any] = {
    "ddim": lambda: DDIMScheduler(**BETAS, clip_sample=False, set_alpha_to_one=False, steps_offset=1),
    "euler": lambda: EulerDiscreteScheduler(**BETAS, steps_offset=1),
    "ancestral": lambda: EulerAncestralDiscreteScheduler(**BETAS, steps_offset=1),
    "pndm": lambda: PNDMScheduler(**BETAS, skip_prk_steps=True, steps_offset=1),
    "dpm": lambda: DPMSolverMultistepScheduler(**BETAS, steps_offset=1),
    "heun": lambda: HeunDiscreteScheduler(**BETAS, steps_offset=1),
}
ONE = "a photo of a man <|image|> on the beach"
TWO = "a man <|image|> and a woman <|image|>, smiling"
SIZE: dict[str, Any] = {"height": 32, "width": 32, "num_inference_steps": 4}


def reference(seed: int) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (40, 30, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def shared(tiny_base: Path, published_checkpoint: Path) -> FastComposerPipeline:
    return FastComposer.from_published_checkpoint(published_checkpoint, base=tiny_base).to_pipeline()


@pytest.fixture
def pipe(shared: FastComposerPipeline) -> FastComposerPipeline:
    """A pipeline of its own scheduler, so that tests may change it."""
    fresh = FastComposerPipeline(**{**shared.components, "scheduler": SCHEDULERS["ddim"]()})
    fresh.set_progress_bar_config(disable=True)
    return fresh


def stable_diffusion(pipe: FastComposerPipeline) -> StableDiffusionPipeline:
    parts = {name: part for name, part in pipe.components.items() if name != "fusion"}
    stock = StableDiffusionPipeline(**parts, requires_safety_checker=False)
    stock.set_progress_bar_config(disable=True)
    return stock


class TestReferenceNumbers:
    @pytest.mark.parametrize("scheduler", ["ddim", "euler"])
    @pytest.mark.parametrize(("start", "alpha"), [(3, 0.6), (-1, 1.0), (10, 0.0)])
    def test_final_latents(
        self, scheduler: str, start: int, alpha: float, pipe: FastComposerPipeline, golden: Golden
    ) -> None:
        pipe.scheduler = SCHEDULERS[scheduler]()
        tensors = golden.tensors
        latents = pipe(
            prompt_embeds=tensors["sample.text_embeds"],
            negative_prompt_embeds=tensors["sample.null_embeds"],
            subject_prompt_embeds=tensors["sample.subject_embeds"],
            latents=tensors["sample.initial_latents"],
            alpha=alpha,
            height=64,
            width=64,
            num_inference_steps=10,
            guidance_scale=5.0,
            output_type="latent",
        ).images
        expected = tensors[f"sample.{scheduler}.10steps.start{start}"]
        assert (latents - expected).abs().max() / expected.abs().max() < 1e-5


class TestDelayedConditioning:
    @pytest.mark.parametrize(
        ("alpha", "steps", "calls", "order", "first"),
        [
            (0.6, 10, 10, 1, 4),
            (0.6, 50, 50, 1, 20),
            (0.7, 10, 10, 1, 3),
            (1.0, 10, 10, 1, 0),
            (0.0, 10, 10, 1, 10),
            (0.01, 10, 10, 1, 10),
            (0.99, 10, 10, 1, 0),
            (0.6, 10, 11, 1, 5),  # the first step runs twice
            (0.0, 10, 11, 1, 11),
            (1.0, 10, 11, 1, 0),
            (0.6, 10, 19, 2, 8),  # two calls a step, one for the last
            (0.0, 10, 19, 2, 19),
            (0.6, 19, 19, 2, 8),  # given timesteps count calls
        ],
    )
    def test_first_steps_are_text_only(
        self, alpha: float, steps: int, calls: int, order: int, first: int
    ) -> None:
        assert Schedule(torch.zeros(calls), steps, order).first_subject_call(alpha) == first

    def test_embeddings_of_each_call(self) -> None:
        text, subject, negative = (torch.full((2, 1, 1), float(value)) for value in (1, 2, 3))
        conditioning = DelayedConditioning(text, subject, negative, 2)
        assert torch.equal(conditioning.at(1, guided=False), text)
        assert torch.equal(conditioning.at(2, guided=True), torch.cat([negative, subject]))
        assert conditioning.repeated(3).at(0, guided=False).shape == (6, 1, 1)
        assert not DelayedConditioning(text, None, negative, 0).sees_subjects(5)

    @pytest.mark.parametrize("scheduler", list(SCHEDULERS))
    def test_alpha_zero_is_stable_diffusion_bit_for_bit(
        self, scheduler: str, pipe: FastComposerPipeline
    ) -> None:
        pipe.scheduler = SCHEDULERS[scheduler]()
        options = {**SIZE, "guidance_scale": 5.0, "output_type": "np"}
        ours = pipe(TWO, references=[reference(0), reference(1)], alpha=0, generator=seeded(), **options)
        plain = stable_diffusion(pipe)
        plain.scheduler = SCHEDULERS[scheduler]()
        theirs = plain(strip_markers(TWO), generator=seeded(), **options)
        assert np.array_equal(ours.images, theirs.images)

    @pytest.mark.parametrize(
        "options",
        [
            {
                "prompt": ["a man", "a woman on the beach"],
                "num_images_per_prompt": 2,
                "negative_prompt": ["a", "b"],
            },
            {"prompt": "a man", "negative_prompt": "a beach", "guidance_rescale": 0.7, "eta": 0.5},
            {"prompt": "a man", "guidance_scale": 1.0},
            {"prompt": "a photo " * 60, "timesteps": None, "output_type": "pt"},
        ],
    )
    def test_code_for_stable_diffusion_runs_unchanged(
        self, options: dict[str, Any], pipe: FastComposerPipeline
    ) -> None:
        options = {**SIZE, "output_type": "np", **options}
        ours = pipe(generator=seeded(), **options).images
        theirs = stable_diffusion(pipe)(generator=seeded(), **options).images
        assert np.array_equal(np.asarray(ours), np.asarray(theirs))

    def test_signature_begins_with_that_of_stable_diffusion(self) -> None:
        theirs = [*inspect.signature(StableDiffusionPipeline.__call__).parameters][:-1]  # **kwargs
        ours = [*inspect.signature(FastComposerPipeline.__call__).parameters]
        assert ours[: len(theirs)] == theirs
        more = ["references", "alpha", "subject_prompt_embeds", "return_attention", "guidance_interval"]
        assert ours[len(theirs) :] == more
        parameters = inspect.signature(FastComposerPipeline.__call__).parameters
        for name, parameter in inspect.signature(StableDiffusionPipeline.__call__).parameters.items():
            if name not in ("kwargs", "callback_on_step_end_tensor_inputs"):
                assert parameters[name].default == parameter.default

    @pytest.mark.parametrize("scheduler", list(SCHEDULERS))
    def test_subjects_and_alpha_change_the_picture(self, scheduler: str, pipe: FastComposerPipeline) -> None:
        pipe.scheduler = SCHEDULERS[scheduler]()
        images = {
            (alpha, seed): pipe(
                ONE,
                references=[reference(seed)],
                alpha=alpha,
                generator=seeded(),
                output_type="latent",
                **SIZE,
            ).images
            for alpha in (0.0, 0.5, 1.0)
            for seed in (0, 1)
        }
        assert torch.equal(images[0.0, 0], images[0.0, 1])
        assert not torch.equal(images[0.5, 0], images[0.5, 1])
        assert not torch.equal(images[0.5, 0], images[1.0, 0])

    def test_every_embedding_is_computed_once(self, pipe: FastComposerPipeline) -> None:
        calls: list[str] = []
        hooks = [
            getattr(pipe, name).register_forward_hook(lambda *_, name=name: calls.append(name))
            for name in ("text_encoder", "image_encoder", "fusion", "unet")
        ]
        pipe(TWO, references=[reference(0), reference(1)], generator=seeded(), output_type="latent", **SIZE)
        for hook in hooks:
            hook.remove()
        # The prompt, the empty prompt, both references at once, and then the steps.
        assert calls == ["text_encoder", "text_encoder", "image_encoder", "fusion", *["unet"] * 4]


class TestBatches:
    def test_batched_prompts_equal_one_by_one(self, pipe: FastComposerPipeline) -> None:
        prompts = [TWO, ONE, "a beach"]
        references = [[reference(0), reference(1)], [reference(2)], []]
        options = {**SIZE, "output_type": "np", "guidance_scale": 5.0}
        together = pipe(
            prompts, references=references, generator=[seeded(i) for i in range(3)], **options
        ).images
        assert together.shape == (3, 32, 32, 3)
        for index, (prompt, row) in enumerate(zip(prompts, references, strict=True)):
            alone = pipe(prompt, references=row, generator=seeded(index), **options).images
            assert np.abs(together[index] - alone[0]).max() < 1e-4

    def test_several_references_of_a_subject(self, pipe: FastComposerPipeline) -> None:
        a, b, c = map(reference, range(3))

        def embeds(prompt: Any, references: Any) -> torch.Tensor:
            return pipe.encode_prompt(prompt, torch.device("cpu"), 1, False, references=references)[0]

        both = embeds(TWO, [[a, b], c])
        assert torch.equal(both, embeds(TWO, [[a, b], [c]]))
        assert torch.equal(embeds(TWO, [[a], [c]]), embeds(TWO, [a, c]))
        assert torch.allclose(embeds(TWO, [[a, a, a], c]), embeds(TWO, [a, c]), atol=1e-5)
        first, second = (both != embeds(TWO, None))[0].any(-1).nonzero().flatten().tolist()
        # The second subject is the same, the first between those of each picture alone.
        assert torch.allclose(both[0, second], embeds(TWO, [a, c])[0, second], atol=1e-5)
        assert not torch.allclose(both[0, first], embeds(TWO, [a, c])[0, first], atol=1e-4)
        assert not torch.allclose(both[0, first], embeds(TWO, [b, c])[0, first], atol=1e-4)
        # The same for a list of prompts, one level deeper.
        rows = embeds([TWO, ONE], [[[a, b], c], [b]])
        assert torch.allclose(rows[0], both[0], atol=1e-5)
        assert torch.allclose(rows[1], embeds(ONE, b)[0], atol=1e-5)
        images = pipe(TWO, references=[[a, b], [c]], generator=seeded(), output_type="np", **SIZE).images
        again = pipe(TWO, references=[[a, b], c], generator=seeded(), output_type="np", **SIZE).images
        assert np.array_equal(images, again)

    def test_nesting_that_does_not_fit_is_refused_before_anything_runs(
        self, pipe: FastComposerPipeline
    ) -> None:
        a, b = reference(0), reference(1)
        with pytest.raises(PromptError, match=r"1 reference image\(s\) for 2 marker.*a list of their own"):
            pipe(TWO, references=[[a, b]], **SIZE)
        with pytest.raises(PromptError, match=r"references\[0\] holds lists of lists"):
            pipe(TWO, references=[[[a, b]], [[a]]], **SIZE)
        with pytest.raises(PromptError, match=r"references for 1 prompt\(s\), but 2 prompt"):
            pipe([TWO, ONE], references=[[a, b]], **SIZE)

    def test_images_per_prompt(self, pipe: FastComposerPipeline) -> None:
        options = {**SIZE, "output_type": "np"}
        prompts, references = [ONE, TWO], [[reference(0)], [reference(1), reference(2)]]
        generators = [seeded(i) for i in range(4)]
        images = pipe(
            prompts, references=references, num_images_per_prompt=2, generator=generators, **options
        ).images
        for index in range(4):
            alone = pipe(
                prompts[index // 2], references=references[index // 2], generator=seeded(index), **options
            ).images
            assert np.abs(images[index] - alone[0]).max() < 1e-4

    def test_embeddings_stand_in_for_prompt_and_references(self, pipe: FastComposerPipeline) -> None:
        images, device = [reference(0), reference(1)], torch.device("cpu")
        text, negative = pipe.encode_prompt(TWO, device, 1, True)
        subject, _ = pipe.encode_prompt(TWO, device, 1, False, references=images)
        assert not torch.equal(text, subject)
        expected = pipe(TWO, references=images, generator=seeded(), output_type="np", **SIZE).images
        embeds = {"negative_prompt_embeds": negative, "subject_prompt_embeds": subject}
        for prompt in ({"prompt_embeds": text}, {"prompt": TWO}):
            again = pipe(**prompt, **embeds, generator=seeded(), output_type="np", **SIZE).images
            assert np.array_equal(again, expected)

    def test_encode_prompt_is_that_of_stable_diffusion(self, pipe: FastComposerPipeline) -> None:
        device = torch.device("cpu")
        ours = pipe.encode_prompt([ONE, TWO], device, 2, True, ["a", "b"])
        theirs = stable_diffusion(pipe).encode_prompt(
            [*map(strip_markers, (ONE, TWO))], device, 2, True, ["a", "b"]
        )
        for embeds, expected in zip(ours, theirs, strict=True):
            assert embeds is not None and torch.equal(embeds, expected)

    def test_clip_skip_takes_an_earlier_layer(self, pipe: FastComposerPipeline) -> None:
        device = torch.device("cpu")
        tokens = pipe.tokenizer("a man", padding="max_length", max_length=77, return_tensors="pt").input_ids
        states = pipe.text_encoder(tokens, output_hidden_states=True).hidden_states
        expected = pipe.text_encoder.final_layer_norm(states[-2])
        skipped, _ = pipe.encode_prompt("a man", device, 1, False, clip_skip=1)
        assert torch.equal(skipped, expected)
        image = pipe(
            ONE, references=[reference(0)], clip_skip=1, generator=seeded(), output_type="np", **SIZE
        )
        other = pipe(ONE, references=[reference(0)], generator=seeded(), output_type="np", **SIZE)
        assert not np.array_equal(image.images, other.images)


class TestSaving:
    def test_round_trip_gives_the_same_images(self, pipe: FastComposerPipeline, tmp_path: Path) -> None:
        options = {**SIZE, "references": [reference(0)], "output_type": "np"}
        expected = pipe(ONE, generator=seeded(), **options).images
        pipe.save_pretrained(tmp_path)
        again = FastComposerPipeline.from_pretrained(tmp_path)
        again.set_progress_bar_config(disable=True)
        assert np.array_equal(again(ONE, generator=seeded(), **options).images, expected)
        index = json.loads((tmp_path / "model_index.json").read_text())
        assert index["_class_name"] == "FastComposerPipeline"
        assert index["fusion"] == ["fastcomposer.models.fusion", "SubjectFusion"]
        assert index["image_encoder"] == ["transformers", "CLIPVisionModelWithProjection"]

    def test_saved_folder_is_a_stable_diffusion_model_too(
        self, pipe: FastComposerPipeline, tmp_path: Path
    ) -> None:
        pipe.save_pretrained(tmp_path)
        plain = StableDiffusionPipeline.from_pretrained(tmp_path)
        plain.set_progress_bar_config(disable=True)
        expected = pipe(ONE, alpha=0, generator=seeded(), output_type="np", **SIZE).images
        theirs = plain(strip_markers(ONE), generator=seeded(), output_type="np", **SIZE).images
        assert np.array_equal(theirs, expected)

    def test_a_fresh_process_loads_it_without_network(
        self, pipe: FastComposerPipeline, tmp_path: Path
    ) -> None:
        import subprocess
        import sys

        pipe.save_pretrained(tmp_path)
        code = (
            "from fastcomposer import FastComposerPipeline;"
            f"print(type(FastComposerPipeline.from_pretrained({str(tmp_path)!r}).fusion).__name__)"
        )
        result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert result.stdout.strip() == "SubjectFusion"

    def test_from_pipe_goes_both_ways(self, pipe: FastComposerPipeline) -> None:
        plain = StableDiffusionPipeline.from_pipe(pipe)
        assert plain.unet is pipe.unet
        again = FastComposerPipeline.from_pipe(plain, fusion=pipe.fusion)
        assert again.unet is pipe.unet and again.image_encoder is pipe.image_encoder
        again = FastComposerPipeline.from_pipe(pipe)
        assert again.components.keys() == pipe.components.keys() and again.fusion is pipe.fusion
        with pytest.raises(ValueError, match="fusion"):
            FastComposerPipeline.from_pipe(plain)

    def test_missing_tokenizer_survives_saving(self, pipe: FastComposerPipeline, tmp_path: Path) -> None:
        pipe.tokenizer = None
        pipe.save_pretrained(tmp_path)
        again = FastComposerPipeline.from_pretrained(tmp_path)
        assert again.tokenizer is None
        with pytest.raises(ValueError, match="no tokenizer"):
            again(ONE, references=[reference(0)], **SIZE)
        with pytest.raises(ValueError, match="no tokenizer: give prompt_embeds, and negative_prompt_embeds"):
            again(prompt_embeds=torch.zeros(1, 77, 32), **SIZE)
        latents = again(
            prompt_embeds=torch.zeros(1, 77, 32), guidance_scale=1.0, output_type="latent", **SIZE
        )
        assert latents.images.shape == (1, 4, 16, 16)

    def test_dtype_moves(self, shared: FastComposerPipeline, tmp_path: Path) -> None:
        shared.save_pretrained(tmp_path)
        pipe = FastComposerPipeline.from_pretrained(tmp_path, dtype=torch.bfloat16)
        assert pipe.fusion.dtype == pipe.unet.dtype == torch.bfloat16
        output = pipe(TWO, references=[reference(0), reference(1)], output_type="latent", **SIZE)
        assert output.images.dtype == torch.bfloat16


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
        whole = pipe([TWO, ONE], generator=seeded(), return_attention=True, **options).attention_maps
        torch.testing.assert_close(whole[:, 0], maps.mean(dim=1))

    def test_attention_of_several_images_per_prompt(self, pipe: FastComposerPipeline) -> None:
        output = pipe(
            TWO,
            references=[reference(0), reference(1)],
            num_images_per_prompt=2,
            guidance_scale=1.0,
            return_attention=1,
            output_type="latent",
            **SIZE,
        )
        assert output.attention_maps.shape == (2, 1, 2, 16, 16)

    def test_safety_checker_runs_where_the_base_has_one(
        self, write_base: Callable[..., Path], tmp_path: Path
    ) -> None:
        from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
        from transformers import CLIPConfig, CLIPImageProcessor

        base = write_base(tmp_path / "base")
        tiny = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
        config = CLIPConfig(
            vision_config={**tiny, "image_size": 28, "patch_size": 14}, text_config=tiny, projection_dim=8
        )
        checker = StableDiffusionSafetyChecker(config)
        checker.concept_embeds_weights.fill_(-1.0)  # objects to everything
        checker.save_pretrained(base / "safety_checker")
        CLIPImageProcessor(size=28, crop_size=28).save_pretrained(base / "feature_extractor")
        index = json.loads((base / "model_index.json").read_text())
        index["safety_checker"] = ["stable_diffusion", "StableDiffusionSafetyChecker"]
        index["feature_extractor"] = ["transformers", "CLIPImageProcessor"]
        (base / "model_index.json").write_text(json.dumps(index))
        model = FastComposer.from_pretrained(base)
        pipe = model.to_pipeline()
        output = pipe(ONE, references=[reference(0)], output_type="np", **SIZE)
        assert output.nsfw_content_detected == [True] and not output.images.any()
        pipe.save_pretrained(tmp_path / "saved")
        again = FastComposerPipeline.from_pretrained(tmp_path / "saved")
        assert again.safety_checker is not None and again.config.requires_safety_checker
        assert model.to_pipeline(safety_checker=False).safety_checker is None
        model.set_trainable(unet=False)
        save_trained_weights(model, tmp_path / "trained.safetensors")
        for checkpoint in (tmp_path / "saved", tmp_path / "trained.safetensors"):
            for wanted in (False, True):
                loaded = load_trained(str(base), checkpoint=str(checkpoint), safety_checker=wanted)
                assert (loaded.safety_checker is not None) is wanted


class TestCallbacks:
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

    def test_guidance_may_end_before_the_subjects_come(self, pipe: FastComposerPipeline) -> None:
        rows: list[int] = []

        def callback(pipeline: Any, step: int, timestep: int, tensors: dict[str, Any]) -> dict[str, Any]:
            rows.append(len(tensors["prompt_embeds"]))
            if step == 0:  # the documented way to switch guidance off
                pipeline._guidance_scale = 0.0
                return {"prompt_embeds": tensors["prompt_embeds"].chunk(2)[-1]}
            return {}

        pipe(
            ONE,
            references=[reference(0)],
            alpha=0.5,
            callback_on_step_end=callback,
            callback_on_step_end_tensor_inputs=["prompt_embeds"],
            output_type="latent",
            **SIZE,
        )
        assert rows == [2, 1, 1, 1]

    def test_interrupt_ends_the_loop(self, pipe: FastComposerPipeline) -> None:
        steps: list[int] = []

        def callback(pipeline: Any, step: int, timestep: int, tensors: dict[str, Any]) -> dict[str, Any]:
            steps.append(step)
            pipeline._interrupt = step == 1
            return tensors

        pipe(ONE, references=[reference(0)], callback_on_step_end=callback, output_type="latent", **SIZE)
        assert steps == [0, 1]


class TestErrors:
    @pytest.mark.parametrize(
        ("options", "error", "message"),
        [
            ({"references": [reference(0)] * 2}, PromptError, r"2 reference image\(s\) for 1 marker"),
            ({"references": []}, PromptError, r"0 reference image\(s\) for 1 marker"),
            ({}, PromptError, r"0 reference image\(s\) for 1 marker"),
            ({"references": [reference(0)], "prompt": [ONE, ONE]}, PromptError, r"references for 1 prompt"),
            ({"references": [reference(0)], "prompt": "<|image|> on"}, PromptError, "no word before it"),
            (
                {"references": [reference(0)], "alpha": 1.2},
                ValueError,
                r"alpha must lie in \[0, 1\], not 1.2",
            ),
            ({"references": [reference(0)], "alpha": float("nan")}, ValueError, "alpha must lie in"),
            ({"references": [reference(0)], "height": 36}, ValueError, "divisible by 8"),
            ({"references": [reference(0)], "width": 33}, ValueError, "multiples of 2, not 32 and 33"),
            ({"references": ["absent.png"]}, FileNotFoundError, "absent.png does not exist"),
            ({"references": [reference(0)], "return_attention": -1}, ValueError, "number of groups of steps"),
            (
                {"references": [reference(0)], "subject_prompt_embeds": torch.zeros(1, 77, 32)},
                ValueError,
                "references or subject_prompt_embeds, not both",
            ),
            (
                {"subject_prompt_embeds": torch.zeros(2, 77, 32)},
                ValueError,
                r"subject_prompt_embeds are \(2, 77, 32\), the prompt's embeddings \(1, 77, 32\)",
            ),
            (
                {"prompt": None, "prompt_embeds": torch.zeros(1, 77, 32), "references": [reference(0)]},
                ValueError,
                "references need a prompt with markers",
            ),
            (
                {"prompt": None, "prompt_embeds": torch.zeros(1, 77, 32), "return_attention": 1},
                ValueError,
                "return_attention needs a prompt with markers",
            ),
        ],
    )
    def test_bad_calls(
        self, options: dict[str, Any], error: type[Exception], message: str, pipe: FastComposerPipeline
    ) -> None:
        with pytest.raises(error, match=message):
            pipe(**{"prompt": ONE, **SIZE, **options})

    def test_references_may_be_left_out_where_they_would_not_be_seen(
        self, pipe: FastComposerPipeline
    ) -> None:
        assert pipe(ONE, alpha=0, output_type="latent", **SIZE).images.shape == (1, 4, 16, 16)

    def test_unknown_argument(self, pipe: FastComposerPipeline) -> None:
        with pytest.raises(TypeError, match="reference"):
            pipe(ONE, reference=[reference(0)])

    def test_widths_must_match(self, pipe: FastComposerPipeline) -> None:
        with pytest.raises(ValueError, match=r"the fusion is 48 wide, but the text encoder .* is 32 wide"):
            FastComposerPipeline(**{**pipe.components, "fusion": SubjectFusion(48)})

    def test_a_base_model_alone_is_no_pipeline(self, tiny_base: Path) -> None:
        with pytest.raises(ValueError, match="fusion"):
            FastComposerPipeline.from_pretrained(tiny_base)
