"""Prompts with subjects, checked before anything is computed, and sampled."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from diffusers.callbacks import MultiPipelineCallbacks, PipelineCallback
from torch import Generator, Tensor

from fastcomposer.data.reference import prepare_reference, reference_rows
from fastcomposer.models.attention_capture import AttentionAverage
from fastcomposer.models.conditioning import fuse_references, parse_prompts, token_columns
from fastcomposer.models.routing import RoutingPlan
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
    """Subjects of a call, checked by :meth:`SubjectPromptPipeline._check_subjects`."""

    parsed: list[ParsedPrompt]  # none where embeddings are given in their place
    rows: list[list[list[Any]]]  # of each prompt, of each subject, the references
    alpha: float
    prompt_embeds: Tensor | None  # (B, T, d) in place of references
    num_groups: int  # of steps to average attention over; 0 for none


def tensor_inputs(callback: Any, names: list[str] | None) -> list[str]:
    """Names of a callback's tensors: its own where it has some, or the caller's; the latents by default."""
    if isinstance(callback, PipelineCallback | MultiPipelineCallbacks):
        return callback.tensor_inputs
    return ["latents"] if names is None else names


def latents_callback(options: Mapping[str, Any], order: int) -> Callable[[int, Tensor, Tensor], None] | None:
    """Make a callback of ``callback`` and ``callback_steps``; refuse other options by ``TypeError``."""
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

    ONE_SIDE: ClassVar[bool] = False
    """Whether height or width may be given without the other."""

    def _conditions(
        self, prompt: str, negative_prompt: str | None, clip_skip: int | None, size: tuple[int, int]
    ) -> DelayedConditioning:
        """Encode the text of one prompt, for an image of a height and width."""
        raise NotImplementedError

    def _sample(
        self,
        texts: DelayedConditioning,
        schedule: Schedule,
        subjects: Subjects,
        options: StepOptions,
        *,
        size: tuple[int, int],
        repeats: int,
        generator: Generator | list[Generator] | None,
        latents: Tensor | None,
        image_prompts: tuple[Any, Any],
        output_type: str | None,
        num_calls: int | None = None,
    ) -> tuple[Any, list[bool] | None, Tensor | None]:
        """Sample ``repeats`` images of each prompt: images, safety verdicts and attention maps."""
        device, dtype = texts.text.device, texts.text.dtype
        first = schedule.first_subject_call(subjects.alpha)
        subject = self._subject_embeds(texts.text, subjects) if first < schedule.num_calls else None
        conditioning = replace(texts, subject=subject, first_subject_call=first).repeated(repeats)
        count, channels = len(conditioning.text), self.backbone.config.in_channels
        added = self._image_prompts(image_prompts, schedule, device, count)
        latents = self.prepare_latents(count, channels, *size, dtype, device, generator, latents)
        attention = routing = None
        if subjects.parsed:
            slots = token_columns(subjects.parsed, self.fusion, device)
            routing = self._routing(slots, repeats, latents)
        if subjects.num_groups:
            attention = self._attention(slots, repeats, latents, schedule, subjects.num_groups)
        options = replace(options, added_condition=added, attention=attention, routing=routing)
        calls = range(schedule.num_calls if num_calls is None else num_calls)
        self._num_timesteps = len(calls)
        latents = self._denoise(latents, schedule, conditioning, options, calls)
        images, unsafe = self._finish(latents, output_type, generator, dtype)
        self.maybe_free_model_hooks()
        return images, unsafe, None if attention is None else attention.result()

    def _image_prompts(
        self, given: tuple[Any, Any], schedule: Schedule, device: torch.device, count: int
    ) -> dict[str, Any] | None:
        """Conditions of IP-Adapters for N images, where there are image prompts."""
        if given[0] is None and given[1] is None:
            return None
        if schedule.guided is not None:
            raise ValueError("guidance_interval: not together with an IP-Adapter")
        if given[0] is not None:
            self._need("ip_adapter_image needs it; or give ip_adapter_image_embeds", "image_encoder")
        embeds = self.prepare_ip_adapter_image_embeds(*given, device, count, self.do_classifier_free_guidance)
        return {"image_embeds": embeds}

    def _attention(
        self, slots: tuple[Tensor, Tensor], repeats: int, latents: Tensor, schedule: Schedule, num_groups: int
    ) -> AttentionAverage:
        """Average the attention to the subjects' words, over ``repeats`` images of each prompt."""
        idx, present = (slot.repeat_interleave(repeats, dim=0) for slot in slots)
        size = (latents.shape[-2], latents.shape[-1])
        return AttentionAverage(self.backbone, idx, present, size, schedule.num_calls, num_groups)

    def _routing(self, slots: tuple[Tensor, Tensor], repeats: int, latents: Tensor) -> RoutingPlan | None:
        """How the subjects are routed, over ``repeats`` images of each prompt; ``None`` for one subject."""
        idx, present = (slot.repeat_interleave(repeats, dim=0) for slot in slots)
        if self.fusion is None or self.fusion.router is None or present.shape[1] < 2:
            return None
        self.fusion.router.to(latents.device)  # where the fusion is offloaded
        return RoutingPlan(idx, present, (latents.shape[-2], latents.shape[-1]))

    @staticmethod
    def _captions(prompt: Any) -> Any:
        """Prompts without their markers."""
        if prompt is None:
            return None
        return strip_markers(prompt) if isinstance(prompt, str) else [*map(strip_markers, prompt)]

    def _with_references(
        self, text: Tensor, prompt: Any, references: Any, length: int | None = None
    ) -> Tensor:
        """Fuse references into encoded prompts, where there are some."""
        if references is None:
            return text
        if prompt is None:
            raise ValueError("references need a prompt with markers, not prompt_embeds")
        self._need(_FOR_REFERENCES, "image_encoder", "fusion")
        rows = reference_rows(prompt, references)
        return self._fused(text, self._parsed(prompt, [len(row) for row in rows], length), rows)

    def _parsed(
        self, prompt: str | list[str], num_references: list[int] | None, length: int | None = None
    ) -> list[ParsedPrompt]:
        prompts = [prompt] if isinstance(prompt, str) else prompt
        if self.tokenizer is not None:
            prompts = self.maybe_convert_prompt(prompts, self.tokenizer)
        return parse_prompts(prompts, num_references, self._prompt_tokenizer(length), self.fusion)

    def _prompt_tokenizer(self, length: int | None) -> Any:
        """What prompts are read by, with so many tokens of T5 where that is there."""
        return self.tokenizer

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
            size = self.backbone.config.sample_size
            rows, columns = (size, size) if isinstance(size, int) else size
            given = (height, width) if self.ONE_SIDE else (None, None)
            height, width = given[0] or rows * factor, given[1] or columns * factor
        if height % factor or width % factor:
            raise ValueError(f"height and width must be multiples of {factor}, not {height} and {width}")
        return height, width

    def _check_subjects(
        self,
        prompt: Any,
        references: Any,
        alpha: float,
        subject_prompt_embeds: Tensor | None,
        attention: int,
        length: int | None = None,
    ) -> Subjects:
        """Parse the prompts and sort the references, which must match."""
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
        # Markers without references are a mistake, unless no step would see the subjects.
        optional = references is None and (alpha == 0 or subject_prompt_embeds is not None)
        if any(rows) and alpha > 0:
            self._need(_FOR_REFERENCES, "image_encoder", "fusion")
        parsed = self._parsed(prompt, None if optional else [len(row) for row in rows], length)
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
