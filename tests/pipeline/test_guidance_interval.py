"""Guidance at some noise levels only."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from diffusers.schedulers.scheduling_dpmsolver_multistep import DPMSolverMultistepScheduler
from diffusers.schedulers.scheduling_euler_discrete import EulerDiscreteScheduler
from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler
from tiny_pipeline import BETAS, ONE, reference, seeded

from fastcomposer import FastComposerPipeline
from fastcomposer.pipeline.schedulers import guided_calls
from fastcomposer.pipeline.variants import Variant

OPTIONS: dict[str, Any] = {
    "height": 32,
    "width": 32,
    "num_inference_steps": 6,
    "guidance_scale": 5.0,
    "output_type": "latent",
}


def rows_of_calls(pipe: FastComposerPipeline, **options: Any) -> tuple[list[int], torch.Tensor]:
    rows: list[int] = []
    hook = pipe.unet.register_forward_pre_hook(lambda _, inputs: rows.append(len(inputs[0])))
    latents = pipe(ONE, references=[reference(0)], generator=seeded(3), **(OPTIONS | options)).images
    hook.remove()
    return rows, latents


def test_guidance_follows_noise_levels() -> None:
    scheduler = DDIMScheduler(**BETAS)
    timesteps = torch.tensor([999, 700, 400, 100, 0])
    alphas = scheduler.alphas_cumprod[timesteps]
    sigmas = [math.sqrt((1 - a) / a) for a in alphas.tolist()]
    assert sigmas[0] == pytest.approx(14.6, abs=0.1)
    low, high = sigmas[3], sigmas[1]  # above the first, up to the second
    inside = [1.0001, 0.9999]
    found = [guided_calls(timesteps, scheduler, low * factor, high * factor) for factor in inside]
    assert found == [(False, True, True, False, False), (False, False, True, True, False)]
    assert guided_calls(timesteps, scheduler, 0, math.inf) == (True,) * 5


def test_schedulers_agree_on_the_noise_level_of_a_timestep() -> None:
    made = (DDIMScheduler(**BETAS), EulerDiscreteScheduler(**BETAS), DPMSolverMultistepScheduler(**BETAS))
    timesteps = torch.tensor([951.0, 499.0, 1.0])
    assert {guided_calls(timesteps, scheduler, 0.5, 5.0) for scheduler in made} == {(False, True, False)}


def test_only_guided_calls_take_the_empty_prompt_along(pipe: FastComposerPipeline) -> None:
    pipe.scheduler.set_timesteps(6)
    guided = guided_calls(pipe.scheduler.timesteps, pipe.scheduler, 0.5, 5.0)
    assert 0 < sum(guided) < 6
    rows, _ = rows_of_calls(pipe, guidance_interval=[0.5, 5.0])
    assert rows == [2 if on else 1 for on in guided]


def test_everything_and_nothing(pipe: FastComposerPipeline) -> None:
    _, always = rows_of_calls(pipe)
    rows, everywhere = rows_of_calls(pipe, guidance_interval=(0.0, math.inf))
    assert rows == [2] * 6
    assert torch.equal(always, everywhere)
    rows, nowhere = rows_of_calls(pipe, guidance_interval=(1000.0, 2000.0))
    assert rows == [1] * 6
    assert torch.equal(nowhere, rows_of_calls(pipe, guidance_scale=1.0)[1])


def test_it_is_guidance_by_hand(pipe: FastComposerPipeline) -> None:
    """The same as switching guidance off by the callback that diffusers documents."""
    pipe.scheduler.set_timesteps(6)
    guided = guided_calls(pipe.scheduler.timesteps, pipe.scheduler, 2.0, math.inf)
    last = sum(guided) - 1
    assert 0 < last < 4

    def callback(pipeline: Any, step: int, timestep: int, tensors: dict[str, Any]) -> dict[str, Any]:
        if step != last:
            return {}
        pipeline._guidance_scale = 0.0
        return {"prompt_embeds": tensors["prompt_embeds"].chunk(2)[-1]}

    _, ours = rows_of_calls(pipe, alpha=1.0, guidance_interval=(2.0, math.inf))
    options = {"callback_on_step_end": callback, "callback_on_step_end_tensor_inputs": ["prompt_embeds"]}
    _, by_hand = rows_of_calls(pipe, alpha=1.0, **options)
    assert torch.equal(ours, by_hand)


def test_variants_take_it_too(pipe: FastComposerPipeline) -> None:
    options = {**OPTIONS, "guidance_interval": (0.5, 5.0)}
    variants = [Variant([reference(0)], alpha) for alpha in (0.5, 1.0)]
    images = pipe.sample_variants(ONE, variants, generator=seeded(3), **options).images
    for variant, image in zip(variants, images, strict=True):
        alone = pipe(
            ONE, references=[reference(0)], alpha=variant.alpha, generator=seeded(3), **options
        ).images
        assert torch.equal(image, alone)


def test_attention_is_recorded_with_and_without_guidance(pipe: FastComposerPipeline) -> None:
    options = {**OPTIONS, "guidance_interval": (0.5, 5.0), "return_attention": 1}
    maps = pipe(ONE, references=[reference(0)], generator=seeded(3), **options).attention_maps
    assert maps.shape[:3] == (1, 1, 1)
    assert 0 < maps.mean() < 0.5


@pytest.mark.parametrize("interval", [(1.0,), (2.0, 1.0), (-1.0, 1.0), (1.0, 1.0)])
def test_bad_intervals(pipe: FastComposerPipeline, interval: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match="guidance_interval is a lower and a higher noise level"):
        rows_of_calls(pipe, guidance_interval=interval)


def test_schedulers_without_noise_levels() -> None:
    with pytest.raises(ValueError, match="FlowMatchEulerDiscreteScheduler has no noise levels"):
        guided_calls(torch.tensor([1.0]), FlowMatchEulerDiscreteScheduler(), 0.0, 1.0)
