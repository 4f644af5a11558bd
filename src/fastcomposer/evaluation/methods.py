"""Methods under evaluation: how each comes to know a subject, and how it draws cases."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Protocol, TypeVar

import torch
from torch import Generator, Tensor, nn

from fastcomposer.evaluation.benchmark import NUM_TUNING_PICTURES, Case, Subject
from fastcomposer.evaluation.pipelines import networks_of, pipeline_facts
from fastcomposer.evaluation.results import Costs
from fastcomposer.pipeline import FastComposerPipeline
from fastcomposer.schedulers import split_scheduler, use_scheduler
from fastcomposer.variants import Variant

_Item = TypeVar("_Item")
_Key = tuple[tuple[str, ...], int]  # subjects and setting
PipelineFactory = Callable[[], FastComposerPipeline]


@dataclass(frozen=True)
class Job:
    """A picture to be drawn.

    Attributes:
        case: What it shows.
        setting: Which of the method's settings.
    """

    case: Case
    setting: int


@dataclass(frozen=True)
class Drawn:
    """Pictures of N jobs.

    Attributes:
        images: (N, 3, H, W) float32 in [0, 1] on the CPU.
        unet_calls: For each, how often it went through the U-Net, with or without its partner for guidance;
            of calls that pictures share each has an even part, so that the sum is what was really done.
        seconds: For each, its part of the wall time, in proportion to its calls through the U-Net.
        attention: For each, attention to its subjects' words (K, h, w) float32, where there is any.
    """

    images: Tensor
    unet_calls: tuple[float, ...]
    seconds: tuple[float, ...]
    attention: tuple[Tensor | None, ...]


class Method(Protocol):
    """Draws cases.

    Attributes:
        name: One of :data:`~fastcomposer.evaluation.results.METHODS`.
        settings: What can be told apart in results, such as ``alpha``; one run for each.
        max_subjects: Most subjects in a picture; ``None`` for any number.
        has_attention: Whether attention to subjects' words can be had.
    """

    name: str
    settings: tuple[Mapping[str, Any], ...]
    max_subjects: int | None
    has_attention: bool

    @property
    def networks(self) -> Mapping[str, nn.Module]:
        """What must be on the device."""

    def decides(self, setting: int) -> dict[str, Any]:
        """All that decides the pixels beside a case and its subjects' pictures, as plain values."""

    def pictures(self, subject: Subject) -> tuple[Path, ...]:
        """What the method is given of a subject."""

    def prepare(self, subjects: Sequence[Subject], folder: Path) -> None:
        """Get to know subjects; what is done already is kept in the folder and not done again."""

    def costs(self) -> Costs:
        """What that took, of all subjects prepared."""

    def groups(self, jobs: Sequence[Job]) -> list[tuple[Job, ...]]:
        """Sort jobs into groups that are best drawn together."""

    def draw(self, jobs: Sequence[Job], attention: bool = False) -> Drawn:
        """Draw one of those groups, with attention where it is asked for and can be had."""


class Sampling:
    """What all methods share: a pipeline, and how pictures are drawn with it.

    Args:
        pipeline: Makes the pipeline; called once, when it is first needed.
        sampler: As :func:`~fastcomposer.schedulers.split_scheduler` takes it; its ``alpha`` is not used.
        batch_size: Most pictures in one U-Net call. It does not decide pixels but for rounding.
        group_size: Most pictures of a group: what an interruption loses.

    Raises:
        ValueError: If a size is less than 1.
    """

    max_subjects: int | None = None
    has_attention: bool = False
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
        """See :class:`Method`."""
        return networks_of(self.pipeline)

    def decides(self, setting: int) -> dict[str, Any]:
        """See :class:`Method`."""
        return {**self._facts, "sampler": self.sampler}

    @cached_property
    def _facts(self) -> dict[str, Any]:
        return pipeline_facts(self.pipeline, subjects=self.sees_subjects)


