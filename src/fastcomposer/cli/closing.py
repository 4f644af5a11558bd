"""The last lines of a command: where its files are."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path


def conclude(paths: Mapping[str, str | Path | None]) -> None:
    """Print to standard error, as progress is, the paths that exist, by what they hold."""
    existing = {what: shown(path) for what, path in paths.items() if path and Path(path).exists()}
    width = max(map(len, existing), default=0)
    print("", *(f"  {what:<{width}}  {path}" for what, path in existing.items()), sep="\n", file=sys.stderr)


def shown(path: str | Path) -> str:
    """A path relative to the working directory where it is inside."""
    absolute = Path(path).absolute()
    return str(absolute.relative_to(Path.cwd()) if absolute.is_relative_to(Path.cwd()) else absolute)
