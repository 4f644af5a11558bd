"""FastComposerXLPipeline: the same sampling on Stable Diffusion XL, with the arguments of its pipeline."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from diffusers.callbacks import MultiPipelineCallbacks, PipelineCallback
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.pipelines.stable_diffusion_xl.pipeline_output import StableDiffusionXLPipelineOutput
from diffusers.pipelines.stable_diffusion_xl.pipeline_stable_diffusion_xl import StableDiffusionXLPipeline
from diffusers.schedulers.scheduling_utils import KarrasDiffusionSchedulers
from torch import Generator, Tensor
from transformers import (
    CLIPImageProcessor,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    CLIPVisionModelWithProjection,
)

from fastcomposer.models.conditioning import check_widths
from fastcomposer.models.fusion import PairedFusion
from fastcomposer.models.text import check_tokenizers
from fastcomposer.pipeline.sampling import DelayedConditioning, Schedule, StepOptions, repeat_rows
from fastcomposer.pipeline.subjects import latents_callback, tensor_inputs
from fastcomposer.pipeline.variants import VariantPipeline

if TYPE_CHECKING:
    from fastcomposer.models.networks import Networks

_Size = tuple[int, int]


@dataclass
class FastComposerXLPipelineOutput(StableDiffusionXLPipelineOutput):
    """Images, and the attention to the subjects' words.

    Attributes:
        images: List of PIL images, array (N, H, W, 3) or tensor, by ``output_type``.
        attention_maps: See :class:`~fastcomposer.pipeline.stable_diffusion.FastComposerPipelineOutput`.
        nsfw_content_detected: Always ``None``: Stable Diffusion XL has no safety checker.
    """

    attention_maps: Tensor | None = None
    nsfw_content_detected: list[bool] | None = None


class FastComposerXLPipeline(VariantPipeline, StableDiffusionXLPipeline):  # type: ignore[misc]
    """Stable Diffusion XL with images of the subjects beside the prompt (docs/method.md, eq. 6).

    A ``StableDiffusionXLPipeline`` that also takes ``references`` and ``alpha``. Its components are those of
    ``StableDiffusionXLPipeline``, both tokenizers with one vocabulary, and ``fusion``, of the widths of the
    text encoders and of the image encoder's projection. Any part may be ``None``; calls that need it raise.

    Raises:
        ValueError: If the widths differ, or the tokenizers' vocabularies.
    """

    ONE_SIDE = True
    model_cpu_offload_seq: Any = "text_encoder->text_encoder_2->image_encoder->fusion->unet->vae"
    _optional_components = [  # noqa: RUF012
        *("tokenizer", "tokenizer_2", "text_encoder", "text_encoder_2", "image_encoder", "feature_extractor"),
    ]
    _callback_tensor_inputs = [  # noqa: RUF012
        *StableDiffusionXLPipeline._callback_tensor_inputs,
        "negative_prompt_embeds",
        "subject_prompt_embeds",
    ]

    def __init__(
        self,
        vae: AutoencoderKL | None,
        text_encoder: CLIPTextModel | None,
        text_encoder_2: CLIPTextModelWithProjection | None,
        tokenizer: CLIPTokenizer | None,
        tokenizer_2: CLIPTokenizer | None,
        unet: UNet2DConditionModel | None,
        scheduler: KarrasDiffusionSchedulers | None,
        image_encoder: CLIPVisionModelWithProjection | None,
        fusion: PairedFusion | None,
        feature_extractor: CLIPImageProcessor | None = None,
        force_zeros_for_empty_prompt: bool = True,
        add_watermarker: bool | None = None,
    ) -> None:
        if fusion is not None:
            texts = [getattr(encoder, "config", None) for encoder in (text_encoder, text_encoder_2)]
            check_widths(texts, getattr(image_encoder, "config", None), fusion)
        check_tokenizers(tokenizer, tokenizer_2)
        initialize: Any = super().__init__  # does not declare that parts may be missing
        initialize(
            vae=vae,
            text_encoder=text_encoder,
            text_encoder_2=text_encoder_2,
            tokenizer=tokenizer,
            tokenizer_2=tokenizer_2,
            unet=unet,
            scheduler=scheduler,
            image_encoder=image_encoder,
            feature_extractor=feature_extractor,
            force_zeros_for_empty_prompt=force_zeros_for_empty_prompt,
            add_watermarker=add_watermarker,
        )
        self.register_modules(fusion=fusion)

    @classmethod
    def of_model(cls, model: Networks, *, safety_checker: bool) -> FastComposerXLPipeline:
        """Make a pipeline that shares a model's networks: :meth:`FastComposer.to_pipeline`."""
        return cls(
            **model.pipeline_parts(),
            tokenizer_2=model.tokenizer_2,
            force_zeros_for_empty_prompt=model.text.zero_empty,
        )

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | list[str] | None = None,
        prompt_2: str | list[str] | None = None,
        height: int | None = None,
        width: int | None = None,
        num_inference_steps: int = 50,
        timesteps: list[int] | None = None,
        sigmas: list[float] | None = None,
        denoising_end: float | None = None,
        guidance_scale: float = 5.0,
        negative_prompt: str | list[str] | None = None,
        negative_prompt_2: str | list[str] | None = None,
        num_images_per_prompt: int | None = 1,
        eta: float = 0.0,
        generator: Generator | list[Generator] | None = None,
        latents: Tensor | None = None,
        prompt_embeds: Tensor | None = None,
        negative_prompt_embeds: Tensor | None = None,
        pooled_prompt_embeds: Tensor | None = None,
        negative_pooled_prompt_embeds: Tensor | None = None,
        ip_adapter_image: Any = None,
        ip_adapter_image_embeds: list[Tensor] | None = None,
        output_type: str | None = "pil",
        return_dict: bool = True,
        cross_attention_kwargs: dict[str, Any] | None = None,
        guidance_rescale: float = 0.0,
        original_size: _Size | None = None,
        crops_coords_top_left: _Size = (0, 0),
        target_size: _Size | None = None,
        negative_original_size: _Size | None = None,
        negative_crops_coords_top_left: _Size = (0, 0),
        negative_target_size: _Size | None = None,
        clip_skip: int | None = None,
        callback_on_step_end: Callable[..., Any] | PipelineCallback | MultiPipelineCallbacks | None = None,
        callback_on_step_end_tensor_inputs: list[str] | None = None,
        *,
        references: Any = None,
        alpha: float = 0.6,
        subject_prompt_embeds: Tensor | None = None,
        return_attention: int = 0,
        guidance_interval: Sequence[float] | None = None,
        **kwargs: Any,
    ) -> FastComposerXLPipelineOutput | tuple[Any, ...]:
        """Sample images of the subjects.

        Arguments are those of ``StableDiffusionXLPipeline``; ``references``, ``alpha``,
        ``subject_prompt_embeds`` (B, T, d₁ + d₂), ``return_attention``, ``guidance_interval`` and deprecated
        ones are those of :class:`~fastcomposer.pipeline.stable_diffusion.FastComposerPipeline`. Markers are
        read from ``prompt``; the pooled embedding stays that of the text.

        Returns:
            Images and, where asked for, attention maps.

        Raises:
            PromptError: If markers and references do not match; only with α = 0 may references be left out.
            ValueError: If another argument is out of range or contradicts another, or ``prompt_2`` comes with
                references: a subject's word must have one position in both encoders.
        """
        step_callback = latents_callback(kwargs, getattr(self.scheduler, "order", 1))
        inputs = tensor_inputs(callback_on_step_end, callback_on_step_end_tensor_inputs)
        self._need_to_sample(output_type)
        size = self._image_size(height, width)
        every = kwargs.get("callback_steps")
        texts = (prompt, prompt_2, *size, every, negative_prompt, negative_prompt_2)
        embeds = (prompt_embeds, negative_prompt_embeds, pooled_prompt_embeds, negative_pooled_prompt_embeds)
        image_prompts = (ip_adapter_image, ip_adapter_image_embeds)
        self.check_inputs(*texts, *embeds, *image_prompts, inputs)
        subjects = self._check_subjects(prompt, references, alpha, subject_prompt_embeds, return_attention)
        if prompt_2 is not None and any(subjects.rows):
            raise ValueError("prompt_2: with references, both encoders must read the words of prompt")
        self._begin(guidance_scale, guidance_rescale, clip_skip, cross_attention_kwargs)
        self._denoising_end = denoising_end
        schedule = self._schedule(num_inference_steps, timesteps, sigmas, guidance_interval)
        encode: Any = self.encode_prompt
        encoded = encode(
            *(prompt, prompt_2, self._execution_device, 1, self.do_classifier_free_guidance),
            *(negative_prompt, negative_prompt_2, *embeds),
            lora_scale=(cross_attention_kwargs or {}).get("scale"),
            clip_skip=clip_skip,
        )
        sizes = (original_size or size, crops_coords_top_left, target_size or size)
        negative_sizes = sizes
        if negative_original_size is not None and negative_target_size is not None:
            negative_sizes = (negative_original_size, negative_crops_coords_top_left, negative_target_size)
        options = StepOptions(
            self.prepare_extra_step_kwargs(generator, eta),
            callback=callback_on_step_end,
            callback_inputs=inputs,
            latents_callback=step_callback,
        )
        images, _, maps = self._sample(
            self._conditioning(encoded, sizes, negative_sizes),
            schedule,
            subjects,
            options,
            size=size,
            repeats=num_images_per_prompt or 1,
            generator=generator,
            latents=latents,
            image_prompts=image_prompts,
            output_type=output_type,
            num_calls=self._calls_until_end(schedule.timesteps),
        )
        if not return_dict:
            return (images,) if maps is None else (images, maps)
        return FastComposerXLPipelineOutput(images=images, attention_maps=maps)

    def encode_prompt(
        self,
        prompt: str | list[str] | None,
        prompt_2: str | list[str] | None = None,
        device: torch.device | None = None,
        num_images_per_prompt: int = 1,
        do_classifier_free_guidance: bool = True,
        negative_prompt: str | list[str] | None = None,
        negative_prompt_2: str | list[str] | None = None,
        prompt_embeds: Tensor | None = None,
        negative_prompt_embeds: Tensor | None = None,
        pooled_prompt_embeds: Tensor | None = None,
        negative_pooled_prompt_embeds: Tensor | None = None,
        lora_scale: float | None = None,
        clip_skip: int | None = None,
        references: Any = None,
    ) -> tuple[Tensor, Tensor | None, Tensor, Tensor | None]:
        """Encode prompts as Stable Diffusion XL does, without markers; references are fused in.

        Arguments are those of ``StableDiffusionXLPipeline.encode_prompt``; ``references`` are those of
        :meth:`__call__`.

        Returns:
            (B·n, T, d₁ + d₂) of the prompts and of the negative prompts, (B·n, p) pooled of both; those of
            the negative prompts are ``None`` without guidance.

        Raises:
            PromptError: If markers and references do not match.
            ValueError: If a part is needed and missing.
        """
        config: Any = self.config
        zeros = negative_prompt is None and config.force_zeros_for_empty_prompt
        needs_negative = do_classifier_free_guidance and negative_prompt_embeds is None and not zeros
        if prompt_embeds is None or needs_negative:
            self._need(
                "give prompt_embeds with pooled_prompt_embeds, and negative ones with guidance",
                *("tokenizer", "tokenizer_2", "text_encoder", "text_encoder_2"),
            )
        encode: Any = super().encode_prompt  # lists of negative prompts are taken, though not declared
        texts = (self._captions(prompt), self._captions(prompt_2), device, 1, do_classifier_free_guidance)
        embeds = (prompt_embeds, negative_prompt_embeds, pooled_prompt_embeds, negative_pooled_prompt_embeds)
        text, *others = encode(*texts, negative_prompt, negative_prompt_2, *embeds, lora_scale, clip_skip)
        text = self._with_references(text, prompt, references)
        repeated = repeat_rows((text, *others), num_images_per_prompt)
        prompt_embeds, negative_prompt_embeds, pooled_prompt_embeds, negative_pooled_prompt_embeds = repeated
        return prompt_embeds, negative_prompt_embeds, pooled_prompt_embeds, negative_pooled_prompt_embeds

    def _schedule(self, *arguments: Any) -> Schedule:
        """Set the timesteps, and begin with the first even where rounding has made the second the same."""
        schedule = super()._schedule(*arguments)
        if hasattr(self.scheduler, "set_begin_index"):
            self.scheduler.set_begin_index(0)
        return schedule

    def _conditions(
        self, prompt: str, negative_prompt: str | None, clip_skip: int | None, size: _Size
    ) -> DelayedConditioning:
        self.check_inputs(prompt, None, *size, None, negative_prompt)
        self._denoising_end = None
        guided = self.do_classifier_free_guidance
        encoded = self.encode_prompt(prompt, None, None, 1, guided, negative_prompt, clip_skip=clip_skip)
        sizes = (size, (0, 0), size)
        return self._conditioning(encoded, sizes, sizes)

    def _conditioning(
        self,
        encoded: tuple[Tensor, Tensor | None, Tensor, Tensor | None],
        sizes: tuple[_Size, _Size, _Size],
        negative_sizes: tuple[_Size, _Size, _Size],
    ) -> DelayedConditioning:
        """Join encoded prompts with the original size, the crop's corner and the target size."""
        text, negative, pooled, negative_pooled = encoded
        wanted, negative_wanted = (
            self._get_add_time_ids(*given, text.dtype, pooled.shape[-1]).to(text.device).expand(len(text), -1)
            for given in (sizes, negative_sizes)
        )
        if not self.do_classifier_free_guidance:
            negative = negative_pooled = negative_wanted = None
        elif negative_pooled is not None:
            negative_pooled = negative_pooled.to(text.device)
        added = {
            "add_text_embeds": (pooled.to(text.device), negative_pooled),
            "add_time_ids": (wanted, negative_wanted),
        }
        return DelayedConditioning(text, None, negative, 0, added)

    def _calls_until_end(self, timesteps: Tensor) -> int | None:
        """Number of calls until ``denoising_end``, where another pipeline continues."""
        end = self.denoising_end
        if not isinstance(end, float) or not 0 < end < 1:
            return None
        steps = self.scheduler.config.num_train_timesteps
        return int((timesteps >= round(steps - end * steps)).sum())

    def _finish(
        self,
        latents: Tensor,
        output_type: str | None,
        generator: Generator | list[Generator] | None,
        dtype: torch.dtype,
    ) -> tuple[Any, list[bool] | None]:
        """Decode and convert, the VAE in float32 where it would overflow in half precision."""
        if output_type == "latent":
            return latents, None
        config, vae_dtype = self.vae.config, self.vae.dtype
        upcast = vae_dtype == torch.float16 and config.force_upcast
        if upcast:
            self.vae.to(dtype=torch.float32)
            latents = latents.float()
        mean, std = getattr(config, "latents_mean", None), getattr(config, "latents_std", None)
        if mean is not None and std is not None:
            shape = (1, -1, 1, 1)
            latents = latents * torch.tensor(std).view(shape).to(latents) / config.scaling_factor
            latents = latents + torch.tensor(mean).view(shape).to(latents)
        else:
            latents = latents / config.scaling_factor
        images = self.vae.decode(latents, return_dict=False)[0]
        if upcast:
            self.vae.to(dtype=vae_dtype)
        if self.watermark is not None:
            images = self.watermark.apply_watermark(images)
        return self.image_processor.postprocess(images, output_type=output_type), None
