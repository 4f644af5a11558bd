"""Settings of an image that was generated earlier: read from its file, validated, and kept as data."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, TypeAlias

from omegaconf import DictConfig, OmegaConf
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from fastcomposer.utils.provenance import read_metadata
from fastcomposer.utils.texts import as_data

_GROUPS = ("model", "sampler")
_LARGEST = 1e9  # number


def _scalar(value: Any) -> Any:
    number = isinstance(value, int | float) and abs(value) <= _LARGEST
    if not number and not isinstance(value, str | None):
        raise ValueError(f"must be a text, true, false, null, or a number of at most {_LARGEST:g}")
    return value


def _scalars(value: Any) -> Any:
    return [_scalar(entry) for entry in value] if isinstance(value, list) else _scalar(value)


def _references(value: Any) -> Any:
    subjects = value if isinstance(value, list) else [value]
    files = [file for entry in subjects for file in (entry if isinstance(entry, list) else [entry])]
    if not all(isinstance(file, str) for file in files):
        raise ValueError("must be a file, or a list of files and lists of files")
    return value


_Scalar: TypeAlias = Annotated[Any, AfterValidator(_scalar)]
_Numbers: TypeAlias = Annotated[
    list[Annotated[float, Field(ge=-_LARGEST, le=_LARGEST)]], Field(max_length=1000)
]
_Ratio: TypeAlias = Annotated[float, Field(ge=0, le=1)]
_Scale: TypeAlias = Annotated[float, Field(ge=-1000, le=1000)]
_Side: TypeAlias = Annotated[int, Field(ge=1, le=8192)]
_Size: TypeAlias = Annotated[list[Annotated[int, Field(ge=0, le=2**16)]], Field(min_length=2, max_length=2)]
_STRICT = ConfigDict(strict=True, allow_inf_nan=False)


class Sampler(BaseModel):
    """Arguments of a pipeline call that a file can hold, and the scheduler."""

    model_config = ConfigDict(**_STRICT, extra="forbid")

    alpha: _Ratio | None = None
    num_inference_steps: Annotated[int, Field(ge=1, le=1000)] | None = None
    guidance_scale: _Scale | None = None
    guidance_interval: _Numbers | None = None
    guidance_rescale: _Ratio | None = None
    negative_prompt: str | None = None
    negative_prompt_2: str | None = None
    prompt_2: str | None = None
    scheduler: dict[str, Annotated[Any, AfterValidator(_scalars)]] | None = None
    timesteps: _Numbers | None = None
    sigmas: _Numbers | None = None
    eta: _Ratio | None = None
    clip_skip: Annotated[int, Field(ge=0, le=100)] | None = None
    denoising_end: _Ratio | None = None
    height: _Side | None = None
    width: _Side | None = None
    original_size: _Size | None = None
    crops_coords_top_left: _Size | None = None
    target_size: _Size | None = None
    negative_original_size: _Size | None = None
    negative_crops_coords_top_left: _Size | None = None
    negative_target_size: _Size | None = None


class Recalled(BaseModel):
    """Settings that are recalled; others are ignored."""

    model_config = _STRICT

    model: dict[str, _Scalar] = {}
    sampler: Sampler = Sampler()
    checkpoint: str | None = None
    prompt: str | None = None
    references: Annotated[Any, AfterValidator(_references)] = []
    alpha: _Ratio = 0.0
    num_images: Annotated[int, Field(ge=1, le=1000)] = 1
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    reference_digests: list[list[str]] | None = None


def recall(config: DictConfig, overrides: Sequence[str]) -> list[list[str]] | None:
    """Set what the command line does not, as in an image that was generated earlier.

    No string from the file is read for interpolations.

    Args:
        config: With ``settings``, the PNG; changed.
        overrides: Of the command line.

    Returns:
        Digests of the references it was generated from; ``None`` where the file has none.

    Raises:
        ValueError: If the file holds no settings, one of them is unknown, of another type or out of range,
            or it does not hold its references.
    """
    metadata = read_metadata(Path(config.settings))
    if metadata is None:
        raise ValueError(f"settings={config.settings}: no complete PNG with settings of this program")
    taken = _without(metadata, {re.split("[=@]", override.lstrip("+~"))[0] for override in overrides})
    _check(config, taken)
    digests = taken.pop("reference_digests", None)
    for key, value in taken.items():
        entries = {f".{name}": entry for name, entry in value.items()} if key in _GROUPS else {"": value}
        for name, entry in entries.items():
            OmegaConf.update(config, key + name, as_data(entry), merge=False, force_add=True)
    if digests and not config.references:
        raise ValueError(
            f"{config.settings} holds no reference images: references=[…], {len(digests)} of them"
        )
    return digests


def _without(metadata: Mapping[str, Any], named: Collection[str]) -> dict[str, Any]:
    """Settings that can be recalled, without those that the command line names."""

    def kept(path: str) -> bool:
        return not any(f"{path}.".startswith(f"{name}.") or name.startswith(f"{path}.") for name in named)

    recalled = {}
    for key in metadata.keys() & Recalled.model_fields.keys():
        value = metadata[key]
        if key in _GROUPS and isinstance(value, Mapping):
            recalled[key] = {name: entry for name, entry in value.items() if kept(f"{key}.{name}")}
        elif kept(key):
            recalled[key] = value
    return recalled


def _check(config: DictConfig, taken: Mapping[str, Any]) -> None:
    try:
        model = Recalled.model_validate(taken).model
        problems = [f"model.{key}: unknown" for key in model if key not in config.model]
    except ValidationError as error:
        found = ((".".join(map(str, one["loc"])), one["msg"]) for one in error.errors())
        problems = [f"{key}: {message.removeprefix('Value error, ')}" for key, message in found]
    if problems:
        raise ValueError(f"settings={config.settings}: {'; '.join(problems)}")
