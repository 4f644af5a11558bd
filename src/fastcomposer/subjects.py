"""Prompts with subjects as embeddings: what a sampling run is given, checked before anything is computed."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastcomposer.data.reference import prepare_reference, reference_rows
from fastcomposer.models.conditioning import fuse_references, parse_prompts
from fastcomposer.prompt import ParsedPrompt, strip_markers
from fastcomposer.sampling import DelayedConditioningPipeline


class SubjectPromptPipeline(DelayedConditioningPipeline):
    """Stable Diffusion's prompts, with markers and reference images."""

    image_encoder: Any
    fusion: Any

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
        """Encode prompts as Stable Diffusion does, markers left out; with references, the subjects fused in.

        Args:
            prompt: One prompt or B of them.
            device: Where to.
            num_images_per_prompt: How often to repeat each.
            do_classifier_free_guidance: Whether the negative prompt is needed.
            negative_prompt: What to guide away from; the empty prompt by default.
            prompt_embeds: (B, T, d) in place of ``prompt``.
            negative_prompt_embeds: (B, T, d) in place of ``negative_prompt``.
            lora_scale: Scale of LoRA layers in the text encoder.
            clip_skip: How many of the text encoder's last layers to leave out.
            references: See :meth:`__call__`; ``None`` for text-only embeddings.

        Returns:
            (B·n, T, d) of the prompts and, with guidance, of the negative prompts.

        Raises:
            PromptError: If markers and references do not match.
            ValueError: If a tokenizer is needed and there is none.
        """
        needs_negative = do_classifier_free_guidance and negative_prompt_embeds is None
        if self.tokenizer is None and (prompt_embeds is None or needs_negative):
            raise ValueError(
                "this pipeline has no tokenizer: give prompt_embeds, and negative_prompt_embeds with guidance"
            )
        captions = prompt
        if prompt is not None:
            captions = strip_markers(prompt) if isinstance(prompt, str) else [*map(strip_markers, prompt)]
        if clip_skip is not None and prompt_embeds is None:
            prompt_embeds = self._earlier_states(captions, clip_skip, device)
        text, negative = super().encode_prompt(
            captions,
            device,
            1,
            do_classifier_free_guidance,
            negative_prompt,
            prompt_embeds=prompt_embeds,
            negative_prompt_embeds=negative_prompt_embeds,
            lora_scale=lora_scale,
        )
        if references is not None:
            if prompt is None:
                raise ValueError("references need a prompt with markers, not prompt_embeds")
            rows = reference_rows(prompt, references)
            text = self._fused(text, self._parsed(prompt, [len(row) for row in rows]), rows)
        text = text.repeat_interleave(num_images_per_prompt, dim=0)
        return text, None if negative is None else negative.repeat_interleave(num_images_per_prompt, dim=0)

    def _earlier_states(self, captions: Any, clip_skip: int, device: torch.device) -> Tensor:
        """Hidden states of an earlier layer; diffusers looks for them in a ``text_model`` that is gone."""
        tokens = self.tokenizer(
            self.maybe_convert_prompt(captions, self.tokenizer),
            padding="max_length",
            max_length=self.tokenizer.model_max_length,
            truncation=True,
            return_tensors="pt",
        )
        states = self.text_encoder(tokens.input_ids.to(device), output_hidden_states=True).hidden_states
        encoder = getattr(self.text_encoder, "text_model", self.text_encoder)
        return encoder.final_layer_norm(states[-(clip_skip + 1)])

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
        return fuse_references(text, parsed, references, self.image_encoder, self.fusion).prompt_embeds

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
    ) -> tuple[list[ParsedPrompt], list[list[list[Any]]]]:
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
            return [], []
        count = 1 if isinstance(prompt, str) else len(prompt)
        rows = [[] for _ in range(count)] if references is None else reference_rows(prompt, references)
        # Whoever gives markers without references meant to give some, unless nothing would come of them.
        optional = references is None and (alpha == 0 or subject_prompt_embeds is not None)
        return self._parsed(prompt, None if optional else [len(row) for row in rows]), rows

    def _subject_embeds(
        self, text: Tensor, given: Tensor | None, parsed: list[ParsedPrompt], rows: list[list[list[Any]]]
    ) -> Tensor | None:
        """(B, T, d) with the subjects fused in; ``None`` where there are none."""
        if given is None:
            return self._fused(text, parsed, rows) if any(rows) else None
        if given.shape != text.shape:
            raise ValueError(
                f"subject_prompt_embeds are {tuple(given.shape)}, the prompt's embeddings {tuple(text.shape)}"
            )
        return given.to(text)
