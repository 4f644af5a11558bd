"""Prompts with subjects as embeddings: what a sampling run is given, checked before anything is computed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from diffusers.callbacks import MultiPipelineCallbacks, PipelineCallback
from torch import Generator, Tensor

from fastcomposer.data.reference import prepare_reference, reference_rows
from fastcomposer.models.attention_capture import AttentionAverage
from fastcomposer.models.conditioning import fuse_references, parse_prompts, subject_slots
from fastcomposer.pipeline.sampling import (
    DelayedConditioning,
    DelayedConditioningPipeline,
    Schedule,
    StepOptions,
)
from fastcomposer.prompt import ParsedPrompt, strip_markers

_FOR_REFERENCES = "references need it; or give subject_prompt_embeds, or alpha=0 for the text alone"


@dataclass(frozen=True)
class Subjects:
    """Who is to be drawn, which :meth:`SubjectPromptPipeline._check_subjects` has checked.

    Attributes:
        parsed: B prompts; none where embeddings stand in for them.
        rows: References of each, several of each subject.
        alpha: Ratio of steps that see the subjects.
        prompt_embeds: (B, T, d) in place of references.
        num_groups: Number of groups of steps to average attention over; 0 for none.
    """

    parsed: list[ParsedPrompt]
    rows: list[list[list[Any]]]
    alpha: float
    prompt_embeds: Tensor | None
    num_groups: int


@dataclass(frozen=True)
class Request:
    """What a pipeline is called for, beside the text: arguments that every pipeline has.

    Attributes:
        size: Height and width in pixels.
        subjects: Who.
        repeats: Images of each prompt.
        eta: η of DDIM.
        generator: One, or one for each image.
        latents: (B·n, C, h, w) initial noise.
        image_prompts: Images for IP-Adapters, and embeddings in place of them.
        output_type: ``pil``, ``np``, ``pt`` or ``latent``.
        callback: Called after every step.
        callback_inputs: Names of its tensors.
        num_calls: U-Net calls to make of those in the schedule; ``None`` for all.
        latents_callback: See :func:`latents_callback`.
    """

    size: tuple[int, int]
    subjects: Subjects
    repeats: int
    eta: float
    generator: Generator | list[Generator] | None
    latents: Tensor | None
    image_prompts: tuple[Any, Any]
    output_type: str | None
    callback: Callable[..., Any] | None
    callback_inputs: Sequence[str] | None
    num_calls: int | None = None
    latents_callback: Callable[[int, Tensor, Tensor], None] | None = None


def tensor_inputs(callback: Any, names: list[str] | None) -> list[str] | None:
    """Names of the tensors that a callback is given: those it says itself, or the caller's."""
    known = isinstance(callback, PipelineCallback | MultiPipelineCallbacks)
    return callback.tensor_inputs if known else names


