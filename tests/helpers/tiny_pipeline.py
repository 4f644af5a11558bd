"""What the pipeline's tests call it with."""

from __future__ import annotations

from typing import Any

import numpy as np
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

from fastcomposer import FastComposerPipeline

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


def stable_diffusion(pipe: FastComposerPipeline) -> StableDiffusionPipeline:
    parts = {name: part for name, part in pipe.components.items() if name != "fusion"}
    stock = StableDiffusionPipeline(**parts, requires_safety_checker=False)
    stock.set_progress_bar_config(disable=True)
    return stock
