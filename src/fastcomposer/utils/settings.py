"""Settings that a result depends on, as they are stored and compared; digests."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn

_CHUNK = 1 << 20


def described(value: Any, name: str = "method") -> Any:
    """Describe settings as JSON values; ``name`` is the key of the value, for messages.

    Raises:
        TypeError: If it is no number, text, path, list, mapping, class, dataclass (described by its compared
            fields) or ``functools.partial`` of named arguments.
    """
    if isinstance(value, partial):
        if value.args:
            raise TypeError(f"{name}: a partial of named arguments is wanted, not of {value.args!r}")
        return {"_target_": _path(value.func), **described(value.keywords, name)}
    if is_dataclass(value) and not isinstance(value, type):
        chosen = {f.name: getattr(value, f.name) for f in fields(value) if f.compare}
        return {"_target_": _path(type(value)), **described(chosen, name)}
    if isinstance(value, Mapping):
        return {str(key): described(entry, f"{name}.{key}") for key, entry in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [described(entry, f"{name}.{i}") for i, entry in enumerate(value)]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Path):
        return str(value)
    if callable(value):
        return _path(value)
    raise TypeError(f"{name}: {value!r} cannot be stored as a setting")


def differences(stored: Any, wanted: Any, name: str = "") -> list[str]:
    """Settings that differ, each as ``key: stored, not wanted``."""
    if isinstance(stored, Mapping) and isinstance(wanted, Mapping):
        keys = dict.fromkeys([*stored, *wanted])
        return [
            line
            for key in keys
            for line in differences(stored.get(key), wanted.get(key), f"{name}.{key}".lstrip("."))
        ]
    return [] if stored == wanted else [f"{name}: {stored!r}, not {wanted!r}"]


def base_fingerprint(
    base: str | Path,
    parts: Sequence[str] = ("scheduler", "text_encoder", "tokenizer", "unet", "vae", "transformer"),
) -> str:
    """Hub id of a model, or a digest of size and both ends of its file or of those in a folder's parts."""
    path = Path(base).expanduser()
    if path.is_file():
        found = {path: ""}
    elif path.is_dir():
        files = ((part, file) for part in parts for file in sorted((path / part).glob("*")))
        found = {file: f"{part}/{file.name}" for part, file in files if file.is_file()}
    else:
        return str(base)
    digest = hashlib.sha256()
    for file, name in found.items():
        size = file.stat().st_size
        digest.update(f"{name} {size}\n".encode())
        with file.open("rb") as stream:
            digest.update(stream.read(_CHUNK))
            stream.seek(max(0, size - _CHUNK))
            digest.update(stream.read(_CHUNK))
    return digest.hexdigest()[:16]


def digest(content: Any) -> str:
    """Digest of plain values."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def file_digest(file: Path) -> str:
    """Digest of a file's content."""
    return hashlib.sha256(file.read_bytes()).hexdigest()[:16]


def weights_digest(network: nn.Module) -> str:
    """Digest of a network's weights, independent of file and device."""
    import torch

    digest = hashlib.sha256()
    for name, value in sorted(network.state_dict().items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def _path(target: Any) -> str:
    return f"{target.__module__}.{target.__qualname__}"
