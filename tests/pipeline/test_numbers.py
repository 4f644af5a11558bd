"""The pipeline against the published numbers and against Stable Diffusion."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from diffusers import PNDMScheduler, StableDiffusionPipeline
from tiny_pipeline import SCHEDULERS, SIZE, TWO, reference, seeded, stable_diffusion
from tiny_pipeline import scheduler as made

from fastcomposer import FastComposerPipeline
from fastcomposer.pipeline.sampling import Schedule
from fastcomposer.prompt import strip_markers

if TYPE_CHECKING:
    from tests.conftest import Golden


class TestReferenceNumbers:
    @pytest.mark.parametrize("scheduler", ["ddim", "euler"])
    @pytest.mark.parametrize(("start", "alpha"), [(3, 0.6), (-1, 1.0), (10, 0.0)])
    def test_final_latents(
        self, scheduler: str, start: int, alpha: float, pipe: FastComposerPipeline, golden: Golden
    ) -> None:
        pipe.scheduler = made(scheduler)
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
            (0.5, 5, 5, 1, 2),  # a half goes to the even number
            (0.5, 3, 3, 1, 2),
            (0.5, 1, 1, 1, 0),
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

    @pytest.mark.parametrize(
        ("alpha", "first"), [(1.0, 0), (0.8, 4), (0.6, 8), (0.4, 12), (0.2, 13), (0.0, 14)]
    )
    def test_runge_kutta_steps_are_counted_in_full(
        self, alpha: float, first: int, pipe: FastComposerPipeline
    ) -> None:
        """Of five steps the first three take four calls each."""
        pipe.scheduler = PNDMScheduler.from_config(pipe.scheduler.config, skip_prk_steps=False)
        schedule = pipe._schedule(5, None, None)
        assert schedule.num_calls == 14 and schedule.first_subject_call(alpha) == first

    @pytest.mark.parametrize("scheduler", SCHEDULERS)
    def test_alpha_zero_is_stable_diffusion_bit_for_bit(
        self, scheduler: str, pipe: FastComposerPipeline
    ) -> None:
        pipe.scheduler = made(scheduler)
        options = {**SIZE, "guidance_scale": 5.0, "output_type": "np"}
        ours = pipe(TWO, references=[reference(0), reference(1)], alpha=0, generator=seeded(), **options)
        plain = stable_diffusion(pipe)
        plain.scheduler = made(scheduler)
        theirs = plain(strip_markers(TWO), generator=seeded(), **options)
        assert np.array_equal(ours.images, theirs.images)

    @pytest.mark.parametrize(
        "options",
        [
            {"prompt": ["a man", "a beach"], "num_images_per_prompt": 2, "negative_prompt": ["a", "b"]},
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
        assert ours[len(theirs) :] == [*more, "kwargs"]
        parameters = inspect.signature(FastComposerPipeline.__call__).parameters
        for name, parameter in inspect.signature(StableDiffusionPipeline.__call__).parameters.items():
            if name not in ("kwargs", "callback_on_step_end_tensor_inputs"):
                assert parameters[name].default == parameter.default

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
