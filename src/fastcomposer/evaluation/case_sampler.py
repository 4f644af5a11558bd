"""Sampling of cases: the base of all methods."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import torch
from torch import Generator, Tensor, nn

from fastcomposer.evaluation.benchmark import Case, Subject
from fastcomposer.evaluation.pipelines import networks_of, pipeline_metadata
from fastcomposer.evaluation.results import Costs
from fastcomposer.pipeline.schedulers import split_scheduler, use_scheduler
from fastcomposer.pipeline.stable_diffusion import FastComposerPipeline

_Item = TypeVar("_Item")
PipelineFactory = Callable[[], FastComposerPipeline]


@dataclass(frozen=True)
class ImageRequest:
    """A case to sample, under one of the method's settings."""

    case: Case
    setting: int


@dataclass(frozen=True)
class SampledImages:
    """Images of N requests, and of each its U-Net calls, seconds and attention to its subjects' words."""

    images: Tensor  # (N, 3, H, W) float32 in [0, 1] on the CPU
    unet_calls: tuple[float, ...]  # calls that images share are divided evenly
    seconds: tuple[float, ...]  # wall time in proportion to calls
    attention: tuple[Tensor | None, ...]  # (K, h, w) float32


class Method:
    """Samples cases with a pipeline.

    Args:
        pipeline: Makes the pipeline; called once, when it is first needed.
        sampler: See :func:`~fastcomposer.pipeline.schedulers.split_scheduler`; its ``alpha`` is not used.
        batch_size: Most images in one U-Net call; changes pixels by rounding alone.
        group_size: Most images of a group: what an interruption loses.

    Attributes:
        name: One of :data:`~fastcomposer.evaluation.results.METHODS`.
        settings: What distinguishes rows of results, such as ``alpha``; one run for each.
        max_subjects: Most subjects in an image; ``None`` for any number.
        sees_subjects: Whether pixels depend on references, and attention to subjects' words can be had.

    Raises:
        ValueError: If a size is less than 1.
    """

    name: str
    settings: tuple[Mapping[str, Any], ...] = ({},)
    max_subjects: int | None = None
    sees_subjects: ClassVar[bool] = False

    def __init__(
        self,
        pipeline: PipelineFactory,
        sampler: Mapping[str, Any],
        batch_size: int = 16,
        group_size: int = 64,
    ) -> None:
        for name, value in (("batch_size", batch_size), ("group_size", group_size)):
            if value < 1:
                raise ValueError(f"{name}={value}: at least 1")
        self._factory = pipeline
        self._scheduler, self.sampler = split_scheduler(sampler)
        self.sampler.pop("alpha", None)
        self.batch_size, self.group_size = batch_size, group_size

    @cached_property
    def pipeline(self) -> FastComposerPipeline:
        """The pipeline."""
        pipeline = self._factory()
        pipeline.set_progress_bar_config(disable=True)
        use_scheduler(pipeline, self._scheduler)
        return pipeline

    @property
    def networks(self) -> Mapping[str, nn.Module]:
        """Networks that must be on the device."""
        return networks_of(self.pipeline)

    def config(self, setting: int) -> dict[str, Any]:
        """All that determines the pixels besides a case and its subjects' images, as plain values."""
        return {**self._pipeline_metadata, "sampler": self.sampler}

    @cached_property
    def _pipeline_metadata(self) -> dict[str, Any]:
        return pipeline_metadata(self.pipeline, subjects=self.sees_subjects)

    def images(self, subject: Subject) -> tuple[Path, ...]:
        """Images of a subject that the method gets."""
        raise NotImplementedError

    def prepare(self, subjects: Sequence[Subject], folder: Path) -> None:
        """Learn subjects; what is in the folder already is not learned again. By default nothing."""

    def costs(self) -> Costs:
        """What learning took, over all subjects prepared."""
        raise NotImplementedError

    def groups(self, requests: Sequence[ImageRequest]) -> list[tuple[ImageRequest, ...]]:
        """Sort requests into groups that are best sampled together."""
        raise NotImplementedError

    def sample(self, requests: Sequence[ImageRequest], attention: bool = False) -> SampledImages:
        """Sample one of those groups, with attention where it is asked for and can be had."""
        raise NotImplementedError


def sample_texts(
    pipeline: FastComposerPipeline,
    photos: Sequence[tuple[str, int]],
    sampler: Mapping[str, Any],
    batch_size: int,
) -> SampledImages:
    """Sample prompts with seeds from text alone, at most ``batch_size`` in one U-Net call."""
    images, started, count = [], time.perf_counter(), len(photos)
    negative = sampler.get("negative_prompt")
    for some in blocks(photos, batch_size):
        options = {**sampler, "negative_prompt": None if negative is None else [negative] * len(some)}
        output: Any = pipeline(
            [text for text, _ in some],
            generator=[Generator().manual_seed(seed) for _, seed in some],
            alpha=0.0,
            output_type="pt",
            **options,
        )
        images.append(output.images.float().cpu())
    seconds = (time.perf_counter() - started) / count
    calls = float(pipeline.num_timesteps)
    return SampledImages(torch.cat(images), (calls,) * count, (seconds,) * count, (None,) * count)


def blocks(items: Iterable[_Item], size: int) -> list[list[_Item]]:
    """Cut into pieces of at most so many."""
    chosen = list(items)
    return [chosen[i : i + size] for i in range(0, len(chosen), size)]
