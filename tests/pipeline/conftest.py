"""Fixtures of the pipeline's tests: the pipelines on tiny models."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny_architectures import add_t5, narrow
from tiny_pipeline import with_scheduler

from fastcomposer import (
    FastComposer,
    FastComposerPipeline,
    FastComposerSD3Pipeline,
    FastComposerXLPipeline,
)


@pytest.fixture(scope="module")
def shared(tiny_base: Path, published_checkpoint: Path) -> FastComposerPipeline:
    return FastComposer.from_published_checkpoint(published_checkpoint, base=tiny_base).to_pipeline()


@pytest.fixture
def pipe(shared: FastComposerPipeline) -> FastComposerPipeline:
    return with_scheduler(shared, "ddim")


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> FastComposerXLPipeline:
    folder = narrow("sdxl", tmp_path_factory.mktemp("xl") / "sdxl")
    pipe = FastComposer.from_pretrained("no/base", architecture=folder, weights="random").to_pipeline()
    assert isinstance(pipe, FastComposerXLPipeline)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="module")
def with_t5(tmp_path_factory: pytest.TempPathFactory) -> FastComposerSD3Pipeline:
    folder = add_t5(narrow("sd3", tmp_path_factory.mktemp("t5") / "sd3"))
    pipe = FastComposer.from_pretrained("no/base", architecture=folder, weights="random").to_pipeline()
    assert isinstance(pipe, FastComposerSD3Pipeline)
    pipe.set_progress_bar_config(disable=True)
    return pipe
