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
        The path itself where it exists or is absolute, else where the package has it: in the wheel, or in the
        checkout that it is installed from. It may exist nowhere.
    """
    given = Path(path).expanduser()
    if given.is_absolute() or given.exists():
        return given
    return packaged(given)


def packaged(path: str | Path) -> Path:
    """Where the package has a file or folder, whatever lies in the working directory."""
    return (_WHEEL if _WHEEL.is_dir() else _CHECKOUT) / path
