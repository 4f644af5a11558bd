"""Fixtures of the models' tests."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest


@pytest.fixture(scope="module")
def v_base(write_base: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base whose scheduler says that the U-Net predicts velocity."""
    return write_base(tmp_path_factory.mktemp("v") / "base", prediction_type="v_prediction", tokenizer=False)
