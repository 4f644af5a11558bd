"""Faults around a run: disks, processes, numbers."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pydantic import ValidationError


class FaultError(RuntimeError):
    """A run cannot continue; the message names the cause, what is kept, and how to continue."""


def invalid_fields(error: ValidationError) -> str:
    """Name every field that pydantic refuses, and why: ``rows[1].images: Input should be …, not 1.5``."""
    found = []
    for one in error.errors():
        keys = (key for key in one["loc"] if key != "[key]")
        field = "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in keys).removeprefix(".")
        reason = one["msg"].removeprefix("Value error, ")
        given = f", not {one['input']!r}" if isinstance(one["input"], str | int | float | None) else ""
        found.append(": ".join(filter(None, (field, reason + given * (one["type"] != "json_invalid")))))
    return "; ".join(found)
