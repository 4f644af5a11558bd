"""Files of networks: errors that name them, and weights that are numbers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

_NAMED = 3  # tensors that a message names


@contextmanager
def naming_damage(what: str, path: str | Path) -> Iterator[None]:
    """Name the file or folder that a library reads within the block, whatever it raises for damaged content.

    Raises:
        ValueError: With the name and the reason. Missing files and errors that name it stay as they are.
    """
    try:
        yield
    except (ImportError, OSError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        if isinstance(error, ValueError) and str(path) in str(error):
            raise
        reason = " ".join(str(error).split())[:300]
        raise ValueError(f"{what} {path} cannot be read: {reason} ({type(error).__name__})") from error


def non_finite_names(tensors: Mapping[str, Tensor]) -> str:
    """Name the first tensors that hold NaN or infinity; empty if none does."""
    found = {n: t for n, t in tensors.items() if t.is_floating_point() and t.numel() and not t.is_meta}
    if not found:
        return ""
    device = next(iter(found.values())).device  # some optimizers count their steps on the CPU
    # NaN is both extremes of any tensor that holds it. One pass, ten times as fast on a CPU as isfinite.
    extremes = [torch.stack(torch.aminmax(t.detach())).double().to(device) for t in found.values()]
    finite = torch.stack(extremes).isfinite().all(1).tolist()
    bad = [name for name, good in zip(found, finite, strict=True) if not good]
    return ", ".join(bad[:_NAMED]) + ", …" * (len(bad) > _NAMED)


def check_finite(tensors: Mapping[str, Tensor], what: str, path: str | Path) -> None:
    """Refuse NaN and infinity in weights by ``ValueError``, naming the file or folder and the tensors."""
    if names := non_finite_names(tensors):
        raise ValueError(f"{what} {path} holds numbers that are not finite ({names})")
