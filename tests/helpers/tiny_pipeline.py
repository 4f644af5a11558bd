"""Schedulers, prompts and images of the pipeline's tests."""

from __future__ import annotations

from typing import Any

import diffusers
import numpy as np
import torch
from PIL import Image

from fastcomposer import FastComposerPipeline

BETAS: dict[str, Any] = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
ALL_SCHEDULERS: dict[str, tuple[str, dict[str, Any]]] = {
    "ddim": ("DDIMScheduler", {"clip_sample": False, "set_alpha_to_one": False, "steps_offset": 1}),
    "euler": ("EulerDiscreteScheduler", {"steps_offset": 1}),
    "ancestral": ("EulerAncestralDiscreteScheduler", {"steps_offset": 1}),
    "pndm": ("PNDMScheduler", {"skip_prk_steps": True, "steps_offset": 1}),
    "dpm": ("DPMSolverMultistepScheduler", {"steps_offset": 1}),
    "heun": ("HeunDiscreteScheduler", {"steps_offset": 1}),
    "runge_kutta": ("PNDMScheduler", {"skip_prk_steps": False, "steps_offset": 1}),
    "sde": ("DPMSolverMultistepScheduler", {"steps_offset": 1, "algorithm_type": "sde-dpmsolver++"}),
    "single": ("DPMSolverSinglestepScheduler", {}),
    "unipc": ("UniPCMultistepScheduler", {"steps_offset": 1}),
    "deis": ("DEISMultistepScheduler", {"steps_offset": 1}),
    "lms": ("LMSDiscreteScheduler", {"steps_offset": 1}),
    "kdpm2": ("KDPM2DiscreteScheduler", {"steps_offset": 1}),
    "kdpm2_ancestral": ("KDPM2AncestralDiscreteScheduler", {"steps_offset": 1}),
    "ddpm": ("DDPMScheduler", {"clip_sample": False, "steps_offset": 1}),
}
SCHEDULERS = [*ALL_SCHEDULERS][:6]
"""One of every kind."""
ONE = "a photo of a man <|image|> on the beach"
TWO = "a man <|image|> and a woman <|image|>, smiling"
SIZE: dict[str, Any] = {"height": 32, "width": 32, "num_inference_steps": 4}


def scheduler(name: str) -> Any:
    cls, options = ALL_SCHEDULERS[name]
    return getattr(diffusers, cls)(**BETAS, **options)


def with_scheduler(pipe: FastComposerPipeline, name: str) -> FastComposerPipeline:
    """A pipeline of the same networks with a scheduler of its own, so that tests may change it."""
    fresh = FastComposerPipeline(**{**pipe.components, "scheduler": scheduler(name)})
    fresh.set_progress_bar_config(disable=True)
    return fresh


def reference(seed: int) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (40, 30, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def stable_diffusion(pipe: FastComposerPipeline) -> diffusers.StableDiffusionPipeline:
    parts = {name: part for name, part in pipe.components.items() if name != "fusion"}
    stock = diffusers.StableDiffusionPipeline(**parts, requires_safety_checker=False)
    stock.set_progress_bar_config(disable=True)
    return stock
