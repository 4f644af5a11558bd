"""Trained weights on their own: what training changed of a base model, in one file."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import torch
from pydantic import Field, ValidationError
from pydantic.dataclasses import dataclass as pydantic_dataclass
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from fastcomposer.models.base_files import find_weights_file, lora_file
from fastcomposer.models.fusion import FusionConfig
from fastcomposer.models.loading import network_classes
from fastcomposer.models.lora import LoRASettings, is_lora, lora_settings, plain_name, set_lora, write_lora
from fastcomposer.models.networks import Networks
from fastcomposer.models.published_checkpoint import (
    current_state,
    has_published_names,
    load_exact,
    read_saved,
    refuse_second_encoder,
)
from fastcomposer.models.source import ModelSource
from fastcomposer.models.weight_delta import (
    BASE_DIGEST,
    base_weights,
    decode_differences,
    digest,
    encode_differences,
)
from fastcomposer.utils.errors import invalid_fields
from fastcomposer.utils.files import save_atomically

Precision = Literal["float32", "float16", "int8"]
_PREFIX = "model."
_LORA_DIGEST = "lora_digest"  # in a file's metadata: of the adapters beside it


@pydantic_dataclass(frozen=True)
class TrainingLength:
    """How long weights were trained: optimizer steps, and minutes spent in training."""

    steps: Annotated[int, Field(ge=0)] = 0
    minutes: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0


def save_trained_weights(
    model: Networks,
    path: str | Path,
    precision: Precision = "float32",
    length: TrainingLength | None = None,
    weights: Mapping[str, Tensor] | None = None,
) -> Path:
    """Write the tensors of a model that are trained or came from other weights than its base's.

    A LoRA of the backbone is written beside it in diffusers' format: as ``pytorch_lora_weights.safetensors``
    for ``fastcomposer.safetensors``, and as ``NAME.pytorch_lora_weights.safetensors`` for any other name.

    Args:
        model: The model.
        path: File to write, ``.safetensors``; replaced when complete.
        precision: ``float16`` halves the file; ``int8`` quarters it: differences from the base, see
            :mod:`fastcomposer.models.weight_delta`.
        length: How long they were trained, where it is known: :func:`read_training_length`.
        weights: Tensors to write, where the model holds local shards.

    Raises:
        ValueError: If the precision is unknown, or differences are wanted of a model that was not loaded from
            a base.
    """
    if precision not in get_args(Precision):
        raise ValueError(f"export precision {precision!r} is not one of {', '.join(get_args(Precision))}")
    file = Path(path)
    metadata = {"format": "pt", "base": str(model.source.base) if model.source else ""}
    metadata["fusion"] = json.dumps(model.fusion.kind.metadata())
    if length is not None:
        metadata |= {"steps": str(length.steps), "minutes": str(length.minutes)}
    weights = model.changed_state_dict() if weights is None else weights
    state = {name: value.cpu().contiguous() for name, value in weights.items()}
    settings = lora_settings(model.backbone)
    if settings is not None:
        metadata["lora"] = json.dumps(settings.metadata())
        kept = torch.float32 if precision == "float32" else torch.float16
        adapters = {name: state.pop(name).to(kept) for name in [*state] if is_lora(name)}
        metadata[_LORA_DIGEST] = digest(adapters)
        write_lora(lora_file(file), model.family.NAME, model.backbone, adapters)
    if precision != "int8":
        state = {name: value.to(getattr(torch, precision)) for name, value in state.items()}
    elif model.source is None:
        raise ValueError("export precision int8: this model was not loaded from a base to differ from")
    else:
        base = base_weights(_trained_parts(model.source, state), state)
        metadata[BASE_DIGEST] = digest(base)
        state = encode_differences(state, base)
    save_atomically(file, lambda temporary: save_file(state, temporary, metadata))
    if settings is None:
        lora_file(file).unlink(missing_ok=True)  # of earlier weights
    return file


def _trained_parts(source: ModelSource, state: Mapping[str, Tensor]) -> dict[str, nn.Module]:
    """Load the base's networks that tensors by name are of, and none of the others."""
    parts = {name.partition(".")[0] for name in state}
    classes = {name: cls for name, cls in network_classes(source).items() if name in parts}
    return {name: source.load(cls, name, torch.float32) for name, cls in classes.items()}


def load_trained_weights(model: Networks, path: str | Path, *, keep_fusion: bool = False) -> None:
    """Load trained weights into a model made from the same base, all or none.

    Args:
        model: The model; its fusion becomes one of the file's kind.
        keep_fusion: Keep the kind of the model's fusion; a pooling or resampler the file lacks stays new.
        path: A file of :func:`save_trained_weights`, a training checkpoint (``.ckpt``; its moving average
            where it has one), a file in the released layout (``.safetensors``, or of ``torch.save``), which
            replaces every network, or the folder of a run or download with one of them. A LoRA is
            read from beside the file it was written with; without one, the model loses its own.

    Raises:
        FileNotFoundError: If there is none; the message names the path.
        ValueError: If the file cannot be read or does not fit the model, with what differs.
    """
    file = find_weights_file(Path(path).expanduser())
    content = _read(file)
    with model.kept_on_error():
        _load(model, file, content, keep_fusion)


