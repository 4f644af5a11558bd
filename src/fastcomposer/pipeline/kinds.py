"""The pipeline class of a model or a saved folder."""

from __future__ import annotations

from collections.abc import Container
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from torch import nn

from fastcomposer.utils.network_files import check_finite, naming_damage

if TYPE_CHECKING:
    from fastcomposer.pipeline.stable_diffusion import FastComposerPipeline
    from fastcomposer.pipeline.stable_diffusion_3 import FastComposerSD3Pipeline
    from fastcomposer.pipeline.stable_diffusion_xl import FastComposerXLPipeline

    AnyPipeline = FastComposerPipeline | FastComposerXLPipeline | FastComposerSD3Pipeline


def pipeline_class(components: Container[str]) -> Any:
    """Class of the pipeline for a model's components, given by name; only that one is imported."""
    if "transformer" in components:
        from fastcomposer.pipeline.stable_diffusion_3 import FastComposerSD3Pipeline

        return FastComposerSD3Pipeline
    if "text_encoder_2" in components:
        from fastcomposer.pipeline.stable_diffusion_xl import FastComposerXLPipeline

        return FastComposerXLPipeline
    from fastcomposer.pipeline.stable_diffusion import FastComposerPipeline

    return FastComposerPipeline


def open_pipeline(folder: str | Path, **options: Any) -> Any:
    """Load a saved pipeline of any class, with the arguments of ``from_pretrained``.

    Raises:
        ValueError: If a part is damaged, lacks weights, or holds weights that are not finite.
    """
    with naming_damage("saved pipeline", folder):
        index: Any = DiffusionPipeline.load_config(folder)
        pipeline = pipeline_class(index).from_pretrained(folder, **options)
    for name, part in pipeline.components.items():
        if isinstance(part, nn.Module):
            check_finite(part.state_dict(), f"{name} of the saved pipeline", folder)
    return pipeline