def latents_callback(options: Mapping[str, Any], order: int) -> Callable[[int, Tensor, Tensor], None] | None:
    """Make what diffusers had before ``callback_on_step_end``, and still takes, ready for the loop.

    Args:
        options: ``callback``, called as ``callback(step, timestep, latents)``, and ``callback_steps``.
        order: Calls per step.

    Raises:
        TypeError: If there is any other option.
    """
    for name in options.keys() - {"callback", "callback_steps"}:
        raise TypeError(f"__call__() got an unexpected keyword argument {name!r}")
    callback, every = options.get("callback"), options.get("callback_steps") or 1
    if callback is None:
        return None

    def after_step(call: int, timestep: Tensor, latents: Tensor) -> None:
        if call % every == 0:
            callback(call // order, timestep, latents)

    return after_step


class SubjectPromptPipeline(DelayedConditioningPipeline):
    """Stable Diffusion's prompts, with markers and reference images."""

    image_encoder: Any
    fusion: Any
    tokenizer: Any
    maybe_convert_prompt: Any
    maybe_free_model_hooks: Any
    prepare_latents: Any
    prepare_extra_step_kwargs: Any
    prepare_ip_adapter_image_embeds: Any

    def _conditions(
        self, prompt: str, negative_prompt: str | None, clip_skip: int | None, size: tuple[int, int]
    ) -> DelayedConditioning:
        """Encode the text of one prompt, for an image of a height and width."""
        raise NotImplementedError

    def _sample(
        self, texts: DelayedConditioning, schedule: Schedule, request: Request
    ) -> tuple[Any, list[bool] | None, Tensor | None]:
        """Sample what a pipeline was called for, once its text is encoded.

        Args:
            texts: The text of B prompts.
            schedule: The U-Net calls.
            request: Everything else.

        Returns:
            Images, verdicts of the safety checker, and attention maps where they are asked for.
        """
        device, repeats, subjects = texts.text.device, request.repeats, request.subjects
        first = schedule.first_subject_call(subjects.alpha)
        subject = self._subject_embeds(texts.text, subjects) if first < schedule.num_calls else None
        conditioning = replace(texts, subject=subject, first_subject_call=first).repeated(repeats)
        count = len(conditioning.text)
        added = self._image_prompts(request, schedule, device, count)
        latents = self.prepare_latents(
            count,
            self.unet.config.in_channels,
            *request.size,
            texts.text.dtype,
            device,
            request.generator,
            request.latents,
        )
        attention = None
        if subjects.num_groups:
            slots = subject_slots(subjects.parsed, device)
            attention = self._attention(slots, repeats, latents, schedule, subjects.num_groups)
        options = StepOptions(
            self.prepare_extra_step_kwargs(request.generator, request.eta),
            added,
            attention,
            request.callback,
            ("latents",) if request.callback_inputs is None else tuple(request.callback_inputs),
            request.latents_callback,
        )
        calls = range(schedule.num_calls if request.num_calls is None else request.num_calls)
        self._num_timesteps = len(calls)
        latents = self._denoise(latents, schedule, conditioning, options, calls)
        images, unsafe = self._finish(latents, request.output_type, request.generator, texts.text.dtype)
        self.maybe_free_model_hooks()
        return images, unsafe, None if attention is None else attention.result()

    def _image_prompts(
        self, request: Request, schedule: Schedule, device: torch.device, count: int
    ) -> dict[str, Any] | None:
        """What IP-Adapters tell the U-Net of N images, where there are image prompts."""
        if all(given is None for given in request.image_prompts):
            return None
        if schedule.guided is not None:
            raise ValueError("guidance_interval: not together with an IP-Adapter")
        if request.image_prompts[0] is not None:
            self._need("ip_adapter_image needs it; or give ip_adapter_image_embeds", "image_encoder")
        embeds = self.prepare_ip_adapter_image_embeds(
            *request.image_prompts, device, count, self.do_classifier_free_guidance
        )
        return {"image_embeds": embeds}

    def _attention(
        self,
        slots: tuple[Tensor, Tensor],
        repeats: int,
        latents: Tensor,
        schedule: Schedule,
        num_groups: int,
    ) -> AttentionAverage:
        """Make what averages the attention to the subjects' words, in so many images of each prompt."""
        idx, present = (slot.repeat_interleave(repeats, dim=0) for slot in slots)
        size = (latents.shape[-2], latents.shape[-1])
        return AttentionAverage(self.unet, idx, present, size, schedule.num_calls, num_groups)

    @staticmethod
    def _captions(prompt: Any) -> Any:
        """Prompts without their markers."""
        if prompt is None:
            return None
        return strip_markers(prompt) if isinstance(prompt, str) else [*map(strip_markers, prompt)]

    def _with_references(self, text: Tensor, prompt: Any, references: Any) -> Tensor:
        """Fuse references into encoded prompts, where there are some.

        Raises:
            PromptError: If markers and references do not match.
            ValueError: If there is no prompt, or no part to encode references with.
        """
        if references is None:
            return text
        if prompt is None:
            raise ValueError("references need a prompt with markers, not prompt_embeds")
        self._need(_FOR_REFERENCES, "image_encoder", "fusion")
        rows = reference_rows(prompt, references)
        return self._fused(text, self._parsed(prompt, [len(row) for row in rows]), rows)

    def _parsed(self, prompt: str | list[str], num_references: list[int] | None) -> list[ParsedPrompt]:
        prompts = [prompt] if isinstance(prompt, str) else prompt
        if self.tokenizer is not None:
            prompts = self.maybe_convert_prompt(prompts, self.tokenizer)
        return parse_prompts(prompts, num_references, self.tokenizer, self.fusion)

    def _fused(self, text: Tensor, parsed: list[ParsedPrompt], rows: list[list[list[Any]]]) -> Tensor:
        size = self.image_encoder.config.image_size
        references = [
            [torch.stack([prepare_reference(image, size) for image in images]) for images in row]
            for row in rows
        ]
        return fuse_references(text, parsed, references, self.image_encoder, self.fusion)

    def _image_size(self, height: int | None, width: int | None) -> tuple[int, int]:
        factor = self.vae_scale_factor
        if not height or not width:
            size = self.unet.config.sample_size
            rows, columns = (size, size) if isinstance(size, int) else size
            height, width = rows * factor, columns * factor
        if height % factor or width % factor:
            raise ValueError(f"height and width must be multiples of {factor}, not {height} and {width}")
        return height, width

    def _check_subjects(
        self, prompt: Any, references: Any, alpha: float, subject_prompt_embeds: Tensor | None, attention: int
    ) -> Subjects:
        """Parse the prompts and sort the references, which must match before anything is computed."""
        if not 0 <= alpha <= 1:
            raise ValueError(f"alpha must lie in [0, 1], not {alpha}")
        if attention < 0:
            raise ValueError(f"return_attention is a number of groups of steps, not {attention}")
        if subject_prompt_embeds is not None and references is not None:
            raise ValueError("give references or subject_prompt_embeds, not both")
        if prompt is None:
            if references is not None or attention:
                what = "return_attention needs" if references is None else "references need"
                raise ValueError(f"{what} a prompt with markers, not prompt_embeds")
            return Subjects([], [], alpha, subject_prompt_embeds, attention)
        count = 1 if isinstance(prompt, str) else len(prompt)
        rows = [[] for _ in range(count)] if references is None else reference_rows(prompt, references)
        # Whoever gives markers without references meant to give some, unless nothing would come of them.
        optional = references is None and (alpha == 0 or subject_prompt_embeds is not None)
        if any(rows) and alpha > 0:
            self._need(_FOR_REFERENCES, "image_encoder", "fusion")
        parsed = self._parsed(prompt, None if optional else [len(row) for row in rows])
        return Subjects(parsed, rows, alpha, subject_prompt_embeds, attention)

    def _subject_embeds(self, text: Tensor, subjects: Subjects) -> Tensor | None:
        """(B, T, d) with the subjects fused in; ``None`` where there are none."""
        given = subjects.prompt_embeds
        if given is None:
            return self._fused(text, subjects.parsed, subjects.rows) if any(subjects.rows) else None
        if given.shape != text.shape:
            raise ValueError(
                f"subject_prompt_embeds are {tuple(given.shape)}, the prompt's embeddings {tuple(text.shape)}"
            )
        return given.to(text)
