"""Several ways to draw one prompt, which share the steps that see the text alone."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from os import PathLike
from typing import Any

import torch
from torch import Generator, Tensor

from fastcomposer.models.attention_capture import AttentionAverage
from fastcomposer.models.conditioning import subject_slots
from fastcomposer.pipeline.sampling import DelayedConditioning, Schedule, StepOptions
from fastcomposer.pipeline.subjects import SubjectPromptPipeline, Subjects


@dataclass(frozen=True)
class Variant:
    """One way to draw a prompt.

    Attributes:
        references: The subjects' images in the order of the markers, as for one prompt of the pipeline's
            call; ``None`` only with α = 0.
        alpha: Ratio of steps that see the subjects, in [0, 1].
    """

    references: Any = None
    alpha: float = 0.6


@dataclass(frozen=True)
class VariantsOutput:
    """What was drawn, and what it cost.

    U-Net calls are counted in rows: one is one image going through the U-Net once, with or without its
    partner for guidance.

    Attributes:
        images: For each variant its n images: a list of PIL images, array (n, H, W, 3) or tensor, by
            ``output_type``.
        nsfw_content_detected: For each variant the safety checker's verdicts; ``None`` without one.
        attention_maps: For each variant (n, G, K, h, w), see :meth:`VariantPipeline.sample_variants`;
            ``None`` for variants that see no subjects, or unless asked for.
        unet_calls: For each variant the calls that it alone took plus an even part of those that it shares
            with others; their sum is the number of calls that were made.
    """

    images: list[Any]
    nsfw_content_detected: list[list[bool] | None]
    attention_maps: list[Tensor | None]
    unet_calls: list[float]

    @classmethod
    def of(cls, count: int, unet_calls: list[float]) -> VariantsOutput:
        """Make room for so many variants."""
        return cls([None] * count, [None] * count, [None] * count, unet_calls)

    def put(
        self, variant: int, own: slice, images: Any, unsafe: list[bool] | None, maps: Tensor | None
    ) -> None:
        """Keep what is a variant's own of what several variants have drawn."""
        self.images[variant] = images[own]
        self.nsfw_content_detected[variant] = None if unsafe is None else unsafe[own]
        self.attention_maps[variant] = None if maps is None else maps[own]


