"""Trained weights on their own: what training changed of a base model, in one file."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, Literal, get_args

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from fastcomposer.models.checkpoint import load_exact
from fastcomposer.models.difference import (
    BASE_DIGEST,
    base_weights,
    decode_differences,
    digest,
    encode_differences,
)
from fastcomposer.models.fusion import FusionConfig
from fastcomposer.models.loading import load_networks
from fastcomposer.models.networks import Networks
from fastcomposer.models.source import existing_file

Precision = Literal["float32", "float16", "int8"]
WEIGHTS_NAME = "fastcomposer.safetensors"
_PREFIX = "model."
_TRAINABLE = ("unet", "image_encoder", "fusion")


@dataclass(frozen=True)
class TrainingLength:
    """How long weights were trained.

    Attributes:
        steps: Optimizer steps.
        minutes: Time spent in training.
    """

    steps: int = 0
    minutes: float = 0.0


def save_trained_weights(
    model: Networks,
    path: str | Path,
    precision: Precision = "float32",
    length: TrainingLength | None = None,
    weights: Mapping[str, Tensor] | None = None,
) -> Path:
    """Write the trained tensors of a model.

    Args:
        model: The model; what is trained of it goes into the file.
        path: File to write, ``.safetensors``; replaced at once when complete.
        precision: ``float16`` halves the file; ``int8`` quarters it: differences from the base, see
            :mod:`fastcomposer.models.difference`.
        length: How long they were trained, where it is known; :func:`read_training_length` gives it back.
        weights: The trained weights, where the model has but a part of each.

    Raises:
        ValueError: If the precision is unknown, or differences are wanted of a model that was not loaded from
            a base.
    """
    if precision not in get_args(Precision):
        raise ValueError(f"export precision {precision!r} is not one of {', '.join(get_args(Precision))}")
    file = Path(path)
    file.parent.mkdir(parents=True, exist_ok=True)
    metadata = {"format": "pt", "base": str(model.source.base) if model.source else ""}
    metadata["fusion"] = json.dumps(asdict(model.fusion.kind))
    if length is not None:
        metadata |= {"steps": str(length.steps), "minutes": str(length.minutes)}
    weights = model.trainable_state_dict() if weights is None else weights
    state = {name: value.cpu().contiguous() for name, value in weights.items()}
    if precision != "int8":
        state = {name: value.to(getattr(torch, precision)) for name, value in state.items()}
    elif model.source is None:
        raise ValueError("export precision int8: this model was not loaded from a base to differ from")
    else:
        base = base_weights(load_networks(model.source, None, None), state)
        metadata[BASE_DIGEST] = digest(base)
        state = encode_differences(state, base)
    temporary = file.with_suffix(".tmp")
    save_file(state, temporary, metadata)
    temporary.replace(file)
    return file


def load_trained_weights(model: Networks, path: str | Path, *, keep_fusion: bool = False) -> None:
    """Load trained weights into a model made from the same base.

    Args:
        model: The model; its fusion becomes one of the file's kind.
        keep_fusion: Leave the fusion of the kind that it is; a pooling that the file lacks stays new.
        path: A file of :func:`save_trained_weights`, a training checkpoint (``.ckpt``; its moving average
            where it has one), or the folder of a run with either.

    Raises:
        FileNotFoundError: If there is none; the message names the path.
        ValueError: If the file cannot be read or does not fit the model, with what differs.
    """
    file = find_weights_file(Path(path).expanduser())
    content = _read(file)
    state = content.state
    if content.base_digest is not None:
        base = base_weights({name: getattr(model, name) for name in _TRAINABLE}, state)
        if digest(base) != content.base_digest:
            raise ValueError(
                f"checkpoint {file} holds differences from other weights than this model's: load it into a "
                "model fresh from the base it was trained from"
            )
        state = decode_differences(state, base)
    if not keep_fusion:
        model.adopt_fusion(content.fusion)
    elif content.fusion.mode != model.fusion.kind.mode:
        raise ValueError(
            f"checkpoint {file} has fusion mode {content.fusion.mode}: set method.model.fusion.mode to it"
        )
    elif content.fusion.pooling == "attention" != model.fusion.kind.pooling:
        raise ValueError(f"checkpoint {file} pools by attention: set method.model.fusion.pooling=attention")
    needed = {f"fusion.{name}" for name in model.fusion.state_dict()}
    if content.fusion.pooling != "attention":
        needed = {name for name in needed if not name.startswith("fusion.reference_attention.")}
    lost = sorted(needed - state.keys())
    if lost:
        raise ValueError(f"checkpoint {file} is no FastComposer: it has no {', '.join(lost)}")
    load_exact(
        {name: getattr(model, name) for name in _TRAINABLE},
        state,
        f"checkpoint {file} does not fit the base model",
        # What was not trained is not in the file and stays as the base has it.
        set(state),
    )


def read_training_length(path: str | Path) -> TrainingLength:
    """Read how long trained weights were trained; zero where their file does not say so.

    Args:
        path: See :func:`load_trained_weights`.

    Raises:
        FileNotFoundError: If there is none; the message names the path.
        ValueError: If the file cannot be read.
    """
    return _read(find_weights_file(Path(path).expanduser())).length


def find_weights_file(path: Path) -> Path:
    """Find the file that :func:`load_trained_weights` reads.

    Args:
        path: See there.

    Raises:
        FileNotFoundError: If there is none.
    """
    if not path.is_dir():
        return existing_file(path, "checkpoint")
    for candidate in (path / WEIGHTS_NAME, path / "checkpoints" / "last.ckpt"):
        if candidate.exists():
            return candidate
    raise FileNotFoundError(
        f"checkpoint {path}: neither {WEIGHTS_NAME} nor checkpoints/last.ckpt is in this folder"
    )


@dataclass(frozen=True)
class _Content:
    """Tensors of a file by name.

    Attributes:
        state: The tensors.
        base_digest: Where they are differences, digest of what they differ from.
        length: How long they were trained.
        fusion: Kind of the fusion; files from before there were several do not say it.
    """

    state: dict[str, Tensor]
    base_digest: str | None
    length: TrainingLength
    fusion: FusionConfig


def _read(file: Path) -> _Content:
    try:
        if file.suffix != ".ckpt":
            with safe_open(file, "pt") as opened:
                metadata = opened.metadata() or {}
            length = TrainingLength(int(metadata.get("steps", 0)), float(metadata.get("minutes", 0)))
            fusion = FusionConfig(**json.loads(metadata.get("fusion", "{}")))
            return _Content(_unprefixed(load_file(file)), metadata.get(BASE_DIGEST), length, fusion)
        content: dict[str, Any] = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
        weights = content["ema"]["weights"] if "ema" in content else content["state_dict"]
        length = TrainingLength(**content.get("length", {}))
        return _Content(_unprefixed(weights), None, length, FusionConfig(**content.get("fusion", {})))
    except (UnpicklingError, SafetensorError, RuntimeError, EOFError, KeyError, TypeError) as error:
        raise ValueError(f"checkpoint {file} cannot be read as trained weights: {error}") from error


def _unprefixed(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(_PREFIX): value for name, value in weights.items()}
