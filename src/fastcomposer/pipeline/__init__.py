"""The pipelines: one sampler, with delayed subject conditioning.

- steps: ``schedulers``, ``sampling``
- a call's subjects: ``subjects``; several variants of one prompt: ``variants``
- the two pipelines: ``stable_diffusion``, ``stable_diffusion_xl``; the class for a model: ``kinds``
"""

from __future__ import annotations

import importlib
from typing import Any

_EXPORTS = {
    "FastComposerPipeline": "fastcomposer.pipeline.stable_diffusion",
    "FastComposerXLPipeline": "fastcomposer.pipeline.stable_diffusion_xl",
    "open_pipeline": "fastcomposer.pipeline.kinds",
}


def __getattr__(name: str) -> Any:
    """Import a pipeline on first use: a training needs neither."""
    if name not in _EXPORTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_EXPORTS[name]), name)
