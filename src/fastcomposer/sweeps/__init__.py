"""Sweeps and searches: running their jobs, and reporting them."""

from __future__ import annotations

from collections.abc import Sequence

_FLAGS = {"-m", "--multirun", "hydra.mode=MULTIRUN"}
_OTHER_FLAGS = {"-h", "--help", "--hydra-help", "-c", "--cfg", "-i", "--info"}


def is_sweep(arguments: Sequence[str]) -> bool:
    """Whether a command line asks for a multirun, and not for its configuration or help."""
    return not _FLAGS.isdisjoint(arguments) and _OTHER_FLAGS.isdisjoint(arguments)
