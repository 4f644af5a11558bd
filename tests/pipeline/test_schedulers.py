"""Samplers of few steps: diffusers' schedulers, with the references coming in as ever."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from configurations import composed
from diffusers import DPMSolverMultistepScheduler, StableDiffusionPipeline
from omegaconf import OmegaConf

from fastcomposer.composer import FastComposer
from fastcomposer.pipeline.schedulers import split_scheduler, use_scheduler
from fastcomposer.pipeline.stable_diffusion import FastComposerPipeline

SIZE = {"height": 32, "width": 32, "output_type": "np"}
CLASSES = {
    "dpm": ("DPMSolverMultistepScheduler", 20),
    "unipc": ("UniPCMultistepScheduler", 15),
    "lcm": ("LCMScheduler", 4),
}


@pytest.fixture(scope="module")
def shared(small_base: Path) -> FastComposerPipeline:
    torch.manual_seed(0)
    return FastComposer.from_pretrained(small_base).to_pipeline(safety_checker=False)


@pytest.mark.parametrize("name", list(CLASSES))
def test_few_steps_with_delayed_subjects(name: str, shared: FastComposerPipeline) -> None:
    sampler: Any = OmegaConf.to_container(composed("generate", "prompt=x", f"sampler={name}").sampler)
    pipeline = FastComposerPipeline(**shared.components)
    stock = StableDiffusionPipeline(
        **{name: part for name, part in shared.components.items() if name != "fusion"},
        requires_safety_checker=False,
    )
    scheduler, options = split_scheduler(sampler)
    for one in (pipeline, stock):
        one.set_progress_bar_config(disable=True)
        use_scheduler(one, scheduler)
    assert (type(pipeline.scheduler).__name__, options["num_inference_steps"]) == CLASSES[name]
    assert pipeline.scheduler.config.beta_start == shared.scheduler.config.beta_start
    assert pipeline.scheduler.config.prediction_type == shared.scheduler.config.prediction_type

    def sample(alpha: float, grey: float) -> Any:
        reference = torch.full((3, 32, 32), grey)
        return pipeline(
            "a man <|image|> on the beach",
            references=[reference],
            generator=torch.Generator().manual_seed(0),
            **{**options, **SIZE, "alpha": alpha},
        ).images

    del (plain := dict(options))["alpha"]
    theirs = stock("a man on the beach", generator=torch.Generator().manual_seed(0), **{**plain, **SIZE})
    assert np.array_equal(sample(0.0, 0.2), theirs.images)
    assert np.array_equal(sample(0.0, 0.2), sample(0.0, 0.8))
    assert not np.array_equal(sample(0.6, 0.2), sample(0.6, 0.8))


def test_the_bases_own_scheduler_is_left_alone(shared: FastComposerPipeline) -> None:
    before = shared.scheduler
    scheduler, options = split_scheduler({"alpha": 0.5, "scheduler": None})
    use_scheduler(shared, scheduler)
    assert shared.scheduler is before
    assert options == {"alpha": 0.5}


@pytest.mark.parametrize(
    ("scheduler", "message"),
    [
        ({"name": "DPMSolver"}, r"sampler\.scheduler\.name=DPMSolver: no scheduler of diffusers"),
        ({"algorithm_type": "x"}, r"sampler\.scheduler\.name=None"),
        ({"name": "LCMScheduler", "order": 2}, r"sampler\.scheduler: LCMScheduler does not take order"),
    ],
)
def test_unknown_schedulers_and_settings_are_named(scheduler: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        split_scheduler({"scheduler": scheduler})


def test_settings_win_over_the_bases(shared: FastComposerPipeline) -> None:
    pipeline = FastComposerPipeline(**shared.components)
    use_scheduler(pipeline, {"name": "DPMSolverMultistepScheduler", "solver_order": 3})
    assert isinstance(pipeline.scheduler, DPMSolverMultistepScheduler)
    assert pipeline.scheduler.config.solver_order == 3