class FastComposerMethod(Sampling):
    """Subjects from one reference picture each, or several, at one or more α.

    Cases of one prompt start from the same noise, whoever their subjects are: the steps before the subjects
    come in are taken once for all subjects and all α of a group.

    Args:
        pipeline: See :class:`Sampling`, as all that is not named here.
        sampler: See there.
        alphas: Each makes a run of its own.
        batch_size: See there.
        group_size: See there.
        labels: Further settings to tell runs apart by, such as ``{"localization": "none"}``.
        num_references: How many pictures of each subject it gets, 1 to 5, of those that methods with
            fine-tuning get.

    Raises:
        ValueError: If a value is out of its range.
    """

    name = "fastcomposer"
    has_attention = True
    sees_subjects = True

    def __init__(
        self,
        pipeline: PipelineFactory,
        sampler: Mapping[str, Any],
        alphas: Sequence[float] = (0.6,),
        batch_size: int = 16,
        group_size: int = 64,
        labels: Mapping[str, Any] | None = None,
        num_references: int = 1,
    ) -> None:
        super().__init__(pipeline, sampler, batch_size, group_size)
        if not 1 <= num_references <= NUM_TUNING_PICTURES:
            raise ValueError(f"num_references={num_references}: between 1 and {NUM_TUNING_PICTURES}")
        self.num_references = num_references
        self.alphas = [float(alpha) for alpha in alphas]
        apart = len({*self.alphas}) == len(self.alphas)
        if not self.alphas or not apart or not all(0 <= alpha <= 1 for alpha in self.alphas):
            raise ValueError(f"alphas={self.alphas}: one or more different numbers between 0 and 1")
        shown = ({"references": num_references} if num_references > 1 else {}) | dict(labels or {})
        self.settings: tuple[Mapping[str, Any], ...] = tuple({"alpha": a, **shown} for a in self.alphas)
        self._references: dict[str, tuple[Path, ...]] = {}

    def decides(self, setting: int) -> dict[str, Any]:
        """See :class:`Method`."""
        return {**super().decides(setting), "alpha": self.alphas[setting]}

    def pictures(self, subject: Subject) -> tuple[Path, ...]:
        """Its references; too few pictures of a subject are an error."""
        found = subject.tuning_pictures[: self.num_references]
        if len(found) < self.num_references:
            raise ValueError(
                f"num_references={self.num_references}, but there are {len(found)} pictures of subject "
                f"{subject.id} in benchmark.pictures"
            )
        return found

    def prepare(self, subjects: Sequence[Subject], folder: Path) -> None:
        """Nothing is learned."""
        self._references |= {subject.id: self.pictures(subject) for subject in subjects}

    def costs(self) -> Costs:
        """See :class:`Method`."""
        return Costs(reference_images=self.num_references)

    def groups(self, jobs: Sequence[Job]) -> list[tuple[Job, ...]]:
        """Jobs of one prompt: variants that start from the same noises."""
        by_prompt: dict[str, dict[_Key, dict[int, Job]]] = {}
        for job in jobs:
            variants = by_prompt.setdefault(job.case.prompt, {})
            variants.setdefault(_variant(job), {})[job.case.seed] = job
        groups = []
        for variants in by_prompt.values():
            alike: dict[tuple[int, ...], list[_Key]] = {}
            for key, by_seed in variants.items():
                alike.setdefault(tuple(sorted(by_seed)), []).append(key)
            for seeds, keys in alike.items():
                for some_seeds in blocks(seeds, min(self.batch_size, self.group_size)):
                    for some in blocks(keys, self.group_size // len(some_seeds)):
                        groups.append(tuple(variants[key][seed] for key in some for seed in some_seeds))
        return groups

    def draw(self, jobs: Sequence[Job], attention: bool = False) -> Drawn:
        """See :class:`Method`."""
        variants = list(dict.fromkeys(map(_variant, jobs)))
        seeds = list(dict.fromkeys(job.case.seed for job in jobs))
        ways = [Variant([self._references[name] for name in names], self.alphas[s]) for names, s in variants]
        started = time.perf_counter()
        output = self.pipeline.sample_variants(
            jobs[0].case.prompt,
            ways,
            generator=[Generator().manual_seed(seed) for seed in seeds],
            batch_size=self.batch_size,
            output_type="pt",
            return_attention=int(attention),
            **self.sampler,
        )
        images = [image.float().cpu() for image in output.images]
        elapsed = time.perf_counter() - started
        rows = [(variants.index(_variant(job)), seeds.index(job.case.seed)) for job in jobs]
        calls = tuple(output.unet_calls[v] / len(seeds) for v, _ in rows)
        maps = [output.attention_maps[v] for v, _ in rows]
        return Drawn(
            torch.stack([images[v][i] for v, i in rows]),
            calls,
            tuple(elapsed * own / sum(calls) for own in calls),
            tuple(None if m is None else m[i, 0] for m, (_, i) in zip(maps, rows, strict=True)),
        )


class TextOnlyMethod(Sampling):
    """The base model without subjects: what a prompt alone gives.

    Its picture of a prompt is the same whoever is asked for: it is drawn once for all of them.

    Args:
        pipeline: See :class:`Sampling`, as all of these; made of the base alone.
        sampler: See there.
        batch_size: See there.
        group_size: See there.
    """

    name = "text_only"
    settings: tuple[Mapping[str, Any], ...] = ({},)

    def pictures(self, subject: Subject) -> tuple[Path, ...]:
        """None."""
        return ()

    def prepare(self, subjects: Sequence[Subject], folder: Path) -> None:
        """Nothing is learned."""

    def costs(self) -> Costs:
        """See :class:`Method`."""
        return Costs(reference_images=0)

    def groups(self, jobs: Sequence[Job]) -> list[tuple[Job, ...]]:
        """Pictures, each with all jobs that it serves."""
        pictures: dict[tuple[str, int], list[Job]] = {}
        for job in jobs:
            pictures.setdefault((job.case.text, job.case.seed), []).append(job)
        return [
            tuple(job for same in some for job in same) for some in blocks(pictures.values(), self.group_size)
        ]

    def draw(self, jobs: Sequence[Job], attention: bool = False) -> Drawn:
        """See :class:`Method`; a picture's calls are divided among its jobs, its time is each one's."""
        asked = [(job.case.text, job.case.seed) for job in jobs]
        pictures = list(dict.fromkeys(asked))
        drawn = draw_texts(self.pipeline, pictures, self.sampler, self.batch_size)
        rows = [pictures.index(key) for key in asked]
        return Drawn(
            drawn.images[rows],
            tuple(drawn.unet_calls[row] / rows.count(row) for row in rows),
            tuple(drawn.seconds[row] for row in rows),
            (None,) * len(jobs),
        )


def draw_texts(
    pipeline: FastComposerPipeline,
    pictures: Sequence[tuple[str, int]],
    sampler: Mapping[str, Any],
    batch_size: int,
) -> Drawn:
    """Draw from text alone.

    Args:
        pipeline: The pipeline.
        pictures: Prompt and seed of each.
        sampler: Arguments of the pipeline call.
        batch_size: Most pictures in one U-Net call.
    """
    images, started, count = [], time.perf_counter(), len(pictures)
    negative = sampler.get("negative_prompt")
    for some in blocks(pictures, batch_size):
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
    return Drawn(torch.cat(images), (calls,) * count, (seconds,) * count, (None,) * count)


def blocks(items: Iterable[_Item], size: int) -> list[list[_Item]]:
    """Cut into pieces of at most so many."""
    chosen = list(items)
    return [chosen[i : i + size] for i in range(0, len(chosen), size)]


def _variant(job: Job) -> _Key:
    return job.case.subjects, job.setting