def _load(model: Networks, file: Path, content: _Content, keep_fusion: bool) -> None:
    set_lora(model.backbone, content.lora)
    state, networks = content.state, model.networks()
    if content.published:
        refuse_second_encoder(networks)
    if content.base_digest is not None:
        base = base_weights(networks, state)
        if digest(base) != content.base_digest and model.source is not None:
            # The model is in half precision, or has been trained.
            base = base_weights(_trained_parts(model.source, state), state)
        if digest(base) != content.base_digest:
            raise ValueError(
                f"checkpoint {file} holds differences from other weights than this model's: load it into a "
                "model of the base it was trained from"
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
    elif content.fusion.num_tokens not in (1, model.fusion.kind.num_tokens):
        raise ValueError(
            f"checkpoint {file} has {content.fusion.num_tokens} tokens of each subject: set "
            "method.model.fusion.num_tokens to it"
        )
    elif content.fusion.routing and not model.fusion.kind.routing:
        raise ValueError(f"checkpoint {file} routes subjects: set method.model.fusion.routing=true")
    needed = _needed(model, content)
    if not content.published and not needed <= state.keys():
        lost = sorted(needed - state.keys())
        names = ", ".join(lost[:3]) + f" and {len(lost) - 3} more" * (len(lost) > 3)
        if all(map(is_lora, lost)):
            raise ValueError(f"LoRA {lora_file(file)} does not fit the backbone: it has no {names}")
        raise ValueError(f"checkpoint {file} is no FastComposer: it has no {names}")
    model.replaced |= load_exact(
        model.networks(),
        state,
        f"checkpoint {file} does not fit the base model",
        # Tensors that the file of a training lacks stay as the base has them.
        needed | state.keys(),
    )


def _needed(model: Networks, content: _Content) -> set[str]:
    """Names that a file must have for a model: the fusion's, of the released layout all."""
    parts = model.networks() if content.published else {"fusion": model.fusion}
    needed = {f"{part}.{name}" for part, network in parts.items() for name in network.state_dict()}
    needed |= {*filter(is_lora, model.changed_state_dict())}
    if content.fusion.pooling != "attention":
        needed = {name for name in needed if not name.startswith("fusion.reference_attention.")}
    if content.fusion.num_tokens == 1:
        needed = {name for name in needed if ".resampler." not in name}
    if not content.fusion.routing:
        needed = {name for name in needed if not name.startswith("fusion.router.")}
    return needed


def read_training_length(path: str | Path) -> TrainingLength:
    """Read how long trained weights were trained; zero where their file does not record it.

    Args and errors are those of :func:`load_trained_weights`.
    """
    return _read(find_weights_file(Path(path).expanduser())).length


@dataclass(frozen=True)
class _Content:
    """Content of a file of weights; published are those in the released layout, which hold every network."""

    state: dict[str, Tensor]
    base_digest: str | None = None  # of int8 differences: of the weights that they differ from
    length: TrainingLength = field(default_factory=TrainingLength)
    fusion: FusionConfig = field(default_factory=FusionConfig)
    published: bool = False
    lora: LoRASettings | None = None


def _read(file: Path) -> _Content:
    saved = read_saved(file, "checkpoint")
    try:
        if not isinstance(saved, Mapping):
            raise TypeError(f"it holds no mapping, but {type(saved).__name__}")
        if has_published_names(saved):
            return _Content(current_state(saved), published=True)
        if file.suffix == ".safetensors":
            with safe_open(file, "pt") as opened:
                metadata = opened.metadata() or {}
            length = TrainingLength(metadata.get("steps", 0), metadata.get("minutes", 0))  # type: ignore[arg-type]
            fusion = FusionConfig(**json.loads(metadata.get("fusion", "{}")))
            lora = _lora(json.loads(metadata.get("lora", "null")))
            if lora is not None:
                adapters = read_saved(lora_file(file), "LoRA of the checkpoint")
                if digest(adapters) != metadata[_LORA_DIGEST]:
                    raise ValueError(f"{lora_file(file).name} beside it belongs to other weights")
                saved |= adapters
            return _Content(_unprefixed(saved), metadata.get(BASE_DIGEST), length, fusion, lora=lora)
        weights = saved["ema"]["weights"] if "ema" in saved else saved["state_dict"]
        weights = {name: value for name, value in weights.items() if name.startswith(_PREFIX)}
        length = TrainingLength(**saved.get("length", {}))
        fusion = FusionConfig(**saved.get("fusion", {}))
        state = _unprefixed({**saved.get("kept", {}), **weights})
        return _Content(state, length=length, fusion=fusion, lora=_lora(saved.get("lora")))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        reason = invalid_fields(error) if isinstance(error, ValidationError) else str(error)
        raise ValueError(f"checkpoint {file} cannot be read as trained weights: {reason}") from error


def _unprefixed(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    for name, value in weights.items():
        if not isinstance(value, Tensor):
            raise TypeError(f"{name} is no tensor, but {type(value).__name__}")
    return {plain_name(name.removeprefix(_PREFIX)): value for name, value in weights.items()}


def _lora(values: Mapping[str, Any] | None) -> LoRASettings | None:
    return None if values is None else LoRASettings(**values)
