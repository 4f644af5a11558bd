"""Fixtures of the page: the mini checkpoint, and two people of the mini world."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fastcomposer.cli.common import CONFIG_FOLDER
from fastcomposer.demo.examples import Example, held_out_examples
from fastcomposer.demo.studio import Order, Studio
from fastcomposer.demo.uploads import PageLimits, read_reference

MINI = CONFIG_FOLDER.parent / "data" / "mini"
SAMPLER = {"alpha": 0.8, "num_inference_steps": 30, "guidance_scale": 3.0}
SETTINGS: dict[str, Any] = {
    "model": {"base": str(MINI)},
    "checkpoint": str(MINI / "fastcomposer.safetensors"),
    "sampler": {**SAMPLER, "negative_prompt": None, "scheduler": None},
}


@pytest.fixture(scope="session")
def examples(tmp_path_factory: pytest.TempPathFactory) -> list[Example]:
    return held_out_examples(tmp_path_factory.mktemp("examples"))


@pytest.fixture(scope="session")
def studio() -> Studio:
    from fastcomposer.evaluation.pipelines import load_trained

    return Studio(load_trained(str(MINI), checkpoint=SETTINGS["checkpoint"], safety_checker=True), SETTINGS)


@pytest.fixture(scope="session")
def order(examples: list[Example]) -> Callable[..., Order]:
    """A request: two people on the beach, with the given changes."""

    def make(**changes: Any) -> Order:
        people = tuple((read_reference(file, PageLimits()),) for file in examples[0].references)
        values = {"prompt": examples[0].prompt, "references": people, "seed": 5, "steps": 4, "guidance": 3.0}
        return Order(**{**values, **changes})

    return make


@pytest.fixture(scope="session")
def checked_pipeline(small_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved pipeline with a safety checker that objects to everything."""
    import torch
    from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
    from transformers import CLIPConfig, CLIPImageProcessor

    from fastcomposer import FastComposer

    vision = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    vision |= {"image_size": 32, "patch_size": 16, "projection_dim": 4}
    checker = StableDiffusionSafetyChecker(CLIPConfig(vision_config=vision, projection_dim=4))
    for name in ("concept_embeds_weights", "special_care_embeds_weights"):
        getattr(checker, name).data = torch.full_like(getattr(checker, name), -2.0)  # below any cosine
    pipeline: Any = FastComposer.from_pretrained(str(small_base)).to_pipeline()
    pipeline.register_modules(
        safety_checker=checker,
        feature_extractor=CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=32),
    )
    pipeline.register_to_config(requires_safety_checker=True)
    folder = tmp_path_factory.mktemp("checked") / "pipeline"
    pipeline.save_pretrained(folder)
    return folder
