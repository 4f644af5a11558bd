"""What only the pipeline of Stable Diffusion XL has; the rest is in tests/models/test_architectures.py."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DPMSolverMultistepScheduler, StableDiffusionXLPipeline
from diffusers.callbacks import SDXLCFGCutoffCallback
from tiny_pipeline import reference, seeded

from fastcomposer import FastComposerXLPipeline

SIZE: dict[str, Any] = {"height": 64, "width": 64, "num_inference_steps": 4, "output_type": "np"}
HALF: dict[str, Any] = {"num_inference_steps": 10, "denoising_end": 0.5, "output_type": "latent"}
MAN = "a man <|image|> on the beach"


@pytest.fixture(scope="module")
def pipe(large: FastComposerXLPipeline) -> FastComposerXLPipeline:
    return large


@pytest.fixture(scope="module")
def stock(pipe: FastComposerXLPipeline) -> StableDiffusionXLPipeline:
    parts = {name: part for name, part in pipe.components.items() if name != "fusion"}
    return StableDiffusionXLPipeline(**parts)


@pytest.mark.parametrize(
    "options",
    [
        {"original_size": (40, 80), "crops_coords_top_left": (3, 5), "target_size": (64, 32)},
        {"negative_original_size": (8, 8), "negative_target_size": (9, 9), "negative_prompt": ""},
        {"prompt_2": "a woman", "negative_prompt": "red", "negative_prompt_2": "blue", "clip_skip": 1},
        HALF,
        {**HALF, "callback_on_step_end": SDXLCFGCutoffCallback(0.5)},
        {"width": None, "height": 32},
        {"width": 32, "height": None},
    ],
)
def test_code_for_stable_diffusion_xl_runs_unchanged(
    options: dict[str, Any], pipe: FastComposerXLPipeline, stock: StableDiffusionXLPipeline
) -> None:
    given = {**SIZE, **options}
    ours = pipe("a man", generator=seeded(), **given).images
    theirs = stock("a man", generator=seeded(), **given).images
    assert np.array_equal(np.asarray(ours), np.asarray(theirs))


def test_schedules_with_a_timestep_twice_begin_at_the_first(
    pipe: FastComposerXLPipeline, stock: StableDiffusionXLPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = []
    for each in (pipe, stock):
        # The levels of noise at the beginning are so near to each other that their timesteps are the same.
        scheduler = DPMSolverMultistepScheduler.from_config(pipe.scheduler.config, use_beta_sigmas=True)
        monkeypatch.setattr(each, "scheduler", scheduler)
        options = {**SIZE, "num_inference_steps": 60, "output_type": "latent"}
        images.append(each("a man", generator=seeded(), **options).images)
        assert scheduler.timesteps[0] == scheduler.timesteps[1]
    assert torch.equal(*images)


def test_signature_begins_with_that_of_stable_diffusion_xl() -> None:
    theirs = inspect.signature(StableDiffusionXLPipeline.__call__).parameters
    ours = inspect.signature(FastComposerXLPipeline.__call__).parameters
    names = [*theirs][:-1]  # **kwargs
    assert [*ours][: len(names)] == names
    more = ["references", "alpha", "subject_prompt_embeds", "return_attention", "guidance_interval", "kwargs"]
    assert [*ours][len(names) :] == more
    differing = [name for name in names if ours[name].default != theirs[name].default]
    assert differing == ["callback_on_step_end_tensor_inputs"]


def test_callbacks_are_given_what_they_ask_for(pipe: FastComposerXLPipeline) -> None:
    shapes = []

    def callback(pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        shapes.append({name: tuple(value.shape) for name, value in tensors.items()})
        return {"add_time_ids": torch.zeros_like(tensors["add_time_ids"])}

    names = ["add_text_embeds", "add_time_ids", "subject_prompt_embeds"]
    given = {**SIZE, "references": [reference(0)], "output_type": "latent"}
    changed = pipe(
        MAN,
        generator=seeded(),
        callback_on_step_end=callback,
        callback_on_step_end_tensor_inputs=names,
        **given,
    ).images
    assert shapes[0] == dict(zip(names, [(2, 40), (2, 6), (1, 77, 80)], strict=True))
    assert not torch.equal(changed, pipe(MAN, generator=seeded(), **given).images)


def test_references_go_with_one_prompt(pipe: FastComposerXLPipeline) -> None:
    with pytest.raises(ValueError, match="prompt_2: with references, both encoders must read"):
        pipe(MAN, prompt_2="a man", references=[reference(0)], **SIZE)


def test_tokenizers_must_share_a_vocabulary(pipe: FastComposerXLPipeline) -> None:
    other = type(pipe.tokenizer)(vocab={"a</w>": 0, "<|startoftext|>": 1, "<|endoftext|>": 2}, merges=[])
    with pytest.raises(ValueError, match="tokenizer and tokenizer_2 have different vocabularies"):
        FastComposerXLPipeline(**{**pipe.components, "tokenizer_2": other})


def test_a_half_precision_copy_samples(pipe: FastComposerXLPipeline, tmp_path: Path) -> None:
    pipe.save_pretrained(tmp_path)
    half = FastComposerXLPipeline.from_pretrained(tmp_path, torch_dtype=torch.bfloat16)
    assert half.fusion.dtype == torch.bfloat16
    images = half(MAN, references=[reference(0)], alpha=1.0, generator=seeded(), **SIZE).images
    assert np.isfinite(images).all()
