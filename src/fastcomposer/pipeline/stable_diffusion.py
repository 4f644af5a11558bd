"""FastComposerPipeline: sampling with delayed subject conditioning, as an ordinary diffusers pipeline."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from diffusers.callbacks import MultiPipelineCallbacks, PipelineCallback
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.pipelines.stable_diffusion.pipeline_output import StableDiffusionPipelineOutput
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline
from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
from diffusers.schedulers.scheduling_utils import KarrasDiffusionSchedulers
from diffusers.utils.constants import USE_PEFT_BACKEND
from diffusers.utils.peft_utils import scale_lora_layers, unscale_lora_layers
from torch import Generator, Tensor
from transformers import CLIPImageProcessor, CLIPTextModel, CLIPTokenizer, CLIPVisionModelWithProjection

from fastcomposer.models.conditioning import check_widths
from fastcomposer.models.fusion import SubjectFusion
from fastcomposer.pipeline.sampling import DelayedConditioning, StepOptions, repeat_rows
from fastcomposer.pipeline.subjects import latents_callback, tensor_inputs
from fastcomposer.pipeline.variants import VariantPipeline

if TYPE_CHECKING:
    from fastcomposer.models.networks import Networks


@dataclass
class FastComposerPipelineOutput(StableDiffusionPipelineOutput):
    """Images, and the attention to the subjects' words.

    Attributes:
        images: List of PIL images, array (N, H, W, 3) or tensor, by ``output_type``.
        nsfw_content_detected: For each image whether the safety checker objected; ``None`` without one.
        attention_maps: (N, G, K, h, w) float32 on the CPU: attention to each of K subjects' words at latent
            size, averaged over heads, localized layers and the steps of each of G groups; zero in empty
            slots. ``None`` unless asked for.
    """

    attention_maps: Tensor | None = None


class FastComposerPipeline(VariantPipeline, StableDiffusionPipeline):
    """Stable Diffusion with images of the subjects beside the prompt (docs/method.md, eq. 6).

    A ``StableDiffusionPipeline`` that also takes ``references`` and ``alpha``. Its components are those of
    ``StableDiffusionPipeline`` and ``fusion``, of the widths of the text encoder and of the image encoder's
    projection. Any part may be ``None``, to encode prompts alone or to sample from embeddings alone; a call
    that needs it raises.

    Raises:
        ValueError: If the widths differ.
    """

    model_cpu_offload_seq: Any = "text_encoder->image_encoder->fusion->unet->vae"
    _optional_components = [  # noqa: RUF012
        "tokenizer",
        "text_encoder",
        "image_encoder",
        "safety_checker",
        "feature_extractor",
    ]
    _callback_tensor_inputs = [  # noqa: RUF012
        *StableDiffusionPipeline._callback_tensor_inputs,
        "subject_prompt_embeds",
    ]

    def __init__(
        self,
        vae: AutoencoderKL | None,
        text_encoder: CLIPTextModel | None,
        tokenizer: CLIPTokenizer | None,
        unet: UNet2DConditionModel | None,
        scheduler: KarrasDiffusionSchedulers | None,
        safety_checker: StableDiffusionSafetyChecker | None,
        feature_extractor: CLIPImageProcessor | None,
        image_encoder: CLIPVisionModelWithProjection | None,
        fusion: SubjectFusion | None,
        requires_safety_checker: bool = False,
    ) -> None:
        if fusion is not None:
            check_widths(
                [getattr(text_encoder, "config", None)], getattr(image_encoder, "config", None), fusion
            )
        initialize: Any = super().__init__  # does not declare that parts may be missing
        initialize(
            vae=vae,
            text_encoder=text_encoder,
            tokenizer=tokenizer,
            unet=unet,
            scheduler=scheduler,
            safety_checker=safety_checker,
            feature_extractor=feature_extractor,
            image_encoder=image_encoder,
            requires_safety_checker=requires_safety_checker,
        )
        self.register_modules(fusion=fusion)

    @classmethod
    def of_model(cls, model: Networks, *, safety_checker: bool) -> FastComposerPipeline:
        """Make a pipeline that shares a model's networks: :meth:`FastComposer.to_pipeline`."""
        checker, extractor = None, None
        if safety_checker and model.source is not None:
            checker, extractor = model.source.safety_checker()
        return cls(
            **model.pipeline_parts(),
            safety_checker=checker,
            feature_extractor=extractor,
            requires_safety_checker=checker is not None,
        )

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | list[str] | None = None,
        height: int | None = None,
        width: int | None = None,
        num_inference_steps: int = 50,
        timesteps: list[int] | None = None,
        sigmas: list[float] | None = None,
        guidance_scale: float = 7.5,
        negative_prompt: str | list[str] | None = None,
        num_images_per_prompt: int | None = 1,
        eta: float = 0.0,
        generator: Generator | list[Generator] | None = None,
        latents: Tensor | None = None,
        prompt_embeds: Tensor | None = None,
        negative_prompt_embeds: Tensor | None = None,
        ip_adapter_image: Any = None,
        ip_adapter_image_embeds: list[Tensor] | None = None,
        output_type: str | None = "pil",
        return_dict: bool = True,
        cross_attention_kwargs: dict[str, Any] | None = None,
        guidance_rescale: float = 0.0,
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
    ) -> FastComposerPipelineOutput | tuple[Any, ...]:
        """Sample images of the subjects.

        Of N steps the first round((1 − α)·N) see the text alone, the rest the text with the subjects fused
        in, both guided against the negative prompt.

        Args:
            prompt: One prompt or B of them, with a ``<|image|>`` marker after each subject's class word.
            height: Pixels, a multiple of 8 and of the VAE's factor; the U-Net's own size by default.
            width: As height.
            num_inference_steps: Number of steps N.
            timesteps: The scheduler's timesteps in place of N.
            sigmas: The scheduler's noise levels in place of N.
            guidance_scale: Guidance against the negative prompt (paper: 5); none up to 1.
            negative_prompt: What to guide away from; the empty prompt by default.
            num_images_per_prompt: Images n of each prompt.
            eta: η of DDIM, in [0, 1].
            generator: One generator, or one for each of B·n images.
            latents: (B·n, C, h, w) initial noise of unit variance.
            prompt_embeds: (B, T, d) in place of ``prompt``.
            negative_prompt_embeds: (B, T, d) in place of ``negative_prompt``.
            ip_adapter_image: Images for IP-Adapters.
            ip_adapter_image_embeds: Embeddings in place of them.
            output_type: ``pil``, ``np``, ``pt`` or ``latent``.
            return_dict: Whether to return an output object rather than a tuple.
            cross_attention_kwargs: Arguments for attention processors; ``scale`` is that of LoRA layers.
            guidance_rescale: Factor in [0, 1] of rescaling guided predictions to the unguided spread.
            clip_skip: How many of the text encoder's last layers to leave out.
            callback_on_step_end: Called as ``callback(pipeline, step, timestep, tensors)`` after every step.
            callback_on_step_end_tensor_inputs: Names of its tensors; ``subject_prompt_embeds`` is one more.
            references: For one prompt the subjects' images in the order of the markers, a list of images
                where there are several of a subject; for a list of prompts one such list for each. See
                :func:`~fastcomposer.data.reference.reference_rows`, and
                :func:`~fastcomposer.data.reference.prepare_reference` for what an image is.
            alpha: Ratio of steps that see the subjects, in [0, 1]; at 0 the base model's own output.
            subject_prompt_embeds: (B, T, d) in place of ``references``.
            return_attention: Number of groups of consecutive steps to average the subjects' attention over;
                0 for none.
            guidance_interval: Two noise levels σ, above the first and up to the second of which guidance is
                applied; the other backbone calls take half the time. ``None`` for guidance at every call.
            **kwargs: ``callback`` and ``callback_steps``, which diffusers still takes.

        Returns:
            Images, safety verdicts and, where asked for, attention maps.

        Raises:
            PromptError: If markers and references do not match; only with α = 0 may references be left out.
            TypeError: If there is an unknown argument.
            ValueError: If another argument is out of range or contradicts another, or a part is missing.
        """
        step_callback = latents_callback(kwargs, getattr(self.scheduler, "order", 1))
        inputs = tensor_inputs(callback_on_step_end, callback_on_step_end_tensor_inputs)
        self._need_to_sample(output_type)
        size = self._image_size(height, width)
        embeds = (prompt_embeds, negative_prompt_embeds)
        image_prompts = (ip_adapter_image, ip_adapter_image_embeds)
        every = kwargs.get("callback_steps")
        self.check_inputs(prompt, *size, every, negative_prompt, *embeds, *image_prompts, inputs)
        subjects = self._check_subjects(prompt, references, alpha, subject_prompt_embeds, return_attention)
        self._begin(guidance_scale, guidance_rescale, clip_skip, cross_attention_kwargs)
        schedule = self._schedule(num_inference_steps, timesteps, sigmas, guidance_interval)
        text, negative = self.encode_prompt(
            *(prompt, self._execution_device, 1, self.do_classifier_free_guidance, negative_prompt, *embeds),
            lora_scale=(cross_attention_kwargs or {}).get("scale"),
            clip_skip=clip_skip,
        )
        options = StepOptions(
            self.prepare_extra_step_kwargs(generator, eta),
            callback=callback_on_step_end,
            callback_inputs=inputs,
            latents_callback=step_callback,
        )
        images, unsafe, maps = self._sample(
            DelayedConditioning(text, None, negative, 0),
            schedule,
            subjects,
            options,
            size=size,
            repeats=num_images_per_prompt or 1,
            generator=generator,
            latents=latents,
            image_prompts=image_prompts,
            output_type=output_type,
        )
        if not return_dict:
            return (images, unsafe) if maps is None else (images, unsafe, maps)
        return FastComposerPipelineOutput(images=images, nsfw_content_detected=unsafe, attention_maps=maps)

    def encode_prompt(
        self,
        prompt: str | list[str] | None,
        device: torch.device,
        num_images_per_prompt: int,
        do_classifier_free_guidance: bool,
        negative_prompt: str | list[str] | None = None,
        prompt_embeds: Tensor | None = None,
        negative_prompt_embeds: Tensor | None = None,
        lora_scale: float | None = None,
        clip_skip: int | None = None,
        references: Any = None,
    ) -> tuple[Tensor, Tensor | None]:
        """Encode prompts without their markers, as Stable Diffusion does; references are fused in.

        Arguments are those of ``StableDiffusionPipeline.encode_prompt``; ``references`` are those of
        :meth:`__call__`.

        Returns:
            (B·n, T, d) of the prompts and, with guidance, of the negative prompts.

        Raises:
            PromptError: If markers and references do not match.
            ValueError: If a part is needed and missing.
        """
        needs_negative = do_classifier_free_guidance and negative_prompt_embeds is None
        if prompt_embeds is None or needs_negative:
            self._need(
                "give prompt_embeds, and negative_prompt_embeds with guidance", "tokenizer", "text_encoder"
            )
        captions = self._captions(prompt)
        if clip_skip is not None and prompt_embeds is None:
            prompt_embeds = self._earlier_states(captions, clip_skip, device, lora_scale)
        prompt_embeds, negative_prompt_embeds = super().encode_prompt(
            captions,
            device,
            1,
            do_classifier_free_guidance,
            negative_prompt,
            prompt_embeds=prompt_embeds,
            negative_prompt_embeds=negative_prompt_embeds,
            lora_scale=lora_scale,
        )
        prompt_embeds = self._with_references(prompt_embeds, prompt, references)
        embeds = (prompt_embeds, negative_prompt_embeds)
        prompt_embeds, negative_prompt_embeds = repeat_rows(embeds, num_images_per_prompt)
        return prompt_embeds, negative_prompt_embeds

    def _earlier_states(
        self, captions: Any, clip_skip: int, device: torch.device, lora_scale: float | None
    ) -> Tensor:
        """Hidden states of an earlier layer; diffusers reads them from ``text_model``, which is gone."""
        tokens = self.tokenizer(
            self.maybe_convert_prompt(captions, self.tokenizer),
            padding="max_length",
            max_length=self.tokenizer.model_max_length,
            truncation=True,
            return_tensors="pt",
        )
        scale = lora_scale if USE_PEFT_BACKEND else None
        if scale is not None:
            scale_lora_layers(self.text_encoder, scale)
        states = self.text_encoder(tokens.input_ids.to(device), output_hidden_states=True).hidden_states
        if scale is not None:
            unscale_lora_layers(self.text_encoder, scale)
        encoder = getattr(self.text_encoder, "text_model", self.text_encoder)
        return encoder.final_layer_norm(states[-(clip_skip + 1)])

    def _conditions(
        self, prompt: str, negative_prompt: str | None, clip_skip: int | None, size: tuple[int, int]
    ) -> DelayedConditioning:
        self.check_inputs(prompt, *size, None, negative_prompt)
        device, guided = self._execution_device, self.do_classifier_free_guidance
        text, negative = self.encode_prompt(prompt, device, 1, guided, negative_prompt, clip_skip=clip_skip)
        return DelayedConditioning(text, None, negative, 0)
