"""Fixtures of the pipeline's tests: one on a tiny model."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny_pipeline import SCHEDULERS

from fastcomposer import FastComposer, FastComposerPipeline


@pytest.fixture(scope="module")
def shared(tiny_base: Path, published_checkpoint: Path) -> FastComposerPipeline:
    return FastComposer.from_published_checkpoint(published_checkpoint, base=tiny_base).to_pipeline()


@pytest.fixture
def pipe(shared: FastComposerPipeline) -> FastComposerPipeline:
    """A pipeline of its own scheduler, so that tests may change it."""
    fresh = FastComposerPipeline(**{**shared.components, "scheduler": SCHEDULERS["ddim"]()})
    fresh.set_progress_bar_config(disable=True)
    return fresh
