"""Methods to evaluate: FastComposer, the base model without subjects, and the fine-tuning baselines."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeVar

import torch
from torch import Generator, Tensor, nn

from fastcomposer.evaluation.benchmark import NUM_TUNING_IMAGES, Case, Subject
from fastcomposer.evaluation.pipelines import networks_of, pipeline_metadata
from fastcomposer.evaluation.results import METHODS, Costs
from fastcomposer.pipeline.schedulers import split_scheduler, use_scheduler
from fastcomposer.pipeline.stable_diffusion import FastComposerPipeline
from fastcomposer.pipeline.variants import Variant
from fastcomposer.training.personalization.concept import Concept, apply_concepts, rewrite_prompt
from fastcomposer.utils.ranges import Count
from fastcomposer.utils.settings import described

_Item = TypeVar("_Item")
PipelineFactory = Callable[[], FastComposerPipeline]


@dataclass(frozen=True)
class ImageRequest:
    """A case to sample, under one of the method's settings."""

    case: Case
    setting: int


@dataclass(frozen=True)
class SampledImages:
    """Images of N requests, and of each its backbone calls, seconds and attention to its subjects' words."""

    images: Tensor  # (N, 3, H, W) float32 in [0, 1] on the CPU
    unet_calls: tuple[float, ...]  # calls that images share are divided evenly
    seconds: tuple[float, ...]  # wall time in proportion to calls
    attention: tuple[Tensor | None, ...]  # (K, h, w) float32


