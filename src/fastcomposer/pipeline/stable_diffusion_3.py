"""FastComposerSD3Pipeline: the same sampling on Stable Diffusion 3, with the arguments of its pipeline."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from diffusers.callbacks import MultiPipelineCallbacks, PipelineCallback
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.transformers.transformer_sd3 import SD3Transformer2DModel
from diffusers.pipelines.stable_diffusion_3.pipeline_output import StableDiffusion3PipelineOutput
from diffusers.pipelines.stable_diffusion_3.pipeline_stable_diffusion_3 import (
    StableDiffusion3Pipeline,
    calculate_shift,
    retrieve_timesteps,
)
from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler
from torch import Generator, Tensor
from transformers import (  # type: ignore[attr-defined]
    CLIPImageProcessor,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    CLIPVisionModelWithProjection,
    T5EncoderModel,
    T5TokenizerFast,
)

from fastcomposer.models.conditioning import check_widths
from fastcomposer.models.fusion import PairedFusion
from fastcomposer.models.latents import unscale_latents
from fastcomposer.models.text import check_tokenizers, sequence_length
from fastcomposer.pipeline.sampling import (
    DelayedConditioning,
    Schedule,
    StepOptions,
    checked_interval,
    repeat_rows,
)
from fastcomposer.pipeline.subjects import tensor_inputs
from fastcomposer.pipeline.variants import VariantPipeline
from fastcomposer.prompt import JointTokenizer

if TYPE_CHECKING:
    from fastcomposer.models.networks import Networks

_Size = tuple[int, int]


@dataclass
class FastComposerSD3PipelineOutput(StableDiffusion3PipelineOutput):
    """Images, and the attention to the subjects' words.

    Attributes:
        images: List of PIL images, array (N, H, W, 3) or tensor, by ``output_type``.
        attention_maps: See :class:`~fastcomposer.pipeline.stable_diffusion.FastComposerPipelineOutput`.
        nsfw_content_detected: Always ``None``: Stable Diffusion 3 has no safety checker.
    """

    attention_maps: Tensor | None = None
    nsfw_content_detected: list[bool] | None = None


class FastComposerSD3Pipeline(VariantPipeline, StableDiffusion3Pipeline):  # type: ignore[misc]
    """Stable Diffusion 3 with images of the subjects beside the prompt (docs/method.md, eq. 6).

    A ``StableDiffusion3Pipeline`` that also takes ``references`` and ``alpha``. Its components are those of
    ``StableDiffusion3Pipeline``, both CLIP tokenizers with one vocabulary, and ``fusion``, of the widths of
    the text encoders and of the image encoder's projection. Subjects are fused into the states of both CLIP
    encoders and of T5; without T5, or with a fusion trained without it, its states stay what they are in
    ``StableDiffusion3Pipeline``. Any part may be ``None``; calls that need it raise. Without T5, encoding
    needs the transformer, whose configuration has the width of the states.
    ``image_encoder`` reads references, so that an IP-Adapter takes ``ip_adapter_image_embeds``.

    ``max_sequence_length`` is the default of the argument of that name.

    Raises:
        ValueError: If the widths differ, or the CLIP tokenizers' vocabularies.
    """

    BACKBONE = "transformer"
    ONE_SIDE = True
    model_cpu_offload_seq: Any = (
        "text_encoder->text_encoder_2->text_encoder_3->image_encoder->fusion->transformer->vae"
    )
    _optional_components = [  # noqa: RUF012
        *("tokenizer", "tokenizer_2", "tokenizer_3", "text_encoder", "text_encoder_2", "text_encoder_3"),
        *("image_encoder", "feature_extractor"),
    ]
    _callback_tensor_inputs = [  # noqa: RUF012
        *StableDiffusion3Pipeline._callback_tensor_inputs,
        "negative_prompt_embeds",
        "subject_prompt_embeds",
    ]

    def __init__(
        self,
        transformer: SD3Transformer2DModel | None,
        scheduler: FlowMatchEulerDiscreteScheduler | None,
        vae: AutoencoderKL | None,
        text_encoder: CLIPTextModelWithProjection | None,
        tokenizer: CLIPTokenizer | None,
        text_encoder_2: CLIPTextModelWithProjection | None,
        tokenizer_2: CLIPTokenizer | None,
        text_encoder_3: T5EncoderModel | None,
        tokenizer_3: T5TokenizerFast | None,
        image_encoder: CLIPVisionModelWithProjection | None,
        fusion: PairedFusion | None,
        feature_extractor: CLIPImageProcessor | None = None,
        max_sequence_length: int = 256,
    ) -> None:
        if fusion is not None:
            encoders = (text_encoder, text_encoder_2, text_encoder_3)[: max(2, len(fusion.text_dims))]
            texts = [getattr(encoder, "config", None) for encoder in encoders]
            check_widths(texts, getattr(image_encoder, "config", None), fusion)
        check_tokenizers(tokenizer, tokenizer_2)
        initialize: Any = super().__init__  # does not declare that parts may be missing
        initialize(
            transformer=transformer,
            scheduler=scheduler,
            vae=vae,
            text_encoder=text_encoder,
            tokenizer=tokenizer,
            text_encoder_2=text_encoder_2,
            tokenizer_2=tokenizer_2,
            text_encoder_3=text_encoder_3,
            tokenizer_3=tokenizer_3,
            image_encoder=image_encoder,
            feature_extractor=feature_extractor,
        )
        self.register_modules(fusion=fusion)
        self.register_to_config(max_sequence_length=max_sequence_length)

    @classmethod
    def of_model(cls, model: Networks, *, safety_checker: bool) -> FastComposerSD3Pipeline:
        """Make a pipeline that shares a model's networks: :meth:`FastComposer.to_pipeline`."""
        return cls(
            **{"text_encoder_3": None, **model.pipeline_parts()},
            tokenizer_2=model.tokenizer_2,
            tokenizer_3=model.tokenizer_3,
            max_sequence_length=sequence_length(model.family.settings),
        )

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | list[str] | None = None,
        prompt_2: str | list[str] | None = None,
        prompt_3: str | list[str] | None = None,
        height: int | None = None,
        width: int | None = None,
        num_inference_steps: int = 28,
        sigmas: list[float] | None = None,
        guidance_scale: float = 7.0,
        negative_prompt: str | list[str] | None = None,
        negative_prompt_2: str | list[str] | None = None,
        negative_prompt_3: str | list[str] | None = None,
        num_images_per_prompt: int | None = 1,
        generator: Generator | list[Generator] | None = None,
        latents: Tensor | None = None,
        prompt_embeds: Tensor | None = None,
        negative_prompt_embeds: Tensor | None = None,
        pooled_prompt_embeds: Tensor | None = None,
        negative_pooled_prompt_embeds: Tensor | None = None,
        ip_adapter_image: Any = None,
        ip_adapter_image_embeds: Tensor | None = None,
        output_type: str | None = "pil",
        return_dict: bool = True,
        joint_attention_kwargs: dict[str, Any] | None = None,
        clip_skip: int | None = None,
        callback_on_step_end: Callable[..., Any] | PipelineCallback | MultiPipelineCallbacks | None = None,
        callback_on_step_end_tensor_inputs: list[str] | None = None,
        max_sequence_length: int | None = None,
        skip_guidance_layers: list[int] | None = None,
        skip_layer_guidance_scale: float = 2.8,
        skip_layer_guidance_stop: float = 0.2,
        skip_layer_guidance_start: float = 0.01,
        mu: float | None = None,
        *,
        references: Any = None,
        alpha: float = 0.6,
        subject_prompt_embeds: Tensor | None = None,
        return_attention: int = 0,
        guidance_interval: Sequence[float] | None = None,
    ) -> FastComposerSD3PipelineOutput | tuple[Any, ...]:
        """Sample images of the subjects.

        Arguments are those of ``StableDiffusion3Pipeline``; ``references``, ``alpha``,
        ``subject_prompt_embeds`` (B, T, d), ``return_attention`` and ``guidance_interval`` are those of
        :class:`~fastcomposer.pipeline.stable_diffusion.FastComposerPipeline`, with σ / (1 − σ) as the noise
        level. Markers are read from ``prompt``; the pooled embedding stays that of the text.

        Returns:
            Images and, where asked for, attention maps.

        Raises:
            PromptError: If markers and references do not match; only with α = 0 may references be left out.
            ValueError: If another argument is out of range or contradicts another, or ``prompt_2``, or
                ``prompt_3`` with T5, comes with references: every encoder must read the subjects' words.
        """
        inputs = tensor_inputs(callback_on_step_end, callback_on_step_end_tensor_inputs)
        self._need_to_sample(output_type)
        size = self._image_size(height, width)
        length = self._length(max_sequence_length)
        texts = (prompt, prompt_2, prompt_3)
        negatives = (negative_prompt, negative_prompt_2, negative_prompt_3)
        embeds = (prompt_embeds, negative_prompt_embeds, pooled_prompt_embeds, negative_pooled_prompt_embeds)
        self.check_inputs(*texts, *size, *negatives, *embeds, inputs, length)
        subjects = self._check_subjects(
            prompt, references, alpha, subject_prompt_embeds, return_attention, length
        )
        others = {"prompt_2": prompt_2, "prompt_3": prompt_3 if self._reads_t5 else None}
        for name, other in others.items():
            if other is not None and any(subjects.rows):
                raise ValueError(f"{name}: with references, every encoder must read the words of prompt")
        self._begin(guidance_scale, 0.0, clip_skip)
        self._joint_attention_kwargs = joint_attention_kwargs
        self._skip_layer_guidance_scale = skip_layer_guidance_scale
        shift = self._shift(size) if mu is None else mu
        schedule = self._schedule(num_inference_steps, None, sigmas, guidance_interval, shift)
        self._skipped = (
            skip_guidance_layers,
            num_inference_steps * skip_layer_guidance_start,
            num_inference_steps * skip_layer_guidance_stop,
        )
        encode: Any = self.encode_prompt
        encoded = encode(
            *(*texts, self._execution_device, 1, self.do_classifier_free_guidance),
            *(*negatives, *embeds, clip_skip, length),
            lora_scale=(joint_attention_kwargs or {}).get("scale"),
        )
        images, _, maps = self._sample(
            self._conditioning(encoded),
            schedule,
            subjects,
            StepOptions({}, callback=callback_on_step_end, callback_inputs=inputs),
            size=size,
            repeats=num_images_per_prompt or 1,
            generator=generator,
            latents=latents,
            image_prompts=(ip_adapter_image, ip_adapter_image_embeds),
            output_type=output_type,
        )
        if not return_dict:
            return (images,) if maps is None else (images, maps)
        return FastComposerSD3PipelineOutput(images=images, attention_maps=maps)

    def encode_prompt(
        self,
        prompt: str | list[str] | None,
        prompt_2: str | list[str] | None = None,
        prompt_3: str | list[str] | None = None,
        device: torch.device | None = None,
        num_images_per_prompt: int = 1,
        do_classifier_free_guidance: bool = True,
        negative_prompt: str | list[str] | None = None,
        negative_prompt_2: str | list[str] | None = None,
        negative_prompt_3: str | list[str] | None = None,
        prompt_embeds: Tensor | None = None,
        negative_prompt_embeds: Tensor | None = None,
        pooled_prompt_embeds: Tensor | None = None,
        negative_pooled_prompt_embeds: Tensor | None = None,
        clip_skip: int | None = None,
        max_sequence_length: int | None = None,
        lora_scale: float | None = None,
        references: Any = None,
    ) -> tuple[Tensor, Tensor | None, Tensor, Tensor | None]:
        """Encode prompts as Stable Diffusion 3 does, without markers; references are fused in.

        Arguments are those of ``StableDiffusion3Pipeline.encode_prompt``; ``references`` are those of
        :meth:`__call__`.

        Returns:
            (B·n, T, d) of the prompts and of the negative prompts, (B·n, p) pooled of both; those of the
            negative prompts are ``None`` without guidance.

        Raises:
            PromptError: If markers and references do not match.
            ValueError: If a part is needed and missing.
        """
        if prompt_embeds is None or (do_classifier_free_guidance and negative_prompt_embeds is None):
            self._need(
                "give prompt_embeds with pooled_prompt_embeds, and negative ones with guidance",
                *("tokenizer", "tokenizer_2", "text_encoder", "text_encoder_2"),
                "transformer" if self.text_encoder_3 is None else "tokenizer_3",
            )
        encode: Any = super().encode_prompt
        texts = [self._captions(text) for text in (prompt, prompt_2, prompt_3)]
        negatives = (negative_prompt, negative_prompt_2, negative_prompt_3)
        embeds = (prompt_embeds, negative_prompt_embeds, pooled_prompt_embeds, negative_pooled_prompt_embeds)
        length = self._length(max_sequence_length)
        settings = (clip_skip, length, lora_scale)
        text, *others = encode(*texts, device, 1, do_classifier_free_guidance, *negatives, *embeds, *settings)
        text = self._with_references(text, prompt, references, length)
        repeated = repeat_rows((text, *others), num_images_per_prompt)
        prompt_embeds, negative_prompt_embeds, pooled_prompt_embeds, negative_pooled_prompt_embeds = repeated
        return prompt_embeds, negative_prompt_embeds, pooled_prompt_embeds, negative_pooled_prompt_embeds

    def maybe_convert_prompt(self, prompt: list[str], tokenizer: Any) -> list[str]:
        """Prompts as they are: Stable Diffusion 3 loads no textual inversions."""
        return prompt

    def prepare_extra_step_kwargs(self, generator: Any, eta: float) -> dict[str, Any]:
        """No arguments: those of diffusers' pipeline."""
        return {}

    def _length(self, given: int | None) -> int:
        config: Any = self.config
        return config.max_sequence_length if given is None else given

    @property
    def _reads_t5(self) -> bool:
        """Whether subjects are fused into T5's states."""
        fusion: Any = self.fusion
        return self.text_encoder_3 is not None and fusion is not None and len(fusion.text_dims) > 2

    def _prompt_tokenizer(self, length: int | None) -> Any:
        if not self._reads_t5 or self.tokenizer is None:
            return self.tokenizer
        return JointTokenizer(self.tokenizer, self.tokenizer_3, self._length(length))

    def _image_prompts(
        self, given: tuple[Any, Any], schedule: Schedule, device: torch.device, count: int
    ) -> dict[str, Any] | None:
        if given[0] is not None:
            raise ValueError("ip_adapter_image: give ip_adapter_image_embeds; image_encoder reads references")
        added = super()._image_prompts(given, schedule, device, count)
        return added and {"ip_adapter_image_embeds": added["image_embeds"]}

    def _shift(self, size: _Size) -> float | None:
        """Shift of the noise levels for an image size, where the scheduler's depends on it."""
        config: Any = self.scheduler.config
        if not config.get("use_dynamic_shifting", None):
            return None
        rows, columns = (side // self.vae_scale_factor // self.patch_size for side in size)
        return calculate_shift(
            rows * columns,
            config.get("base_image_seq_len", 256),
            config.get("max_image_seq_len", 4096),
            config.get("base_shift", 0.5),
            config.get("max_shift", 1.16),
        )

    def _schedule(
        self,
        num_inference_steps: int,
        timesteps: list[int] | None,
        sigmas: list[float] | None,
        guidance_interval: Sequence[float] | None = None,
        mu: float | None = None,
    ) -> Schedule:
        """Set the scheduler's timesteps, shifted by ``mu`` where that is given."""
        if timesteps is not None:
            raise ValueError("timesteps: flow matching takes sigmas")
        shift: dict[str, Any] = {} if mu is None else {"mu": mu}
        calls, num_steps = retrieve_timesteps(
            self.scheduler, num_inference_steps, self._execution_device, sigmas=sigmas, **shift
        )
        guided = None
        if guidance_interval is not None:
            sigma = calls.double().cpu() / self.scheduler.config.num_train_timesteps
            low, high = checked_interval(guidance_interval)
            guided = tuple(low < level <= high for level in (sigma / (1 - sigma)).tolist())
        return Schedule(calls, num_steps, getattr(self.scheduler, "order", 1), guided)

    def _conditions(
        self, prompt: str, negative_prompt: str | None, clip_skip: int | None, size: _Size
    ) -> DelayedConditioning:
        self.check_inputs(prompt, None, None, *size, negative_prompt)
        self._joint_attention_kwargs, self._skipped = None, (None, 0.0, 0.0)
        guided = self.do_classifier_free_guidance
        return self._conditioning(
            self.encode_prompt(prompt, None, None, None, 1, guided, negative_prompt, clip_skip=clip_skip)
        )

    def _conditioning(
        self, encoded: tuple[Tensor, Tensor | None, Tensor, Tensor | None]
    ) -> DelayedConditioning:
        text, negative, pooled, negative_pooled = encoded
        if not self.do_classifier_free_guidance:
            negative = negative_pooled = None
        return DelayedConditioning(
            text, None, negative, 0, {"pooled_prompt_embeds": (pooled, negative_pooled)}
        )

    def _predict(
        self, inputs: Tensor, timestep: Tensor, state: Mapping[str, Any], options: StepOptions, call: int
    ) -> Tensor:
        """Velocity of the rows of a step; guidance by skipped layers calls the transformer once more."""
        added, joint = options.added_condition or {}, self._joint_attention_kwargs or {}

        def velocity(rows: slice, **more: Any) -> Tensor:
            own = joint | {name: value[rows] for name, value in added.items()}
            return self.transformer(
                hidden_states=inputs[rows],
                timestep=timestep.expand(len(inputs))[rows],
                encoder_hidden_states=state["prompt_embeds"][rows],
                pooled_projections=state["pooled_prompt_embeds"][rows],
                joint_attention_kwargs=own or None,
                return_dict=False,
                **more,
            )[0]

        layers, start, stop = self._skipped
        self._without_layers = None
        if layers is not None and start < call < stop:
            self._without_layers = partial(velocity, slice(len(inputs) // 2, None), skip_layers=layers)
        return velocity(slice(None))

    def _guide(self, prediction: Tensor) -> Tensor:
        guided = super()._guide(prediction)
        if self._without_layers is None:
            return guided
        difference = prediction[len(guided) :] - self._without_layers()
        return guided + difference * self._skip_layer_guidance_scale

    def _guidance_embedding(self, latents: Tensor) -> None:
        """None: no such transformer is distilled to take the guidance scale."""

    def _finish(
        self,
        latents: Tensor,
        output_type: str | None,
        generator: Generator | list[Generator] | None,
        dtype: torch.dtype,
    ) -> tuple[Any, list[bool] | None]:
        """Decode and convert."""
        if output_type == "latent":
            return latents, None
        images = self.vae.decode(unscale_latents(self.vae, latents), return_dict=False)[0]
        return self.image_processor.postprocess(images, output_type=output_type), None
