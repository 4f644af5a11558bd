"""Where on the noise schedule a training spends its samples."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import NormalDist
from typing import Annotated

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from fastcomposer.utils.ranges import Amount, Count, Positive, Whole
from fastcomposer.utils.rng import Source, uniform


class TimestepDensity:
    """A density over the timesteps, constant within each, that timesteps are drawn from.

    Args:
        density: (T,) not negative, of any sum.
        reweight: Weigh each sample's denoising loss by the inverse of its density, so that the expected
            denoising loss is the uniform one's and only its variance changes.

    Raises:
        ValueError: If a value is negative or not finite, or all are 0; or, with ``reweight``, any is 0.
    """

    def __init__(self, density: np.ndarray, reweight: bool = False) -> None:
        if not np.isfinite(density).all() or density.min() < 0 or density.sum() <= 0:
            raise ValueError("timesteps.density: finite numbers from 0 on, not all of them 0")
        if reweight and density.min() == 0:
            raise ValueError("timesteps.density.reweight: some timesteps have density 0 and no weight")
        share = density / density.sum()
        self.reweight = reweight
        self.cumulative = torch.from_numpy(share.cumsum())
        self.weights = torch.from_numpy(1 / (share * len(share))).float() if reweight else None

    def check(self, num_timesteps: int) -> None:
        """Refuse a density of another schedule than the model's, of so many timesteps, by ``ValueError``."""
        own = len(self.cumulative)
        if own != num_timesteps:
            raise ValueError(
                f"timesteps.density.num_timesteps={own}: the base's schedule has {num_timesteps}"
            )

    def draw(self, count: int, device: torch.device | str, source: Source) -> Tensor:
        """Draw (count,) timesteps."""
        uniforms = uniform((count,), device, source).double()
        found = torch.searchsorted(self.cumulative.to(device), uniforms, right=True)
        return found.clamp(max=len(self.cumulative) - 1)

    def weight(self, timesteps: Tensor) -> Tensor | None:
        """Weights (B,) of the denoising losses at timesteps (B,); ``None`` where all are 1."""
        return None if self.weights is None else self.weights.to(timesteps.device)[timesteps]


def logit_normal(
    mean: Annotated[float, Field(ge=-100, le=100)] = 0.0,
    std: Positive = 1.0,
    reweight: bool = False,
    num_timesteps: Count = 1000,
) -> TimestepDensity:
    """Timesteps whose logit is normal, as Stable Diffusion 3 is trained (Esser et al. 2024, section 3.1).

    Args:
        mean: Of the logit of t / T; above 0 for higher noise levels.
        std: Standard deviation of the logit.
        reweight: See :class:`TimestepDensity`.
        num_timesteps: Of the training schedule, T.
    """
    edges = np.arange(1, num_timesteps) / num_timesteps
    normal = NormalDist(mean, std)
    cumulative = [normal.cdf(float(np.log(edge / (1 - edge)))) for edge in edges]
    return TimestepDensity(np.diff(np.array([0.0, *cumulative, 1.0])), reweight)


def measured(
    curve: Annotated[Sequence[tuple[Whole, float]], Field(min_length=1)],
    floor: Amount = 0.0,
    reweight: bool = False,
    num_timesteps: Count = 1000,
) -> TimestepDensity:
    """Timesteps in proportion to a measured curve, linear between its points.

    Args:
        curve: Pairs of a timestep and a value, such as how much of the identity of x̂₀ comes from the subject
            there (``fastcomposer diagnose``); constant beyond the first and the last.
        floor: Added to every value, so that no timestep is left out.
        reweight: See :class:`TimestepDensity`.
        num_timesteps: Of the training schedule, T.

    Raises:
        ValueError: If the curve is empty, or not positive with the floor; or see :class:`TimestepDensity`.
    """
    if not curve:
        raise ValueError("timesteps.density.curve: at least one timestep")
    points = np.array(sorted((float(timestep), float(value)) for timestep, value in curve))
    values = np.interp(np.arange(num_timesteps), points[:, 0], points[:, 1]) + floor
    if not np.isfinite(values).all() or values.min() < 0 or values.max() == 0:
        raise ValueError("timesteps.density.curve: finite values, with the floor from 0 on and not all 0")
    return TimestepDensity(values, reweight)
