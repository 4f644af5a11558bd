"""Random numbers of the samples of a batch, from one generator for all or one for each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Generator, Tensor

Source = Generator | list[Generator] | None
"""One generator for a batch; one for each sample, which draws the same in whatever batch; or torch's own."""


def uniform(shape: Sequence[int], device: torch.device | str, source: Source) -> Tensor:
    """Draw (B, ...) floats in [0, 1).

    As in diffusers, numbers are drawn on the generator's device, so that one on the CPU gives the same
    everywhere. Of generators for each sample there must be B or more.
    """
    return _drawn(torch.rand, shape, device, source)


def integers(below: int, shape: Sequence[int], device: torch.device | str, source: Source) -> Tensor:
    """Draw (B, ...) whole numbers from 0 to ``below`` − 1; see :func:`uniform`."""
    return _drawn(lambda size, **where: torch.randint(below, size, **where), shape, device, source)


def _drawn(draw: Callable[..., Tensor], shape: Sequence[int], device: Any, source: Source) -> Tensor:
    if isinstance(source, list):
        if shape[0] > len(source):
            raise ValueError(f"{shape[0]} samples cannot draw from {len(source)} generators")
        return torch.cat([_drawn(draw, (1, *shape[1:]), device, one) for one in source[: shape[0]]])
    own = device if source is None else source.device
    return draw(tuple(shape), generator=source, device=own).to(device)
