"""Fine-tuning baselines under evaluation."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from fastcomposer.evaluation.benchmark import Subject
from fastcomposer.evaluation.case_sampler import (
    ImageRequest,
    PipelineFactory,
    SampledImages,
    Sampling,
    blocks,
    sample_texts,
)
from fastcomposer.evaluation.results import METHODS, Costs
from fastcomposer.pipeline.stable_diffusion import FastComposerPipeline
from fastcomposer.training.personalization.concept import Concept, apply_concepts, rewrite_prompt
from fastcomposer.utils.settings import described


class PersonalizedMethod(Sampling):
    """A fine-tuning baseline: learns each subject first, then samples from text.

    Args:
        name: ``textual_inversion``, ``dreambooth`` or ``custom_diffusion``.
        pipeline: Makes the pipeline of the base; see :class:`~fastcomposer.evaluation.case_sampler.Sampling`,
            as all that is not named here.
        personalize: Learns one subject from ``images``, ``word``, ``folder`` and ``name``, or returns what
            was learned before: a ``functools.partial`` of
            :func:`~fastcomposer.training.personalization.personalize.personalize`.
        sampler: See there.
        max_subjects: Most subjects in an image; ``None`` for any number.
        batch_size: See there.
        group_size: See there.

    Raises:
        ValueError: If a value is out of its range.
    """

    settings: tuple[Mapping[str, Any], ...] = ({},)

    def __init__(
        self,
        name: str,
        pipeline: PipelineFactory,
        personalize: Callable[..., Concept],
        sampler: Mapping[str, Any],
        max_subjects: int | None = None,
        batch_size: int = 16,
        group_size: int = 64,
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

    def decides(self, setting: int) -> dict[str, Any]:
        """See :class:`~fastcomposer.evaluation.case_sampler.Method`."""
        recipe = described(self._personalize)
        recipe.pop("trainer", None)  # where it runs; what of it matters is compared with each concept
        return {**super().decides(setting), "recipe": recipe}

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
        """See :class:`~fastcomposer.evaluation.case_sampler.Method`; means over subjects."""
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
        """See :class:`~fastcomposer.evaluation.case_sampler.Method`."""
        subjects = requests[0].case.subjects
        concepts = [self._concepts[name] for name in subjects]
        if self._known is None or self._known[0] != subjects:
            self._known = subjects, apply_concepts(self.pipeline, concepts)
        images = [(rewrite_prompt(request.case.prompt, concepts), request.case.seed) for request in requests]
        return sample_texts(self._known[1], images, self.sampler, self.batch_size)
