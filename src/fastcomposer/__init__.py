"""FastComposer: tuning-free multi-subject image generation with localized attention.

The public names are loaded on first use, so that importing the package (as every command does to print its
help) does not import torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fastcomposer.batch import SubjectBatch
    from fastcomposer.composer import FastComposer
    from fastcomposer.models.fusion import SubjectFusion
    from fastcomposer.pipeline.kinds import open_pipeline
    from fastcomposer.pipeline.stable_diffusion import FastComposerPipeline
    from fastcomposer.pipeline.stable_diffusion_3 import FastComposerSD3Pipeline
    from fastcomposer.pipeline.stable_diffusion_xl import FastComposerXLPipeline
    from fastcomposer.prompt import PromptError

__version__ = "0.1.0"

_EXPORTS = {
    "FastComposer": "fastcomposer.composer",
    "FastComposerPipeline": "fastcomposer.pipeline.stable_diffusion",
    "FastComposerSD3Pipeline": "fastcomposer.pipeline.stable_diffusion_3",
    "FastComposerXLPipeline": "fastcomposer.pipeline.stable_diffusion_xl",
    "PromptError": "fastcomposer.prompt",
    "SubjectBatch": "fastcomposer.batch",
    "SubjectFusion": "fastcomposer.models.fusion",
    "open_pipeline": "fastcomposer.pipeline.kinds",
}

__all__ = [
    "FastComposer",
    "FastComposerPipeline",
    "FastComposerSD3Pipeline",
    "FastComposerXLPipeline",
    "PromptError",
    "SubjectBatch",
    "SubjectFusion",
    "open_pipeline",
]


def __getattr__(name: str) -> Any:
    """Import a public name on first use."""
    if name not in _EXPORTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_EXPORTS[name]), name)


def __dir__() -> list[str]:
    """List the public names without importing them."""
    return sorted({*globals(), *_EXPORTS})
