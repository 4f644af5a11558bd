"""Means over pictures that stay exact when pictures are spread over processes."""

from __future__ import annotations

import torch
from torch import Tensor
from torchmetrics import Metric


class PictureMean(Metric):
    """Mean of one score per picture, kept as a sum and a count.

    Sums of all processes are added before the division, so that processes may see different numbers of
    pictures. Float64: a thousand scores of a few digits must not drift. NaN before the first picture.
    """

    is_differentiable = False
    higher_is_better: bool | None = True
    full_state_update = False
    total: Tensor
    count: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("total", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("count", torch.zeros((), dtype=torch.long), dist_reduce_fx="sum")

    def add(self, scores: Tensor) -> None:
        """Count scores (B,)."""
        self.total += scores.detach().sum(dtype=torch.float64).to(self.total.device)
        self.count += len(scores)

    def compute(self) -> Tensor:
        """The mean, a scalar."""
        return self.total / self.count
