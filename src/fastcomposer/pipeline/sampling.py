"""The sampling loop: Stable Diffusion's, with prompt embeddings that change after some of the steps."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import torch
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import (
    rescale_noise_cfg,
    retrieve_timesteps,
)
from torch import Generator, Tensor

from fastcomposer.models.attention_capture import AttentionAverage
from fastcomposer.models.lora import merged_lora
from fastcomposer.models.routing import RoutingPlan
from fastcomposer.pipeline.schedulers import guided_calls


@dataclass(frozen=True)
class Schedule:
    """The backbone calls of one sampling run.

    Attributes:
        timesteps: (calls,) one for each call.
        num_steps: Number of steps N.
        order: Calls per step: 2 for schedulers of second order, which make 2N − 1 calls.
        guided: For each call whether guidance is applied; ``None`` for every call.
        runge_kutta_calls: Calls of the Runge-Kutta steps at the start of some schedulers, four each.
    """

    timesteps: Tensor
    num_steps: int
    order: int = 1
    guided: tuple[bool, ...] | None = None
    runge_kutta_calls: int = 0

    @property
    def num_calls(self) -> int:
        """Number of backbone calls."""
        return len(self.timesteps)

    @property
    def num_warmup_calls(self) -> int:
        """Calls beyond those of N steps: 1 for schedulers that run their first step twice."""
        return self.num_calls - self.num_steps * self.order

    def ends_step(self, call: int) -> bool:
        """Whether a step is done after a call."""
        done = call + 1
        return done == self.num_calls or (done > self.num_warmup_calls and done % self.order == 0)

    def guides(self, call: int) -> bool:
        """Whether guidance is applied at a call, where there is any."""
        return self.guided is None or self.guided[call]

    def first_subject_call(self, alpha: float) -> int:
        """Index of the first call that sees the subjects: the first round((1 − α)·N) steps are text-only.

        A half goes to the even number, as Python's ``round`` has it: 2 of 5 steps at α = 0.5, and 2 of 3.

        Args:
            alpha: Ratio of steps with subjects, in [0, 1].

        Returns:
            ``num_calls`` where every call is text-only.
        """
        # Timesteps given by the caller count the calls of second-order schedulers as steps.
        num_steps = min(self.num_steps, math.ceil(self.num_calls / self.order))
        text_steps = round((1 - alpha) * num_steps)
        if text_steps in (0, num_steps):
            return 0 if text_steps == 0 else self.num_calls
        if 4 * text_steps <= self.runge_kutta_calls:
            return 4 * text_steps
        return text_steps * self.order + max(0, self.num_calls - num_steps * self.order)


@dataclass(frozen=True)
class DelayedConditioning:
    """Embeddings for each backbone call: text alone, then text with subjects (docs/method.md, eq. 6).

    Attributes:
        text: (N, T, d) embeddings of N images' prompts.
        subject: (N, T, d) with the subjects fused in, or ``None`` for text alone.
        negative: (N, T, d) of the negative prompts, or ``None`` without guidance.
        first_subject_call: Index of the first backbone call that sees the subjects.
        added: Further conditions by the names that callbacks use, of prompts and of negative prompts:
            Stable Diffusion XL's pooled embeddings (N, p) and sizes (N, 6).
    """

    text: Tensor
    subject: Tensor | None
    negative: Tensor | None
    first_subject_call: int
    added: Mapping[str, tuple[Tensor, Tensor | None]] = field(default_factory=dict)

    def repeated(self, count: int) -> DelayedConditioning:
        """Repeat every prompt for several images."""
        added = {name: repeat_rows(pair, count) for name, pair in self.added.items()}
        text, subject, negative = repeat_rows((self.text, self.subject, self.negative), count)
        return replace(self, text=text, subject=subject, negative=negative, added=added)

    def sees_subjects(self, call: int) -> bool:
        """Whether a backbone call is conditioned on the subjects."""
        return self.subject is not None and call >= self.first_subject_call

    def at(self, call: int, *, guided: bool) -> Tensor:
        """Embeddings of a call: (N, T, d), or (2N, T, d) with the negative prompts first."""
        prompt = self.subject if self.subject is not None and self.sees_subjects(call) else self.text
        return _joined(prompt, self.negative, guided)

    def tensors(self, call: int, *, guided: bool) -> dict[str, Tensor]:
        """Tensors of a call by the names that callbacks use, with N or 2N rows as :meth:`at`."""
        added = {name: _joined(*pair, guided) for name, pair in self.added.items()}
        return {"prompt_embeds": self.at(call, guided=guided), **added}


def repeat_rows(values: Iterable[Tensor | None], count: int) -> Any:
    """Repeat each row of tensors for several images, as a tuple; ``None`` stays."""
    return tuple(None if value is None else value.repeat_interleave(count, dim=0) for value in values)


def _joined(value: Tensor, negative: Tensor | None, guided: bool) -> Tensor:
    return torch.cat([negative, value]) if guided and negative is not None else value


@dataclass(frozen=True)
class StepOptions:
    """Options of every step of a sampling run."""

    scheduler: dict[str, Any]  # arguments of its step
    added_condition: dict[str, Any] | None = None  # of the U-Net, such as an IP-Adapter's
    attention: AttentionAverage | None = None
    routing: RoutingPlan | None = None  # of the calls that see the subjects
    callback: Callable[..., Any] | None = None  # after every backbone call, with the tensors of these names
    callback_inputs: Sequence[str] = ("latents",)
    latents_callback: Callable[[int, Tensor, Tensor], None] | None = None  # after every step


class DelayedConditioningPipeline(DiffusionPipeline):
    """Stable Diffusion's loop over embeddings that depend on the step: a mixin of diffusers' pipelines."""

    BACKBONE: ClassVar[str] = "unet"
    """Component that denoises."""

    scheduler: Any
    fusion: Any

    @property
    def backbone(self) -> Any:
        """The denoising network."""
        return getattr(self, self.BACKBONE)

    def save_pretrained(self, *args: Any, **options: Any) -> None:
        """Save as diffusers does, with the networks' active adapters merged into their weights."""
        with ExitStack() as merged:
            for network in self.components.values():
                merged.enter_context(merged_lora(network))
            super().save_pretrained(*args, **options)

    def _need(self, purpose: str, *parts: str) -> None:
        """Refuse a call for which this pipeline lacks components; ``purpose`` completes the message."""
        missing = [name for name in parts if getattr(self, name) is None]
        if missing:
            raise ValueError(f"this pipeline has no {' and no '.join(missing)}: {purpose}")

    def _need_to_sample(self, output_type: str | None) -> None:
        """Refuse to sample without backbone, scheduler or, unless latents are wanted, VAE."""
        decoding = () if output_type == "latent" else ("vae",)
        self._need("sampling images needs it", self.BACKBONE, "scheduler", *decoding)

    def _begin(
        self,
        guidance_scale: float,
        guidance_rescale: float,
        clip_skip: int | None,
        cross_attention_kwargs: dict[str, Any] | None = None,
    ) -> None:
        """Set the arguments that diffusers' pipelines have as properties."""
        self._guidance_scale, self._guidance_rescale = guidance_scale, guidance_rescale
        self._clip_skip, self._cross_attention_kwargs = clip_skip, cross_attention_kwargs
        self._interrupt = False

    def _schedule(
        self,
        num_inference_steps: int,
        timesteps: list[int] | None,
        sigmas: list[float] | None,
        guidance_interval: Sequence[float] | None = None,
        mu: float | None = None,
    ) -> Schedule:
        """Set the scheduler's timesteps, which also resets its state; ``mu`` is that of :meth:`_shift`."""
        interval = None if guidance_interval is None else checked_interval(guidance_interval)
        calls, num_steps = retrieve_timesteps(
            self.scheduler, num_inference_steps, self._execution_device, timesteps, sigmas
        )
        guided = None if interval is None else guided_calls(calls, self.scheduler, *interval)
        runge_kutta = getattr(self.scheduler, "prk_timesteps", None)
        first = 0 if runge_kutta is None else len(runge_kutta)
        return Schedule(calls, num_steps, getattr(self.scheduler, "order", 1), guided, first)

    def _shift(self, size: tuple[int, int]) -> float | None:
        """Shift of the noise levels for a height and width, where the scheduler's depends on them."""
        return None

    def _denoise(
        self,
        latents: Tensor,
        schedule: Schedule,
        conditioning: DelayedConditioning,
        options: StepOptions,
        calls: range,
    ) -> Tensor:
        """Run latents (N, C, h, w) through consecutive backbone calls; all calls lead from noise to image."""
        state: dict[str, Any] = {
            "latents": latents,
            "negative_prompt_embeds": conditioning.negative,
            "subject_prompt_embeds": conditioning.subject,
            "timestep_cond": self._guidance_embedding(latents),
        }
        joined: bool | None = None
        with self.progress_bar(total=sum(map(schedule.ends_step, calls))) as progress:
            for call in calls:
                if self.interrupt:
                    continue
                timestep = schedule.timesteps[call]
                guided = self.do_classifier_free_guidance and schedule.guides(call)
                inputs = torch.cat([state["latents"]] * 2) if guided else state["latents"]
                # Joined again only where the subjects come in or the number of rows changes, so that tensors
                # set by a callback last until then.
                changed = conditioning.sees_subjects(call) is not joined
                for name, value in conditioning.tensors(call, guided=guided).items():
                    if changed or len(state[name]) != len(inputs):
                        state[name] = value
                joined = conditioning.sees_subjects(call)
                capture, routed = options.attention, options.routing if joined else None
                with (
                    nullcontext() if capture is None else capture.step(call, len(inputs)),
                    nullcontext()
                    if routed is None
                    else self.fusion.router.route(self.backbone, routed.last_of(len(inputs))),
                ):
                    prediction = self._predict(inputs, timestep, state, options, call)
                if guided:
                    prediction = self._guide(prediction)
                state["latents"] = self.scheduler.step(
                    prediction, timestep, state["latents"], **options.scheduler, return_dict=False
                )[0]
                if options.callback is not None:
                    given = {name: state[name] for name in options.callback_inputs}
                    state |= options.callback(self, call, timestep, given)
                    conditioning = replace(
                        conditioning,
                        negative=state["negative_prompt_embeds"],
                        subject=state["subject_prompt_embeds"],
                    )
                if schedule.ends_step(call):
                    progress.update()
                    if options.latents_callback is not None:
                        options.latents_callback(call, timestep, state["latents"])
        return state["latents"]

    def _predict(
        self, inputs: Tensor, timestep: Tensor, state: Mapping[str, Any], options: StepOptions, call: int
    ) -> Tensor:
        """Call the backbone for the rows of a step, (N, C, h, w) or with guidance (2N, C, h, w)."""
        return self.unet(
            self.scheduler.scale_model_input(inputs, timestep),
            timestep,
            encoder_hidden_states=state["prompt_embeds"],
            timestep_cond=state["timestep_cond"],
            cross_attention_kwargs=self.cross_attention_kwargs,
            added_cond_kwargs=_added(state, options),
            return_dict=False,
        )[0]

    def _guide(self, prediction: Tensor) -> Tensor:
        """Classifier-free guidance from (2N, C, h, w) to (N, C, h, w)."""
        unconditional, conditional = prediction.chunk(2)
        guided = unconditional + self.guidance_scale * (conditional - unconditional)
        if self._guidance_rescale > 0:
            guided = rescale_noise_cfg(guided, conditional, guidance_rescale=self._guidance_rescale)
        return guided

    def _guidance_embedding(self, latents: Tensor) -> Tensor | None:
        """Embedding of the guidance scale, for U-Nets distilled to take it."""
        width = self.unet.config.time_cond_proj_dim
        if width is None:
            return None
        scale = torch.tensor(self.guidance_scale - 1).repeat(len(latents))
        return self.get_guidance_scale_embedding(scale, embedding_dim=width).to(latents)

    def _finish(
        self,
        latents: Tensor,
        output_type: str | None,
        generator: Generator | list[Generator] | None,
        dtype: torch.dtype,
    ) -> tuple[Any, list[bool] | None]:
        """Decode, check and convert; returns images and the safety checker's verdicts."""
        images, unsafe = latents, None
        if output_type != "latent":
            scaled = latents / self.vae.config.scaling_factor
            images = self.vae.decode(scaled, return_dict=False, generator=generator)[0]
            images, unsafe = self.run_safety_checker(images, self._execution_device, dtype)
        kept = [True] * len(images) if unsafe is None else [not flag for flag in unsafe]
        return self.image_processor.postprocess(images, output_type=output_type, do_denormalize=kept), unsafe


def checked_interval(interval: Sequence[float]) -> Sequence[float]:
    """Refuse a guidance interval that is no lower and higher noise level by ``ValueError``."""
    if len(interval) != 2 or not 0 <= interval[0] < interval[1]:
        raise ValueError(f"guidance_interval is a lower and a higher noise level, not {list(interval)}")
    return interval


def _added(state: Mapping[str, Any], options: StepOptions) -> dict[str, Any] | None:
    """The U-Net's ``added_cond_kwargs``."""
    names = ("add_text_embeds", "add_time_ids")
    added = {name.removeprefix("add_"): state[name] for name in names if name in state}
    return {**added, **(options.added_condition or {})} or None
