"""What a command prints at its end: where everything is.

It goes to standard error, as progress does; standard output has what a script reads.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path


def conclude(places: Mapping[str, str | Path | None]) -> None:
    """Print where everything is.

    Args:
        places: Files and folders by what they hold; those that do not exist are left out.
    """
    there = {what: shown(place) for what, place in places.items() if place and Path(place).exists()}
    width = max(map(len, there), default=0)
    print("", *(f"  {what:<{width}}  {place}" for what, place in there.items()), sep="\n", file=sys.stderr)


def shown(place: str | Path) -> str:
    """A path as the user would write it: relative inside the working directory."""
    path = Path(place).absolute()
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)
