"""Several variants of one prompt, which share the steps that see the text alone."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from os import PathLike
from typing import Any

import torch
from torch import Generator, Tensor

from fastcomposer.models.attention_capture import AttentionAverage
from fastcomposer.models.conditioning import token_columns
from fastcomposer.pipeline.sampling import DelayedConditioning, Schedule, StepOptions
from fastcomposer.pipeline.subjects import SubjectPromptPipeline, Subjects


@dataclass(frozen=True)
class Variant:
    """Subjects and α of one image of a prompt.

    Attributes:
        references: The subjects' images in the order of the markers, as for one prompt of the pipeline's
            call; ``None`` only with α = 0.
        alpha: Ratio of steps that see the subjects, in [0, 1].
    """

    references: Any = None
    alpha: float = 0.6


@dataclass(frozen=True)
class VariantsOutput:
    """Images of all variants, and their cost.

    Backbone calls are counted in rows: one is one image going through the backbone once, with or without its
    partner for guidance.

    Attributes:
        images: For each variant its n images: a list of PIL images, array (n, H, W, 3) or tensor, by
            ``output_type``.
        nsfw_content_detected: For each variant the safety checker's verdicts; ``None`` without one.
        attention_maps: For each variant (n, G, K, h, w), see :meth:`VariantPipeline.sample_variants`;
            ``None`` for variants that see no subjects, or unless asked for.
        unet_calls: For each variant its own calls plus an even part of those that it shares with others;
            their sum is the number of calls made.
    """

    images: list[Any]
    nsfw_content_detected: list[list[bool] | None]
    attention_maps: list[Tensor | None]
    unet_calls: list[float]


@dataclass(frozen=True)
class _Branching:
    """Plan of n images of V variants."""

    schedule: Schedule
    text: DelayedConditioning  # on the text alone, of the one prompt
    subjects: list[Tensor | None]  # (1, T, d) of each variant; None for text alone
    starts: list[int]  # of each variant the index of the first call that sees the subjects
    width: int  # most variants in one call
    eta: float
    slots: tuple[Tensor, Tensor]  # positions and presence (1, K) of words
    num_groups: int
    callback: Callable[..., Any] | None

    def conditioning(self, rows: int, members: Sequence[int]) -> DelayedConditioning:
        """Conditioning of N images of some variants; without variants, of the calls that all share."""
        subject = None
        if members:
            chosen = [embeds for v in members if (embeds := self.subjects[v]) is not None]
            subject = torch.cat(chosen).repeat_interleave(rows // len(members), dim=0)
        return replace(self.text.repeated(rows), subject=subject)

    def calls_of(self, count: int) -> list[float]:
        """Calls of n images of each variant, with shared calls divided evenly."""
        calls = [float(self.schedule.num_calls - start) for start in self.starts]
        done = 0
        for start in sorted({*self.starts}):
            sharing = [v for v, other in enumerate(self.starts) if other >= start]
            for v in sharing:
                calls[v] += (start - done) / len(sharing)
            done = start
        return [number * count for number in calls]


@dataclass(frozen=True)
class _Point:
    """A sampling run of N images, stopped between two backbone calls."""

    latents: Tensor  # (N, C, h, w)
    scheduler: Any
    generators: list[Generator]

    def branch(self, copies: int) -> _Point:
        """Start several runs from here, one after the other along N, and leave this one unchanged."""
        rows = list(range(len(self.latents))) * copies
        index = torch.tensor(rows, device=self.latents.device)
        scheduler = copy.deepcopy(self.scheduler)
        for name, value in vars(scheduler).items():
            scheduler.__dict__[name] = _take(value, index, self.latents)
        generators = [self.generators[row].clone_state() for row in rows]
        return _Point(self.latents.index_select(0, index), scheduler, generators)


def _take(value: Any, index: Tensor, latents: Tensor) -> Any:
    """Select rows of the state that multistep schedulers keep for every image, alone or in lists."""
    if isinstance(value, Tensor) and value.ndim == latents.ndim and len(value) == len(latents):
        return value.index_select(0, index)
    return [_take(entry, index, latents) for entry in value] if type(value) is list else value


class VariantPipeline(SubjectPromptPipeline):
    """Samples variants of a prompt from the same noise.

    The steps that see the text alone depend on nothing but prompt, noise and scheduler (docs/method.md, eq.
    6): they are taken once, and every variant continues where its subjects come in.
    """

    @torch.no_grad()
    def sample_variants(
        self,
        prompt: str,
        variants: Sequence[Variant],
        *,
        generator: Generator | Sequence[Generator],
        batch_size: int | None = None,
        height: int | None = None,
        width: int | None = None,
        num_inference_steps: int = 50,
        timesteps: list[int] | None = None,
        sigmas: list[float] | None = None,
        guidance_scale: float = 7.5,
        negative_prompt: str | None = None,
        eta: float = 0.0,
        latents: Tensor | None = None,
        output_type: str | None = "pil",
        guidance_rescale: float = 0.0,
        clip_skip: int | None = None,
        return_attention: int = 0,
        guidance_interval: Sequence[float] | None = None,
        callback_on_step_end: Callable[..., Any] | None = None,
    ) -> VariantsOutput:
        """Sample n images of every variant, each variant from the same n noises.

        The images are those of the pipeline's call for each variant with ``num_images_per_prompt=n``: the
        same bits where ``batch_size`` is n, and up to rounding where variants share a batch.

        ``generator`` is a generator for each of the n images. It draws the image's noise; what a scheduler
        draws after that is the same for every variant. ``batch_size`` is the most images in one call, at
        least n; n by default. ``return_attention`` averages over groups of the calls that see the subjects
        alone. ``callback_on_step_end`` gets the latents alone, once for shared calls, and after these once
        for every batch. Everything else is as in the pipeline's call, for one prompt.

        Raises:
            PromptError: If markers and references of a variant do not match.
            ValueError: If there is no variant, or an argument is out of range.
        """
        generators = [generator] if isinstance(generator, Generator) else list(generator)
        count = len(generators)
        if not isinstance(prompt, str):
            raise TypeError(f"sample_variants takes one prompt, not {type(prompt).__name__}")
        if not variants or not count:
            raise ValueError("sample_variants takes at least one variant and one generator")
        if batch_size is not None and batch_size < count:
            raise ValueError(f"batch_size={batch_size}: less than the {count} images of a variant")
        self._need_to_sample(output_type)
        size = self._image_size(height, width)
        checked = [
            self._check_subjects(prompt, variant.references, variant.alpha, None, return_attention)
            for variant in variants
        ]
        self._begin(guidance_scale, guidance_rescale, clip_skip)
        schedule = self._schedule(
            num_inference_steps, timesteps, sigmas, guidance_interval, self._shift(size)
        )
        text = self._conditions(prompt, negative_prompt, clip_skip, size)
        end, device, dtype = schedule.num_calls, self._execution_device, text.text.dtype
        starts = [schedule.first_subject_call(subjects.alpha) for subjects in checked]
        embeds = self._embeds_of_variants(text.text, checked, [start < end for start in starts])
        starts = [end if own is None else start for own, start in zip(embeds, starts, strict=True)]
        slots = token_columns(checked[0].parsed, self.fusion, device)
        per_call = (batch_size or count) // count
        plan = _Branching(
            schedule, text, embeds, starts, per_call, eta, slots, return_attention, callback_on_step_end
        )
        channels = self.backbone.config.in_channels
        noise = self.prepare_latents(count, channels, *size, dtype, device, generators, latents)
        own_scheduler, self._num_timesteps = self.scheduler, end
        empty: list[Any] = [None] * len(variants)
        output = VariantsOutput([*empty], [*empty], [*empty], plan.calls_of(count))
        try:
            for members, final, maps in self._walk(_Point(noise, own_scheduler, generators), plan):
                images, unsafe = self._finish(final, output_type, generators, dtype)
                for number, v in enumerate(members):
                    # Variants that never see their subjects are one and the same.
                    first = 0 if len(final) == count else number * count
                    own_rows = slice(first, first + count)
                    output.images[v] = images[own_rows]
                    output.nsfw_content_detected[v] = None if unsafe is None else unsafe[own_rows]
                    output.attention_maps[v] = None if maps is None else maps[own_rows]
        finally:
            self.scheduler = own_scheduler
        self.maybe_free_model_hooks()
        return output

    def _embeds_of_variants(
        self, text: Tensor, checked: Sequence[Subjects], needed: list[bool]
    ) -> list[Tensor | None]:
        """(1, T, d) with the subjects of each variant that needs them; the same references once."""
        known: dict[tuple[Any, ...], Tensor | None] = {}
        embeds = []
        for subjects, need in zip(checked, needed, strict=True):
            key = tuple(
                tuple(r if isinstance(r, str | PathLike) else id(r) for r in images)
                for images in subjects.rows[0]
            )
            if need and key not in known:
                known[key] = self._subject_embeds(text, subjects)
            embeds.append(known[key] if need else None)
        return embeds

    def _walk(self, point: _Point, plan: _Branching) -> Iterator[tuple[list[int], Tensor, Tensor | None]]:
        """Take shared calls once; yields variants with their final latents and attention maps."""
        count, end, done = len(point.latents), plan.schedule.num_calls, 0
        for start in sorted({*plan.starts}):
            point, done = self._advance(point, plan, range(done, start)), start
            members = [v for v, first in enumerate(plan.starts) if first == start]
            if start == end:
                yield members, point.latents, None
                return
            for i in range(0, len(members), plan.width):
                some = members[i : i + plan.width]
                watch = None
                if plan.num_groups:
                    images = len(some) * count
                    watch = self._attention(plan.slots, images, point.latents, plan.schedule, plan.num_groups)
                final = self._advance(point.branch(len(some)), plan, range(start, end), some, watch)
                yield some, final.latents, None if watch is None else watch.result()

    def _advance(
        self,
        point: _Point,
        plan: _Branching,
        calls: range,
        members: Sequence[int] = (),
        attention: AttentionAverage | None = None,
    ) -> _Point:
        """Carry a run through some calls."""
        if not calls:
            return point
        self.scheduler = point.scheduler
        conditioning = plan.conditioning(len(point.latents), members)
        options = StepOptions(
            self.prepare_extra_step_kwargs(point.generators, plan.eta),
            attention=attention,
            routing=self._routing(plan.slots, len(point.latents), point.latents) if members else None,
            callback=plan.callback,
        )
        return replace(
            point, latents=self._denoise(point.latents, plan.schedule, conditioning, options, calls)
        )
