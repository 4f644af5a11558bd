"""The pipeline class of a model or a saved folder."""

from __future__ import annotations

from collections.abc import Container
from pathlib import Path
from typing import Any

from diffusers.pipelines.pipeline_utils import DiffusionPipeline


def pipeline_class(components: Container[str]) -> Any:
    """Class of the pipeline for a model's components, given by name; only that one is imported."""
    if "text_encoder_2" in components:
        from fastcomposer.pipeline.stable_diffusion_xl import FastComposerXLPipeline

        return FastComposerXLPipeline
    from fastcomposer.pipeline.stable_diffusion import FastComposerPipeline

    return FastComposerPipeline


def open_pipeline(folder: str | Path, **options: Any) -> Any:
    """Load a saved pipeline of either class, with the arguments of ``from_pretrained``."""
    index: Any = DiffusionPipeline.load_config(folder)
    return pipeline_class(index).from_pretrained(folder, **options)
