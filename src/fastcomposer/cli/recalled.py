"""Settings of an image that was generated earlier: read from its file, validated, and kept as data."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

from omegaconf import DictConfig, OmegaConf
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from fastcomposer.cli.settings import References, Sampler, Scalar
from fastcomposer.utils.provenance import read_metadata
from fastcomposer.utils.ranges import Fraction
from fastcomposer.utils.texts import as_data

_GROUPS = ("model", "sampler")


class Recalled(BaseModel):
    """Settings that are recalled; others are ignored."""

    model_config = ConfigDict(strict=True, allow_inf_nan=False)

    model: dict[str, Scalar] = {}
    sampler: Sampler = Sampler()
    checkpoint: str | None = None
    prompt: str | None = None
    references: References = []
    alpha: Fraction = 0.0
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
