"""What goes wrong around a run: disks, processes, numbers; told in words, with the way to go on."""

from __future__ import annotations


class FaultError(RuntimeError):
    """A run cannot go on; the message says why, what is left of it, and how to continue."""
