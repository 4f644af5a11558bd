"""Memory in use."""

from __future__ import annotations

import resource
import sys

import torch


def peak_memory_bytes(device: torch.device) -> int:
    """Most memory in use so far, of the accelerator or of the process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    # In kilobytes, except on macOS.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