class Method:
    """Samples cases with a pipeline.

    Args:
        pipeline: Makes the pipeline; called once, when it is first needed.
        sampler: See :func:`~fastcomposer.pipeline.schedulers.split_scheduler`; its ``alpha`` is not used.
        batch_size: Most images in one backbone call; changes pixels by rounding alone.
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
        batch_size: Count = 16,
        group_size: Count = 64,
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
    """Sample prompts with seeds from text alone, at most ``batch_size`` in one backbone call."""
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


_Key = tuple[tuple[str, ...], int]  # subjects and setting


class FastComposerMethod(Method):
    """Subjects from one or several reference images each, at one or more α.

    Cases of one prompt start from the same noise, whoever their subjects are: the steps before the subjects
    come in are taken once for all subjects and all α of a group.

    Args:
        pipeline: See :class:`Method`, as all that is not listed here.
        sampler: See ``Method``.
        alphas: Each makes a run of its own; different numbers in [0, 1].
        batch_size: See ``Method``.
        group_size: See ``Method``.
        labels: Further settings to distinguish runs by, such as ``{"localization": "none"}``.
        num_references: Images of each subject, 1 to 5.
        max_subjects: Most subjects in an image; ``None`` for any number.
        name: ``fastcomposer`` or ``fastcomposer_id``.

    Raises:
        ValueError: If a value is out of its range.
    """

    sees_subjects = True

    def __init__(
        self,
        pipeline: PipelineFactory,
        sampler: Mapping[str, Any],
        alphas: Sequence[float] = (0.6,),
        batch_size: Count = 16,
        group_size: Count = 64,
        labels: Mapping[str, Any] | None = None,
        num_references: Count = 1,
        max_subjects: Count | None = None,
        name: Literal["fastcomposer", "fastcomposer_id"] = "fastcomposer",
    ) -> None:
        super().__init__(pipeline, sampler, batch_size, group_size)
        self.name = name
        if not 1 <= num_references <= NUM_TUNING_IMAGES:
            raise ValueError(f"num_references={num_references}: between 1 and {NUM_TUNING_IMAGES}")
        self.num_references, self.max_subjects = num_references, max_subjects
        self.alphas = [float(alpha) for alpha in alphas]
        apart = len({*self.alphas}) == len(self.alphas)
        if not self.alphas or not apart or not all(0 <= alpha <= 1 for alpha in self.alphas):
            raise ValueError(f"alphas={self.alphas}: one or more different numbers between 0 and 1")
        shown = ({"references": num_references} if num_references > 1 else {}) | dict(labels or {})
        self.settings: tuple[Mapping[str, Any], ...] = tuple({"alpha": a, **shown} for a in self.alphas)
        self._references: dict[str, tuple[Path, ...]] = {}

    def config(self, setting: int) -> dict[str, Any]:
        """See ``Method``; also the alpha."""
        return {**super().config(setting), "alpha": self.alphas[setting]}

    def images(self, subject: Subject) -> tuple[Path, ...]:
        """Its references; too few images of a subject are an error."""
        found = subject.tuning_images[: self.num_references]
        if len(found) < self.num_references:
            raise ValueError(
                f"num_references={self.num_references}, but there are {len(found)} images of subject "
                f"{subject.id} in benchmark.images"
            )
        return found

    def prepare(self, subjects: Sequence[Subject], folder: Path) -> None:
        """Register references; nothing is learned."""
        self._references |= {subject.id: self.images(subject) for subject in subjects}

    def costs(self) -> Costs:
        """The number of references alone."""
        return Costs(reference_images=self.num_references)

    def groups(self, requests: Sequence[ImageRequest]) -> list[tuple[ImageRequest, ...]]:
        """Requests of one prompt: variants that start from the same noises."""
        by_prompt: dict[str, dict[_Key, dict[int, ImageRequest]]] = {}
        for request in requests:
            variants = by_prompt.setdefault(request.case.prompt, {})
            variants.setdefault(_variant(request), {})[request.case.seed] = request
        groups = []
        for variants in by_prompt.values():
            same_seeds: dict[tuple[int, ...], list[_Key]] = {}
            for key, by_seed in variants.items():
                same_seeds.setdefault(tuple(sorted(by_seed)), []).append(key)
            for seeds, keys in same_seeds.items():
                for some_seeds in blocks(seeds, min(self.batch_size, self.group_size)):
                    for some in blocks(keys, self.group_size // len(some_seeds)):
                        groups.append(tuple(variants[key][seed] for key in some for seed in some_seeds))
        return groups

    def sample(self, requests: Sequence[ImageRequest], attention: bool = False) -> SampledImages:
        """Sample all variants of a prompt together."""
        variants = list(dict.fromkeys(map(_variant, requests)))
        seeds = list(dict.fromkeys(request.case.seed for request in requests))
        ways = [Variant([self._references[name] for name in names], self.alphas[s]) for names, s in variants]
        started = time.perf_counter()
        output = self.pipeline.sample_variants(
            requests[0].case.prompt,
            ways,
            generator=[Generator().manual_seed(seed) for seed in seeds],
            batch_size=self.batch_size,
            output_type="pt",
            return_attention=int(attention),
            **self.sampler,
        )
        images = [image.float().cpu() for image in output.images]
        elapsed = time.perf_counter() - started
        rows = [(variants.index(_variant(request)), seeds.index(request.case.seed)) for request in requests]
        calls = tuple(output.unet_calls[v] / len(seeds) for v, _ in rows)
        maps = [output.attention_maps[v] for v, _ in rows]
        return SampledImages(
            torch.stack([images[v][i] for v, i in rows]),
            calls,
            tuple(elapsed * own / sum(calls) for own in calls),
            tuple(None if m is None else m[i, 0] for m, (_, i) in zip(maps, rows, strict=True)),
        )


class TextOnlyMethod(Method):
    """The base model without subjects.

    Its image of a prompt is the same whoever is asked for: it is sampled once for all of them.
    """

    name = "text_only"

    def images(self, subject: Subject) -> tuple[Path, ...]:
        """None."""
        return ()

    def costs(self) -> Costs:
        """None."""
        return Costs(reference_images=0)

    def groups(self, requests: Sequence[ImageRequest]) -> list[tuple[ImageRequest, ...]]:
        """Images, each with all requests that it serves."""
        images: dict[tuple[str, int], list[ImageRequest]] = {}
        for request in requests:
            images.setdefault((request.case.text, request.case.seed), []).append(request)
        return [
            tuple(request for same in some for request in same)
            for some in blocks(images.values(), self.group_size)
        ]

    def sample(self, requests: Sequence[ImageRequest], attention: bool = False) -> SampledImages:
        """Sample images; their calls are divided among the requests they serve."""
        asked = [(request.case.text, request.case.seed) for request in requests]
        images = list(dict.fromkeys(asked))
        sampled = sample_texts(self.pipeline, images, self.sampler, self.batch_size)
        rows = [images.index(key) for key in asked]
        return SampledImages(
            sampled.images[rows],
            tuple(sampled.unet_calls[row] / rows.count(row) for row in rows),
            tuple(sampled.seconds[row] for row in rows),
            (None,) * len(requests),
        )


class PersonalizedMethod(Method):
    """A fine-tuning baseline: learns each subject first, then samples from text.

    Args:
        name: ``textual_inversion``, ``dreambooth`` or ``custom_diffusion``.
        pipeline: Of the base; see :class:`Method`, as all others.
        personalize: Learns one subject, or loads what was learned before: a ``functools.partial`` of
            :func:`~fastcomposer.training.personalization.personalize.personalize`.
        sampler: See ``Method``.
        max_subjects: Most subjects in an image; ``None`` for any number.
        batch_size: See ``Method``.
        group_size: See ``Method``.

    Raises:
        ValueError: If a value is out of its range.
    """

    def __init__(
        self,
        name: str,
        pipeline: PipelineFactory,
        personalize: Callable[..., Concept],
        sampler: Mapping[str, Any],
        max_subjects: Count | None = None,
        batch_size: Count = 16,
        group_size: Count = 64,
    ) -> None:
        super().__init__(pipeline, sampler, batch_size, group_size)
        if name not in METHODS:
            raise ValueError(f"methods.{name}: no such method; there are {', '.join(METHODS)}")
        if not isinstance(personalize, partial):
            raise ValueError(
                f"methods.{name}.personalize: a functools.partial (_partial_: true) is wanted, "
                f"not {personalize!r}"
            )
        self.name, self.max_subjects = name, max_subjects
        self._personalize = personalize
        self._concepts: dict[str, Concept] = {}
        self._num_images = 0
        self._known: tuple[tuple[str, ...], FastComposerPipeline] | None = None

    def config(self, setting: int) -> dict[str, Any]:
        """See ``Method``; also the recipe."""
        recipe = described(self._personalize)
        recipe.pop("trainer", None)  # where it runs; what of it matters is compared with each concept
        return {**super().config(setting), "recipe": recipe}

    def images(self, subject: Subject) -> tuple[Path, ...]:
        """The reference and up to four more."""
        return subject.tuning_images

    def prepare(self, subjects: Sequence[Subject], folder: Path) -> None:
        """Learn subjects that have not been learned yet."""
        for subject in subjects:
            self._num_images = max(self._num_images, len(subject.tuning_images))
            self._concepts[subject.id] = self._personalize(
                images=subject.tuning_images, word=subject.word, folder=folder, name=subject.id
            )

    def costs(self) -> Costs:
        """Means over subjects, and the most memory."""
        concepts = list(self._concepts.values())
        return Costs(
            self._num_images,
            sum(concept.seconds for concept in concepts) / len(concepts),
            round(sum(concept.stored_bytes for concept in concepts) / len(concepts)),
            max(concept.peak_memory_bytes for concept in concepts),
        )

    def groups(self, requests: Sequence[ImageRequest]) -> list[tuple[ImageRequest, ...]]:
        """Requests of the same subjects."""
        by_subjects: dict[tuple[str, ...], list[ImageRequest]] = {}
        for request in requests:
            by_subjects.setdefault(request.case.subjects, []).append(request)
        return [tuple(some) for same in by_subjects.values() for some in blocks(same, self.group_size)]

    def sample(self, requests: Sequence[ImageRequest], attention: bool = False) -> SampledImages:
        """Sample from text, with the concepts applied."""
        subjects = requests[0].case.subjects
        concepts = [self._concepts[name] for name in subjects]
        if self._known is None or self._known[0] != subjects:
            self._known = subjects, apply_concepts(self.pipeline, concepts)
        images = [(rewrite_prompt(request.case.prompt, concepts), request.case.seed) for request in requests]
        return sample_texts(self._known[1], images, self.sampler, self.batch_size)


def _variant(request: ImageRequest) -> _Key:
    return request.case.subjects, request.setting
