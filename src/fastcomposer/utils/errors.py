"""Faults around a run: disks, processes, numbers."""

from __future__ import annotations


class FaultError(RuntimeError):
    """A run cannot continue; the message names the cause, what is kept, and how to continue."""
