"""Files that come with the package: configurations, architectures of base models, benchmarks."""

from __future__ import annotations

from pathlib import Path

_WHEEL = Path(__file__).resolve().parents[1] / "assets"
_CHECKOUT = Path(__file__).resolve().parents[3]


def asset(path: str | Path) -> Path:
    """Find a file or folder that may come with the package.

    Args:
        path: As in a checkout, such as ``conf`` or ``data/architectures/sd15``.

    Returns:
        Where the package has it, in the wheel or in the checkout that it is installed from, unless the path
        itself exists; else the path.
    """
    given = Path(path).expanduser()
    inside = packaged(given)
    return inside if inside.exists() and not given.exists() else given


def packaged(path: str | Path) -> Path:
    """Where the package has a file or folder, whatever lies in the working directory."""
    return (_WHEEL if _WHEEL.is_dir() else _CHECKOUT) / path
