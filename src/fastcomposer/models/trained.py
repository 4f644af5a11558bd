"""Trained weights on their own: what training changed of a base model, in one file."""

from __future__ import annotations

from pathlib import Path
from pickle import UnpicklingError
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from fastcomposer.models.checkpoint import load_exact
from fastcomposer.models.loading import existing_file

if TYPE_CHECKING:
    from fastcomposer.models.composer import FastComposer

WEIGHTS_NAME = "fastcomposer.safetensors"
_PREFIX = "model."


def save_trained_weights(model: FastComposer, path: str | Path, dtype: torch.dtype = torch.float32) -> Path:
    """Write the trained tensors of a model.

    Args:
        model: The model; what is trained of it goes into the file.
        path: File to write, ``.safetensors``; replaced at once when complete.
        dtype: Data type in the file; float16 halves it.
    """
    file = Path(path)
    file.parent.mkdir(parents=True, exist_ok=True)
    state = {
        name: value.to("cpu", dtype).contiguous() for name, value in model.trainable_state_dict().items()
    }
    temporary = file.with_suffix(".tmp")
    save_file(state, temporary, {"format": "pt", "base": str(model.source.base) if model.source else ""})
    temporary.replace(file)
    return file


def load_trained_weights(model: FastComposer, path: str | Path) -> None:
    """Load trained weights into a model made from the same base.

    Args:
        model: The model.
        path: A file of :func:`save_trained_weights`, a training checkpoint (``.ckpt``; its moving average
            where it has one), or the folder of a run with either.

    Raises:
        FileNotFoundError: If there is none; the message names the path.
        ValueError: If the file cannot be read or does not fit the model, with what differs.
    """
    file = _find(Path(path).expanduser())
    state = _read(file)
    needed = {f"fusion.{name}" for name in model.fusion.state_dict()}
    lost = sorted(needed - state.keys())
    if lost:
        raise ValueError(f"checkpoint {file} is no FastComposer: it has no {', '.join(lost)}")
    load_exact(
        {name: getattr(model, name) for name in ("unet", "image_encoder", "fusion")},
        state,
        f"checkpoint {file} does not fit the base model",
        # What was not trained is not in the file and stays as the base has it.
        set(state),
    )


def _find(path: Path) -> Path:
    if not path.is_dir():
        return existing_file(path, "checkpoint")
    for candidate in (path / WEIGHTS_NAME, path / "checkpoints" / "last.ckpt"):
        if candidate.exists():
            return candidate
    raise FileNotFoundError(
        f"checkpoint {path}: neither {WEIGHTS_NAME} nor checkpoints/last.ckpt is in this folder"
    )


def _read(file: Path) -> dict[str, Tensor]:
    try:
        if file.suffix != ".ckpt":
            return load_file(file)
        content: dict[str, Any] = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
        weights = content["ema"]["weights"] if "ema" in content else content["state_dict"]
    except (UnpicklingError, SafetensorError, RuntimeError, EOFError, KeyError, TypeError) as error:
        raise ValueError(f"checkpoint {file} cannot be read as trained weights: {error}") from error
    return {name.removeprefix(_PREFIX): value for name, value in weights.items()}