@dataclass(frozen=True)
class _Branching:
    """Where n images of V variants part.

    Attributes:
        schedule: The U-Net calls.
        text: Conditioning on the text alone, of the one prompt.
        subjects: For each variant (1, T, d), or ``None`` for text alone.
        starts: For each variant the index of the first call that sees the subjects.
        width: Most variants in one call.
        eta: η of DDIM.
        slots: Positions and presence (1, K) of the subjects' words, whose attention is wanted, or ``None``.
        num_groups: Number of groups of calls to average it over.
        callback: Called after every call.
    """

    schedule: Schedule
    text: DelayedConditioning
    subjects: list[Tensor | None]
    starts: list[int]
    width: int
    eta: float
    slots: tuple[Tensor, Tensor] | None
    num_groups: int
    callback: Callable[..., Any] | None

    def conditioning(self, rows: int, members: Sequence[int]) -> DelayedConditioning:
        """What N images of some variants see; without variants, what all see before they part."""
        subject = None
        if members:
            chosen = [embeds for v in members if (embeds := self.subjects[v]) is not None]
            subject = torch.cat(chosen).repeat_interleave(rows // len(members), dim=0)
        return replace(self.text.repeated(rows), subject=subject)

    def calls_of(self, count: int) -> list[float]:
        """Calls of n images of each variant, those before variants part divided among them evenly."""
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
    """A sampling run of N images, stopped between two U-Net calls.

    Attributes:
        latents: (N, C, h, w).
        scheduler: The scheduler with what it keeps of earlier calls.
        generators: One for each image.
    """

    latents: Tensor
    scheduler: Any
    generators: list[Generator]

    def branch(self, copies: int) -> _Point:
        """Start so many runs from here, one after the other along N, and leave this one as it is."""
        rows = list(range(len(self.latents))) * copies
        index = torch.tensor(rows, device=self.latents.device)
        scheduler = copy.deepcopy(self.scheduler)
        for name, value in vars(scheduler).items():
            scheduler.__dict__[name] = _take(value, index, self.latents)
        generators = [self.generators[row].clone_state() for row in rows]
        return _Point(self.latents.index_select(0, index), scheduler, generators)


def _take(value: Any, index: Tensor, latents: Tensor) -> Any:
    """Choose rows of what multistep schedulers keep for every image, alone or in lists."""
    if isinstance(value, Tensor) and value.ndim == latents.ndim and len(value) == len(latents):
        return value.index_select(0, index)
    return [_take(entry, index, latents) for entry in value] if type(value) is list else value


def _check(prompt: Any, variants: Sequence[Variant], count: int, batch_size: int | None) -> None:
    """Refuse what cannot be drawn; ``count`` is the number of generators."""
    if not isinstance(prompt, str):
        raise TypeError(f"sample_variants takes one prompt, not {type(prompt).__name__}")
    if not variants or not count:
        raise ValueError("sample_variants takes at least one variant and one generator")
    if batch_size is not None and batch_size < count:
        raise ValueError(f"batch_size={batch_size}: less than the {count} images of a variant")


class VariantPipeline(SubjectPromptPipeline):
    """Draws variants of a prompt from the same noise.

    The steps that see the text alone depend on nothing but prompt, noise and scheduler (docs/method.md, eq.
    6): they are taken once, and every variant goes on from where its subjects come in.
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
        """Draw n images of every variant, each variant from the same n noises.

        The images are those of the pipeline's call for each variant with ``num_images_per_prompt=n``: the
        same bits where ``batch_size`` is n, and up to rounding where variants share a batch.

        Args:
            prompt: A prompt with a ``<|image|>`` marker after each subject's class word.
            variants: Subjects and α of each.
            generator: A generator for each of n images. It draws the image's noise; what a scheduler draws
                after that is the same for every variant.
            batch_size: Most images in one U-Net call, at least n; n by default.
            height: This and all that follows as in the pipeline's call.
            width: Pixels.
            num_inference_steps: Number of steps.
            timesteps: The scheduler's timesteps.
            sigmas: The scheduler's noise levels.
            guidance_scale: Guidance against the negative prompt.
            negative_prompt: What to guide away from.
            eta: η of DDIM.
            latents: (n, C, h, w) initial noise of unit variance.
            output_type: ``pil``, ``np``, ``pt`` or ``latent``.
            guidance_rescale: Share of rescaling guided predictions.
            clip_skip: How many of the text encoder's last layers to leave out.
            return_attention: Number of groups of consecutive calls to average the subjects' attention over;
                unlike in the pipeline's call, not over those that see the text alone. 0 for none.
            guidance_interval: Noise levels between which guidance is applied.
            callback_on_step_end: As in the pipeline's call, with the latents alone; once for what variants
                share, and after they part once for every batch.

        Raises:
            PromptError: If markers and references of a variant do not match.
            ValueError: If there is no variant, or an argument is out of range.
        """
        generators = [generator] if isinstance(generator, Generator) else list(generator)
        count = len(generators)
        _check(prompt, variants, count, batch_size)
        self._need_to_sample(output_type)
        size = self._image_size(height, width)
        checked = [
            self._check_subjects(prompt, variant.references, variant.alpha, None, return_attention)
            for variant in variants
        ]
        self._begin(guidance_scale, guidance_rescale, clip_skip)
        schedule = self._schedule(num_inference_steps, timesteps, sigmas, guidance_interval)
        conditions = self._conditions(prompt, negative_prompt, clip_skip, size)
        plan = self._plan(
            schedule, conditions, checked, (batch_size or count) // count, eta, callback_on_step_end
        )
        channels, dtype = self.unet.config.in_channels, conditions.text.dtype
        noise = self.prepare_latents(
            count, channels, *size, dtype, self._execution_device, generators, latents
        )
        return self._draw(_Point(noise, self.scheduler, generators), plan, output_type)

    def _plan(
        self,
        schedule: Schedule,
        text: DelayedConditioning,
        checked: Sequence[Subjects],
        width: int,
        eta: float,
        callback: Callable[..., Any] | None,
    ) -> _Branching:
        """Lay down where variants part: each where its subjects come in, those without any never."""
        end, groups = schedule.num_calls, checked[0].num_groups
        starts = [schedule.first_subject_call(subjects.alpha) for subjects in checked]
        embeds = self._embeds_of_variants(text.text, checked, [start < end for start in starts])
        starts = [end if own is None else start for own, start in zip(embeds, starts, strict=True)]
        slots = subject_slots(checked[0].parsed, self._execution_device) if groups else None
        return _Branching(schedule, text, embeds, starts, width, eta, slots, groups, callback)

    def _draw(self, point: _Point, plan: _Branching, output_type: str | None) -> VariantsOutput:
        """Carry n images of every variant from noise to images."""
        count, generators, dtype = len(point.latents), point.generators, plan.text.text.dtype
        self._num_timesteps = plan.schedule.num_calls
        output = VariantsOutput.of(len(plan.starts), plan.calls_of(count))
        try:
            for members, final, maps in self._walk(point, plan):
                images, unsafe = self._finish(final, output_type, generators, dtype)
                for place, v in enumerate(members):
                    # Variants that never see their subjects are one and the same.
                    first = 0 if len(final) == count else place * count
                    output.put(v, slice(first, first + count), images, unsafe, maps)
        finally:
            self.scheduler = point.scheduler
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
                if plan.slots is not None:
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
            callback=plan.callback,
        )
        return replace(
            point, latents=self._denoise(point.latents, plan.schedule, conditioning, options, calls)
        )
