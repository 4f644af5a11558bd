"""A checkpoint as the official ones are: weights beside an object of a class of Lightning's, pickled."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest.mock import patch

import torch

_MODULE = "pytorch_lightning.callbacks.model_checkpoint"
LIGHTNING_CLASS = f"{_MODULE}.ModelCheckpoint"


def write_lightning_checkpoint(file: Path, state: Mapping[str, torch.Tensor]) -> None:
    """Write a file that names a class which is not installed."""
    known: Any = type("ModelCheckpoint", (), {"__module__": _MODULE})
    module: Any = ModuleType(_MODULE)
    module.ModelCheckpoint = known
    parents = {name: ModuleType(name) for name in ("pytorch_lightning", "pytorch_lightning.callbacks")}
    with patch.dict(sys.modules, {**parents, _MODULE: module}):
        torch.save({"epoch": 3, "state_dict": dict(state), "callbacks": {known: {"best": 1.0}}}, file)
