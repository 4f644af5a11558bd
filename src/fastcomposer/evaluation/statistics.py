"""Means with intervals over who is depicted."""

from __future__ import annotations

import itertools
import math
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import Annotated

import numpy as np
from pydantic import AfterValidator, ConfigDict

PLAIN = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)
"""How files with figures are read: no other keys, no numbers as texts, no NaN."""


def _ordered(interval: tuple[float, float]) -> tuple[float, float]:
    if interval[0] > interval[1]:
        raise ValueError("two numbers, the lower first")
    return interval


@dataclass(frozen=True)
class Estimate:
    """A mean and its 95 % interval.

    Attributes:
        mean: Mean over images.
        ci95: Lower and upper end.
    """

    __pydantic_config__ = PLAIN
    mean: float
    ci95: Annotated[tuple[float, float], AfterValidator(_ordered)]

    def excludes(self, value: float = 0.0) -> bool:
        """Whether a value lies outside the interval."""
        return not self.ci95[0] <= value <= self.ci95[1]


def enough_people(estimate: Estimate, people: int) -> int | None:
    """Number of people from which the interval would leave out 0, were mean and spread to stay as they are.

    Intervals narrow with the square root of the number of people; ``None`` where the mean is 0.
    """
    low, high = estimate.ci95
    reach = estimate.mean - low if estimate.mean > 0 else high - estimate.mean
    return math.ceil(people * (reach / estimate.mean) ** 2) if estimate.mean else None


def bootstrap(
    values: Sequence[float] | np.ndarray, groups: Sequence[Hashable], seed: int = 0, resamples: int = 2000
) -> Estimate:
    """Estimate a mean with the 95 % percentile interval of the bootstrap over subjects.

    Subjects are resampled with replacement, each with all of its images: images of one subject are not
    independent, and resampling them would give far too narrow an interval. A pair counts as often as its one
    subject is sampled times its other (Snijders and Borgatti 1999). People with the same groups are sampled
    as one: where nobody is in two groups, groups are resampled. With one group its images are resampled; the
    interval then describes that group alone.

    Args:
        values: (N,) one finite value for each image.
        groups: (N,) whose image it is; a tuple of several is of all of them.
        seed: Of the random numbers: the same input gives the same interval.
        resamples: How often to resample.

    Returns:
        Mean over all images and interval.

    Raises:
        ValueError: If there are no values, they are not finite, or the lengths differ.
    """
    numbers = np.asarray(values, dtype=np.float64)
    if len(numbers) != len(groups) or not len(numbers):
        raise ValueError(
            f"{len(numbers)} values in {len(groups)} groups: one group for each of one or more values"
        )
    if not np.isfinite(numbers).all():
        position = int(np.flatnonzero(~np.isfinite(numbers))[0])
        raise ValueError(
            f"value {position} of {groups[position]} is {numbers[position]}: an estimate needs numbers"
        )
    order = {group: position for position, group in enumerate(dict.fromkeys(groups))}
    of_group = np.array([order[group] for group in groups])
    members = _units([group if isinstance(group, tuple) else (group,) for group in order])
    if len(order) == 1:
        of_group = np.arange(len(numbers))
        members = [{number} for number in range(len(numbers))]
    totals, counts = np.bincount(of_group, numbers), np.bincount(of_group)
    weights = _resampled(members, seed, resamples)
    sizes = weights @ counts
    shown = sizes > 0  # a draw may hold nobody's partner
    # Groups may differ in their number of images, so sums are divided rather than means averaged.
    means = (weights @ totals)[shown] / sizes[shown]
    low, high = np.percentile(means, (2.5, 97.5))
    return Estimate(float(numbers.mean()), (float(low), float(high)))


def _units(groups: Sequence[Sequence[Hashable]]) -> list[Iterable[Hashable]]:
    """Groups by what is resampled: people with the same groups are one unit, named by these."""
    found: dict[Hashable, tuple[int, ...]] = {}
    for number, group in enumerate(groups):
        for person in dict.fromkeys(group):
            found[person] = (*found.get(person, ()), number)
    return [dict.fromkeys(found[person] for person in group) for group in groups]


def _resampled(members: Sequence[Iterable[Hashable]], seed: int, resamples: int) -> np.ndarray:
    """(resamples, groups) how often each group counts where its members are resampled with replacement."""
    units = {unit: number for number, unit in enumerate(dict.fromkeys(itertools.chain(*members)))}
    samples = np.random.default_rng(seed).integers(len(units), size=(resamples, len(units)))
    times = np.array([np.bincount(row, minlength=len(units)) for row in samples])
    weights = [times[:, [units[unit] for unit in group]].prod(axis=1) for group in members]
    return np.stack(weights, axis=1)


def paired_difference(
    a: Sequence[float] | np.ndarray,
    b: Sequence[float] | np.ndarray,
    groups: Sequence[Hashable],
    seed: int = 0,
    resamples: int = 2000,
) -> Estimate:
    """Estimate the mean of a − b over the same cases.

    The interval is narrower than those of the two means, as what makes a case easy or hard for both cancels.
    ``b`` holds (N,) values on the same cases in the same order as ``a``; see :func:`bootstrap` for the rest.
    """
    if len(a) != len(b):
        raise ValueError(f"{len(a)} and {len(b)} values: a paired difference needs the same cases")
    return bootstrap(np.asarray(a, np.float64) - np.asarray(b, np.float64), groups, seed, resamples)
