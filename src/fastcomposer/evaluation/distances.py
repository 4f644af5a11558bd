"""Distances of a run's images from real ones, as a prediction of Lightning under any of its strategies."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from functools import cached_property
from itertools import islice
from math import ceil
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fastcomposer.evaluation.generation import PlannedRun
from fastcomposer.evaluation.methods import blocks
from fastcomposer.evaluation.results import Distances
from fastcomposer.evaluation.store import (
    DISTANCES_NAME,
    check_others,
    extractor_metadata,
    images_key,
    read_distances,
    write_distances,
)
from fastcomposer.metrics.distribution import ImageFeatures, feature_distance
from fastcomposer.utils.ranges import Count
from fastcomposer.utils.settings import digest
from fastcomposer.utils.stages import ResumableStage


class DistanceStage(ResumableStage):
    """Measures FID and KID of runs against the data's own held-out images.

    A process measures full runs, so that figures do not depend on how many processes there are.

    Args:
        features: Describes images.
        data: Data module with a validation loader, whose targets are the real images.
        runs: Runs whose images are there when measuring begins.
        num_real: Most real images, the first ones; at least 2.
        batch_size: Images described together, at least 1.
    """

    title = "distances"

    def __init__(
        self,
        features: ImageFeatures,
        data: Any,
        runs: Sequence[PlannedRun] = (),
        num_real: Count = 1000,
        batch_size: Count = 64,
    ) -> None:
        super().__init__()
        for name, value, least in (("num_real", num_real, 2), ("batch_size", batch_size, 1)):
            if value < least:
                raise ValueError(f"distances.{name}={value}: at least {least}")
        self.features, self.data, self.runs = features, data, list(runs)
        self.num_real, self.batch_size = num_real, batch_size

    def check_others(self, output: Path, redone: Collection[Path]) -> None:
        """Refuse to measure beside distances from others; see the function of this name."""
        check_others(output, DISTANCES_NAME, self._made_from, redone)

    def missing_tasks(self) -> list[int]:
        """Numbers of the runs without distances, or with such from other images."""
        return [
            number
            for number, run in enumerate(self.runs)
            if read_distances(run.store.folder, self._key(run), self._made_from) is None
        ]

    def images_of(self, task: int) -> int:
        """Number of images of its run."""
        return len(self.runs[task].benchmark.cases)

    def predict_step(self, batch: int, batch_idx: int) -> int:
        """Measure a run and write its distances; returns how many images it has."""
        run = self.runs[self.tasks[batch]]
        sampled = [
            self._describe(torch.stack([run.store.read_image(case)[0] for case in some]))
            for some in blocks(run.benchmark.cases, self.batch_size)
        ]
        measured = feature_distance(torch.cat(sampled), self._real)
        kind = type(self.features).__name__
        scored_by = digest(self._made_from)
        distances = Distances(*measured, len(self._real), features=kind, scored_by=scored_by)
        write_distances(run.store.folder, self._key(run), self._made_from, distances)
        return len(run.benchmark.cases)

    @cached_property
    def _real(self) -> Tensor:
        return torch.cat([self._describe(images) for images in self._real_images()])[: self.num_real]

    @cached_property
    def _made_from(self) -> dict[str, Any]:
        """What identifies the real images and the features; the first images stand for all."""
        first = next(self._real_images())
        pixels = (first * 255).round().byte().flatten(1).sum(1).tolist()
        return {
            "metrics": {"features": extractor_metadata(self.features)},
            "distances": {"num_real": self.num_real},
            "data": {"module": {"batch_size": self.data.batch_size}, "first_images": digest(pixels)},
        }

    def _real_images(self) -> Iterator[Tensor]:
        loader = self.data.val_dataloader()
        for batch in islice(loader, ceil(self.num_real / self.data.batch_size)):
            yield (batch.pixel_values + 1) / 2

    def _describe(self, images: Tensor) -> Tensor:
        return self.features(images.to(self.device)).float().cpu()

    def _key(self, run: PlannedRun) -> str:
        return images_key(run.store.hash, [case.id for case in run.benchmark.cases])
