"""FastComposer: the networks with their training losses and pipelines."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import torch
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from diffusers.utils.torch_utils import randn_tensor
from torch import Generator, Tensor
from torch.utils.checkpoint import checkpoint

from fastcomposer.batch import SubjectBatch
from fastcomposer.losses import LossConfig, denoising_loss, localization_loss, routing, subject_union
from fastcomposer.models.attention_capture import AttentionCapture, Implementation, select_blocks
from fastcomposer.models.base_files import find_weights_file
from fastcomposer.models.conditioning import encode_reference_states
from fastcomposer.models.latents import scale_latents, unscale_latents
from fastcomposer.models.networks import Networks
from fastcomposer.models.published_checkpoint import is_published
from fastcomposer.models.resampler import PatchStates, subject_columns
from fastcomposer.models.routing import RoutingPlan
from fastcomposer.models.text import TextStates
from fastcomposer.models.weights_io import load_trained_weights
from fastcomposer.pipeline.kinds import pipeline_class
from fastcomposer.utils.rng import Source, uniform

if TYPE_CHECKING:
    from fastcomposer.pipeline.kinds import AnyPipeline


@dataclass(frozen=True)
class TrainingLosses:
    """Losses of one batch, and intermediate results.

    Attributes:
        loss: Scalar total, ``denoise_loss + localization_weight · localization_loss``, and
            ``routing_weight · routing_loss`` with ``fusion.routing``.
        denoise_loss: Scalar.
        localization_loss: Scalar; 0 where localization is left out.
        localization_per_layer: Name of the attention module to its own localization loss.
        noise_pred: (B, C, h, w) output of the backbone: noise, or velocity where it predicts that.
        prompt_embeds: (B, T, d) text embeddings with the subjects fused in.
        subject_embeds: (B, K, e) projected image embeddings.
        added: What conditions the backbone beside ``prompt_embeds``; ``None`` with one text encoder.
        timesteps: (B,).
        noisy_latents: (B, C, h, w) scaled latents that were predicted from.
        clean_latents: (B, C, h, w) scaled latents x̂₀ that the prediction amounts to.
        routing_loss: Scalar; 0 without ``fusion.routing``.
    """

    loss: Tensor
    denoise_loss: Tensor
    localization_loss: Tensor
    localization_per_layer: dict[str, Tensor]
    noise_pred: Tensor
    prompt_embeds: Tensor
    subject_embeds: Tensor
    added: dict[str, Tensor] | None
    timesteps: Tensor
    noisy_latents: Tensor
    clean_latents: Tensor
    routing_loss: Tensor

    def added_at(self, rows: Tensor) -> dict[str, Tensor] | None:
        """``added`` of the samples at (n,) indices."""
        return self.added and {name: value[rows] for name, value in self.added.items()}


class FastComposer(Networks):
    """A latent diffusion model conditioned on text and on images of the subjects (docs/method.md).

    Args:
        *networks: See :class:`~fastcomposer.models.networks.Networks`.
        loss_config: Settings of the training loss; may be replaced at any time.
        attention_implementation: See :class:`~fastcomposer.models.attention_capture.AttentionCapture`.
        **parts: See :class:`~fastcomposer.models.networks.Networks`.

    Raises:
        ValueError: If widths differ, a localized block or its keys do not exist, or the prediction type is
            unknown.
    """

    def __init__(
        self,
        *networks: Any,
        loss_config: LossConfig | None = None,
        attention_implementation: Implementation = "fused",
        **parts: Any,
    ) -> None:
        super().__init__(*networks, **parts)
        self.attention_implementation: Implementation = attention_implementation
        self._attention: AttentionCapture | None = None
        self._checkpoints_maps = False
        self._plan: RoutingPlan | None = None  # of the call in progress
        self.loss_config = loss_config or LossConfig()

    @classmethod
    def from_checkpoint(cls, checkpoint: str | Path, *, base: str | Path, **options: Any) -> Self:
        """Load weights in any layout: those of a training, on top of their base, or the released ones.

        Args:
            checkpoint: See :func:`~fastcomposer.models.weights_io.load_trained_weights`; the released layout
                is loaded by :meth:`from_published_checkpoint`.
            base: See :meth:`from_pretrained`.
            **options: Further arguments that :meth:`from_published_checkpoint` takes as well.

        Raises:
            FileNotFoundError: If a file or folder does not exist; the message names it.
            ValueError: If the file cannot be read or does not fit the base, with what differs.
        """
        file = find_weights_file(Path(checkpoint).expanduser())
        if is_published(file):
            return cls.from_published_checkpoint(file, base=base, **options)
        model = cls.from_pretrained(base, **options)
        load_trained_weights(model, file)
        return model

    @property
    def loss_config(self) -> LossConfig:
        """Settings of the training loss."""
        return self._loss_config

    @loss_config.setter
    def loss_config(self, config: LossConfig) -> None:
        blocks = select_blocks(self.backbone, config.localization_blocks, config.num_localized_blocks)
        options = (self.attention_implementation, config.localization_keys)
        self._attention = AttentionCapture(self.backbone, blocks, *options) if blocks else None
        self._loss_config = config

    @property
    def localized_layers(self) -> tuple[str, ...]:
        """Names of the attention modules of the localization loss."""
        return () if self._attention is None else self._attention.layers

    def enable_gradient_checkpointing(self) -> None:
        """Trade time for memory in the backbone and in the image encoder.

        Use this rather than the backbone's own method, which does not collect attention maps.
        """
        self.backbone.enable_gradient_checkpointing(self._checkpoint)
        self.image_encoder.activation_checkpointing_enable({"use_reentrant": False})
        self._checkpoints_maps = True

    def _checkpoint(self, function: Any, *args: Any) -> Any:
        if (plan := self._plan) is not None:
            block = function

            def function(*inputs: Any) -> Any:  # runs once more in the backward pass, which ends the routing
                with nullcontext() if self._plan is plan else self._routed(plan):
                    return block(*inputs)

        if self._attention is None:
            return checkpoint(function, *args, use_reentrant=False)
        return self._attention.checkpoint(function, *args)

    @property
    def size_factor(self) -> int:
        """Number of pixels that image height and width must be multiples of, for VAE and backbone."""
        return 2 ** (len(self.vae.config.block_out_channels) - 1) * self.family.latent_factor

    def check_image_size(self, height: int, width: int) -> None:
        """Refuse image sizes that VAE and backbone cannot downsample evenly.

        Raises:
            ValueError: If height or width is not a multiple of :attr:`size_factor`.
        """
        factor = self.size_factor
        if height % factor or width % factor:
            raise ValueError(
                f"images of {height} by {width} pixels do not fit this model: height and width must be "
                f"multiples of {factor}, the downsampling of its VAE and {self.family.NAME}"
            )

    def encode_moments(self, pixel_values: Tensor) -> Tensor:
        """Mean and log-variance (B, 2C, h, w) of the VAE posterior of images (B, 3, H, W) in [-1, 1]."""
        return self.vae.encode(pixel_values.to(self.vae.dtype)).latent_dist.parameters

    def sample_latents(self, moments: Tensor, generator: Source = None) -> Tensor:
        """Sample scaled latents (B, C, h, w) in float32 from posterior moments (B, 2C, h, w)."""
        posterior = DiagonalGaussianDistribution(moments.float())
        return scale_latents(self.vae, posterior.sample(generator))  # type: ignore[arg-type]

    def decode_latents(self, latents: Tensor) -> Tensor:
        """Images (B, 3, H, W) in float32, about in [0, 1], of scaled latents (B, C, h, w)."""
        return self.vae.decode(unscale_latents(self.vae, latents).to(self.vae.dtype)).sample.float() / 2 + 0.5

    @torch.no_grad()
    def encode_latents(self, batch: SubjectBatch, generator: Source = None) -> Tensor:
        """Sample the scaled latents (B, C, h, w) of a batch.

        Args:
            batch: B samples; its ``latent_moments`` replace the encoder where present.
            generator: Source of the random numbers.

        Raises:
            ValueError: If the image size does not fit the model.
        """
        moments = batch.latent_moments
        if moments is None:
            self.check_image_size(*batch.pixel_values.shape[-2:])
            moments = self.encode_moments(batch.pixel_values)
        return self.sample_latents(moments, generator)

    @torch.no_grad()
    def encode_captions(self, batch: SubjectBatch) -> TextStates:
        """Encode a batch's captions, unless it has ``text_embeds``."""
        if batch.text_embeds is not None:
            return self.text.pad(TextStates(batch.text_embeds, batch.pooled_text_embeds))
        return self.text.encode(batch.input_ids)

    def encode_batch(
        self, batch: SubjectBatch, *, text: TextStates | None = None, skip_empty: bool = False
    ) -> tuple[Tensor, Tensor]:
        """Condition a batch: (B, T, d) fused prompt embeddings and (B, K, e) subject embeddings.

        Args:
            batch: B samples with K slots.
            text: Its encoded captions, where there are some.
            skip_empty: See :meth:`training_losses`.
        """
        text_embeds = (text or self.encode_captions(batch)).tokens.to(self.fusion.dtype)
        pixels, present = batch.references()
        embeds, states = encode_reference_states(
            self.image_encoder, self.reference_normalizer, pixels, present if skip_empty else None
        )
        subjects = self.fusion.pool(embeds, present)
        patches = None
        if self.fusion.kind.num_tokens > 1:
            patches = PatchStates(states, present, self.subject_columns(batch))
        slots = (batch.subject_token_idx, batch.subject_present)
        prompts = self.fusion(text_embeds, subjects, *slots, patches, batch.subject_token_idx_3)
        return prompts, subjects

    def subject_columns(self, batch: SubjectBatch) -> Tensor:
        """Positions of the subjects' words (B, K), or of their tokens (B, K, M) where each has several."""
        slots = (batch.subject_token_idx, batch.subject_present, self.fusion.kind.num_tokens)
        return subject_columns(batch.input_ids[:, : self.text.length], *slots, batch.subject_token_idx_3)

    def training_losses(
        self,
        batch: SubjectBatch,
        noise: Tensor | None = None,
        timesteps: Tensor | None = None,
        latents: Tensor | None = None,
        generator: Source = None,
        skip_empty: bool = False,
        mask_generator: Generator | None = None,
        sample_weight: Tensor | None = None,
    ) -> TrainingLosses:
        """Denoising and localization losses of a batch (docs/method.md, eq. 1–5).

        Args:
            batch: B samples; ``latent_moments`` and ``text_embeds`` replace the frozen encoders where
                present.
            noise: (B, C, h, w); drawn where not given.
            timesteps: (B,) in [0, number of training steps); by default those of the base's own training.
            latents: (B, C, h, w) scaled latents; encoded from the images where not given.
            generator: Source of all random numbers; a list has one for each sample.
            skip_empty: On the CPU, do not encode empty slots; no loss depends on them, and their
                ``subject_embeds`` are zeros then.
            mask_generator: Source of the Bernoulli draw that masks the loss of all samples
                (``mask_loss_per_sample=false``); ``generator`` where not given.
            sample_weight: Optional (B,) factor of each sample's denoising loss.

        Raises:
            ValueError: If the image size does not fit the model.
        """
        if latents is None:
            latents = self.encode_latents(batch, generator)
        device, size = latents.device, (latents.shape[-2], latents.shape[-1])
        if noise is None:
            noise = randn_tensor(latents.shape, generator=generator, device=device, dtype=latents.dtype)
        if timesteps is None:
            timesteps = self.family.draw_timesteps(len(latents), device, generator)
        text = self.encode_captions(batch)
        prompt_embeds, subject_embeds = self.encode_batch(batch, text=text, skip_empty=skip_empty)
        added = self.added_condition(batch, text)
        noisy = self.family.add_noise(latents, noise, timesteps)
        columns = self.subject_columns(batch)
        plan = self._routing_plan(batch, size)
        if plan is not None and self.training:
            plan = plan.with_noise(generator)
        with self._routed(plan) as choices:
            prediction, maps = self._denoise(noisy, timesteps, prompt_embeds, added, columns)
        target = self.family.target(latents, noise, timesteps)
        config = self.loss_config
        source = generator if mask_generator is None or config.mask_loss_per_sample else mask_generator
        mask = self._loss_mask(batch, size, source)
        denoise = denoising_loss(prediction, target, mask, sample_weight)
        localization, per_layer = localization_loss(
            maps, batch.subject_masks, batch.subject_present, size, config.layer_loss
        )
        total = denoise + config.localization_weight * localization
        route, _ = localization_loss(choices, batch.subject_masks, batch.subject_present, size, routing)
        if choices:
            total = total + config.routing_weight * route
        clean = self.family.clean_latents(noisy, prediction, timesteps)
        return TrainingLosses(
            total,
            denoise,
            localization,
            per_layer,
            prediction,
            prompt_embeds,
            subject_embeds,
            added,
            timesteps,
            noisy,
            clean,
            route,
        )

    def to_pipeline(self, *, safety_checker: bool = True) -> AnyPipeline:
        """Make a sampling pipeline that shares this model's networks.

        Args:
            safety_checker: Whether to load and run the base's safety checker, where it has one.

        Returns:
            ``FastComposerSD3Pipeline`` with a transformer, ``FastComposerXLPipeline`` with a U-Net and two
            text encoders, else ``FastComposerPipeline``.
        """
        return pipeline_class(self.networks()).of_model(self, safety_checker=safety_checker)

    def added_condition(self, batch: SubjectBatch, text: TextStates) -> dict[str, Tensor] | None:
        """What conditions the backbone beside the prompt's states: pooled embeddings and image sizes."""
        sizes = batch.size_conditions
        if sizes is None:
            size = batch.pixel_values.shape[-2:]
            sizes = torch.tensor([*size, 0, 0, *size], device=batch.input_ids.device)
        return self.text.added_condition(text.pooled, sizes)

    def predict(
        self, noisy: Tensor, timesteps: Tensor, prompt_embeds: Tensor, added: dict[str, Tensor] | None
    ) -> Tensor:
        """Call the backbone in its own dtype: :meth:`~fastcomposer.models.families.Family.predict`."""
        dtype = self.backbone.dtype
        if added is not None:
            added = {name: value.to(dtype) for name, value in added.items()}
        return self.family.predict(noisy.to(dtype), timesteps, prompt_embeds.to(dtype), added)

    def _denoise(
        self,
        noisy: Tensor,
        timesteps: Tensor,
        prompt_embeds: Tensor,
        added: dict[str, Tensor] | None,
        subject_token_idx: Tensor,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Predictions of the backbone, and the localized layers' attention to the subjects' words."""
        inputs = (noisy, timesteps, prompt_embeds, added)
        if self._attention is None:
            return self.predict(*inputs), {}
        if self.backbone.is_gradient_checkpointing and not self._checkpoints_maps:
            raise RuntimeError(
                f"the {self.family.NAME}'s own gradient checkpointing cannot repeat attention maps: call "
                "enable_gradient_checkpointing of the FastComposer model instead"
            )
        with self._attention.record(
            subject_token_idx, detach=self.loss_config.localization_weight == 0
        ) as maps:
            return self.predict(*inputs), maps

    def routed(self, batch: SubjectBatch, size: tuple[int, int]) -> AbstractContextManager[Any]:
        """Route the subjects of a batch in calls of :meth:`predict` inside, as in sampling."""
        return self._routed(self._routing_plan(batch, size))

    @contextmanager
    def _routed(self, plan: RoutingPlan | None) -> Iterator[dict[str, Tensor]]:
        """Route the call inside, where there is a plan; yields the choices of its layers."""
        if plan is None:
            yield {}
            return
        self._plan = plan
        try:
            with self.fusion.router.route(self.backbone, plan) as choices:
                yield choices
        finally:
            self._plan = None

    def _routing_plan(self, batch: SubjectBatch, size: tuple[int, int]) -> RoutingPlan | None:
        """How a batch's subjects are routed; ``None`` without a router or a second subject."""
        if self.fusion.router is None or batch.subject_present.shape[1] < 2:
            return None
        return RoutingPlan(self.subject_columns(batch), batch.subject_present, size)

    def _loss_mask(self, batch: SubjectBatch, size: tuple[int, int], generator: Source) -> Tensor | None:
        """(B, 1, h, w) factor of the denoising error; all 1 where it is not masked."""
        config = self.loss_config
        if config.mask_loss_probability == 0:
            return None
        device = batch.subject_masks.device
        count = len(batch) if config.mask_loss_per_sample else 1
        masked = uniform((count,), device, generator) < config.mask_loss_probability
        if config.mask_loss_skip_unconditional:
            masked = masked & batch.subject_present.any(dim=1)
        union = subject_union(batch.subject_masks, batch.subject_present, size)
        return torch.where(masked[:, None, None, None], union, 1.0)
