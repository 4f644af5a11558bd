"""Files that come with the package: configurations, architectures of base models, benchmarks."""

from __future__ import annotations

from pathlib import Path

_WHEEL = Path(__file__).resolve().parents[1] / "assets"
_CHECKOUT = Path(__file__).resolve().parents[3]


def asset(path: str | Path) -> Path:
    """Path as in a checkout, such as ``conf``; that in the package where only the package has it."""
    given = Path(path).expanduser()
    inside = packaged(given)
    return inside if inside.exists() and not given.exists() else given


def packaged(path: str | Path) -> Path:
    """Path in the package: in the wheel, or in the checkout that it is installed from."""
    return (_WHEEL if _WHEEL.is_dir() else _CHECKOUT) / path
