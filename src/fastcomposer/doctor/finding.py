"""What was looked at, and what to do about it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

State = Literal["ok", "warning", "missing"]


@dataclass(frozen=True)
class Finding:
    """One line of the report.

    Attributes:
        topic: Its heading.
        name: Key of the configuration, package or device.
        state: ``missing`` keeps the command from starting, ``warning`` does not.
        detail: What is there or wrong.
        remedy: What to do; empty where nothing is to be done.
        files: Files that are missing, relative to where ``remedy`` puts them.
    """

    topic: str
    name: str
    state: State
    detail: str
    remedy: str = ""
    files: tuple[str, ...] = ()


def mappings(node: Any, key: str = "") -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Every mapping inside a configuration, with its key."""
    if isinstance(node, Mapping):
        yield key, node
    elif not isinstance(node, Sequence) or isinstance(node, str):
        return
    for name, child in node.items() if isinstance(node, Mapping) else enumerate(node):
        yield from mappings(child, f"{key}.{name}".removeprefix("."))


def at(config: Mapping[str, Any], key: str) -> Any:
    """The value of a dotted key; ``None`` where there is none."""
    found: Any = config
    for part in key.split("."):
        found = found.get(part) if isinstance(found, Mapping) else None
    return found


def gigabytes(size: float) -> str:
    """A number of bytes for readers."""
    return f"{size / 1e9:.2f} GB"
