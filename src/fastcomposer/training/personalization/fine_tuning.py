"""What the fine-tuning methods share: the base, prompts, the denoising loss, the prior and what is stored."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline
from torch import Tensor
from torch.nn import functional as F
from transformers import CLIPTextModel

from fastcomposer.data.portraits import PortraitBatch, PortraitSettings, ReferenceSet, View
from fastcomposer.losses import denoising_loss
from fastcomposer.models.families.unet import UNetFamily
from fastcomposer.models.loading import Weights, open_source, source_fingerprint
from fastcomposer.models.text import encode_text
from fastcomposer.training.base_module import OptimizerFactory, RecipeModule
from fastcomposer.training.personalization.concept import TOKEN_PREFIX, Concept, write_concepts
from fastcomposer.training.personalization.prior import ClassImages
from fastcomposer.training.personalization.tokens import NewTokens, with_tokens
from fastcomposer.utils.memory import peak_memory_bytes
from fastcomposer.utils.ranges import Amount, Count

_VIEW_WORDS: dict[View, tuple[str, ...]] = {
    "far": ("far away", "very small"),
    "close": ("close up", "zoomed in"),
}
_TARGETS = ("epsilon", "v_prediction")


class PersonalizationModule(RecipeModule):
    """A base that learns the people of :class:`~fastcomposer.data.portraits.PortraitDataModule`.

    The loss is the denoising loss of the images with prompts that name the person, plus that of as many
    class images where there are some (prior preservation, Ruiz et al. 2023). Subclasses choose what of the
    base is trained and how a person is named.

    Args:
        base: Folder in the diffusers layout, hub id, or single file; never written to.
        images: How the people's images are drawn in a step.
        templates: Prompts, drawn uniformly; ``{}`` is the person's name.
        steps: Steps for one person; the trainer's ``max_steps`` is this times the number of people.
        optimizer: Makes the optimizer from the trained parameters.
        class_images: Class images; ``None`` for none.
        prior_weight: Weight of their loss.
        image_encoder: Image encoder that goes with the base; only its configuration is read.
        architecture: Folder of configurations for a single file or random weights.
        weights: ``pretrained``, or ``random`` for the architecture with random weights.
        variant: Which of the base's files to load, such as ``fp16``; ``None`` for the plain ones.
        gradient_checkpointing: Trade time for memory.
        **recipe: Further arguments of :class:`RecipeModule`.

    Raises:
        ValueError: If a setting is out of its range or does not fit the base; no weight has been read then.
    """

    LOGGED: ClassVar[tuple[str, ...]] = ("train/loss", "train/denoise_loss", "train/prior_loss")

    method: ClassVar[str]

    def __init__(
        self,
        base: str,
        images: PortraitSettings,
        templates: Sequence[str],
        steps: Count,
        optimizer: OptimizerFactory,
        class_images: ClassImages | None = None,
        prior_weight: Amount = 1.0,
        image_encoder: str | None = None,
        architecture: str | None = None,
        weights: Weights = "pretrained",
        variant: str | None = None,
        gradient_checkpointing: bool = False,
        **recipe: Any,
    ) -> None:
        super().__init__(optimizer, **recipe)
        if steps < 1:
            raise ValueError(f"method.steps={steps}: at least 1")
        if prior_weight < 0:
            raise ValueError(f"method.prior_weight={prior_weight}: not negative")
        wrong = [template for template in templates if template.count("{}") != 1]
        if wrong or not templates:
            raise ValueError(f"method.templates={wrong}: each needs one {{}}, where the person's name goes")
        self.images, self.templates, self.steps = images, tuple(templates), steps
        self.class_images, self.prior_weight = class_images, prior_weight
        self.source = open_source(
            base, image_encoder, architecture=architecture, weights=weights, variant=variant
        )
        self._origin: tuple[str, str | None, Weights, str | None] = (base, architecture, weights, variant)
        self.noise_scheduler: Any = self.source.noise_scheduler()
        self.tokenizer: Any = self.source.tokenizer()
        self._check_base()
        self.vae: Any = self.source.load(AutoencoderKL, "vae")
        self.unet: Any = self.source.load(UNet2DConditionModel, "unet")
        self.text_encoder: Any = self.source.load(CLIPTextModel, "text_encoder")
        self.eval().requires_grad_(False)
        if gradient_checkpointing:
            self.unet.enable_gradient_checkpointing()
            self.text_encoder.activation_checkpointing_enable({"use_reentrant": False})
        self.people: tuple[ReferenceSet, ...] = ()
        self.class_moments: dict[str, Tensor] = {}
        self._started = self.seconds = 0.0
        self.peak_memory_bytes = 0

    def _check_base(self) -> None:
        source = self.source
        if self.tokenizer is None:
            raise ValueError(f"model.base={source.base} has no tokenizer/, which prompts need")
        if source.family is not UNetFamily or len(source.text_encoders) > 1:
            needed = "bases with one text encoder and a U-Net"
            raise ValueError(f"model.base={source.base}: this method takes {needed}")
        prediction_type = self.noise_scheduler.config.prediction_type
        if prediction_type not in _TARGETS:
            raise ValueError(f"the scheduler's prediction_type {prediction_type!r} is not one of {_TARGETS}")
        configs = source.config(AutoencoderKL, "vae"), source.config(UNet2DConditionModel, "unet")
        factor = 2 ** sum(len(config["block_out_channels"]) - 1 for config in configs)
        if self.images.resolution % factor:
            raise ValueError(
                f"method.images.resolution={self.images.resolution}: this base takes multiples of {factor}"
            )

    @cached_property
    def fingerprint(self) -> str:
        """See :func:`~fastcomposer.models.loading.source_fingerprint`."""
        return source_fingerprint(*self._origin)

    def token(self, person: ReferenceSet) -> str:
        """What stands for a person in prompts: by default a new token."""
        return f"<{person.name.lower()}>"

    def choose_trained(self) -> None:
        """Mark what is trained, and add the people's tokens where they are new."""
        raise NotImplementedError

    def phrase(self, person: ReferenceSet) -> str:
        """What replaces the class word in prompts."""
        return f"{self.token(person)} {person.word}"

    def add_tokens(self, start: Sequence[Tensor]) -> None:
        """Add a trained token for each person, starting from an embedding (d,) each."""
        self.tokenizer, ids = with_tokens(self.tokenizer, [self.token(person) for person in self.people])
        table = self.text_encoder.get_input_embeddings()
        self.text_encoder.set_input_embeddings(NewTokens(table, ids, torch.stack(list(start))))

    def setup(self, stage: str) -> None:
        """Take the people from the data, generate missing class images, and prepare what is trained."""
        people = tuple(self.trainer.datamodule.people)  # type: ignore[attr-defined]
        if self.people and self.people != people:
            raise ValueError("this module has learned other people: make another one")
        if not self.people:
            # Not in prepare_data, around which Lightning waits for all processes that there are, even for
            # those that this training does not run on: an evaluation lets each learn people of its own.
            if self.trainer.local_rank == 0:
                self._generate_class_images(people)
            self.trainer.strategy.barrier("class images")
            self.people = people
            self.choose_trained()

    def _class_folders(self, people: Sequence[ReferenceSet]) -> Iterator[tuple[ClassImages, str, Path]]:
        """Class images, word and folder of every class word of some people."""
        if self.class_images is not None:
            for word in dict.fromkeys(person.word for person in people):
                folder = self.class_images.image_folder(word, self.fingerprint, self.images.resolution)
                yield self.class_images, word, folder

    def _generate_class_images(self, people: Sequence[ReferenceSet]) -> None:
        """Let the untrained base generate the class images that are not on disk yet."""
        for settings, word, folder in self._class_folders(people):
            if settings.missing(folder):
                pipeline = StableDiffusionPipeline(
                    vae=self.vae,
                    text_encoder=self.text_encoder,
                    tokenizer=self.tokenizer,
                    unet=self.unet,
                    scheduler=self.source.sampling_scheduler(),
                    safety_checker=None,  # type: ignore[arg-type]
                    feature_extractor=None,  # type: ignore[arg-type]
                    requires_safety_checker=False,
                )
                pipeline.set_progress_bar_config(disable=True)
                pipeline.to(self.trainer.strategy.root_device)
                settings.generate(pipeline, word, folder, self.images.resolution)

    def on_fit_start(self) -> None:
        """Start the clock, and encode the class images once."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
            torch.cuda.reset_peak_memory_stats(self.device)
        self._started = time.perf_counter()
        super().on_fit_start()
        for settings, word, folder in self._class_folders(self.people):
            parts = settings.read(folder).split(settings.batch_size)
            with torch.no_grad():
                moments = [self._moments(part.to(self.device).float() / 127.5 - 1) for part in parts]
            self.class_moments[word] = torch.cat(moments)

    def training_step(self, batch: PortraitBatch, batch_idx: int) -> Tensor:
        """Denoise images of a person and, for prior preservation, as many of the class."""
        rng = np.random.default_rng([self.seed, self.global_rank, self.global_step])
        generator = self.step_generator()
        person, size = self.people[batch.person], len(batch)
        prompts = [self._prompt(person, view, rng) for view in batch.views]
        with torch.no_grad():
            moments = self._moments(batch.pixel_values)
        prior = self.class_moments.get(person.word)
        if prior is not None and self.class_images is not None:
            moments = torch.cat([moments, prior[torch.from_numpy(rng.integers(len(prior), size=size))]])
            prompts += [self.class_images.prompt.format(person.word)] * size
        posterior = DiagonalGaussianDistribution(moments.float())
        latents = posterior.sample(generator) * self.vae.config.scaling_factor
        noise = torch.randn(latents.shape, generator=generator, device=self.device)
        total = self.noise_scheduler.config.num_train_timesteps
        steps = torch.randint(total, (len(latents),), generator=generator, device=self.device)
        noisy = self.noise_scheduler.add_noise(latents, noise, steps)
        prediction = self.unet(noisy, steps, self._encoded(prompts)).sample
        target = noise
        if self.noise_scheduler.config.prediction_type == "v_prediction":
            target = self.noise_scheduler.get_velocity(latents, noise, steps)
        mask, weight = self._valid(batch.masks, latents)
        loss = denoising_loss(prediction[:size], target[:size], mask, weight)
        self.log("train/denoise_loss", loss, prog_bar=True, batch_size=size)
        if len(latents) > size:
            prior_loss = denoising_loss(prediction[size:], target[size:])
            self.log("train/prior_loss", prior_loss, prog_bar=True, batch_size=size)
            loss = loss + self.prior_weight * prior_loss
        self.log("train/loss", loss, batch_size=size)
        return loss

    def _prompt(self, person: ReferenceSet, view: View, rng: np.random.Generator) -> str:
        prompt = self.templates[rng.integers(len(self.templates))].format(self.phrase(person))
        words = _VIEW_WORDS.get(view)
        return prompt if words is None else f"{words[rng.integers(len(words))]} {prompt}"

    def _encoded(self, prompts: list[str]) -> Tensor:
        ids = self.tokenizer(prompts, padding="max_length", truncation=True, return_tensors="pt").input_ids
        return encode_text(self.text_encoder, ids.to(self.device))

    def _moments(self, pixel_values: Tensor) -> Tensor:
        return self.vae.encode(pixel_values).latent_dist.parameters

    def _valid(self, masks: Tensor, latents: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """Mask (B, 1, h, w) of the loss, and weights (B,) that make it the mean over the mask."""
        if self.images.scales is None:
            return None, None
        mask = F.interpolate(masks, size=latents.shape[-2:], mode="area")
        return mask, 1 / mask.square().mean((1, 2, 3))

    def on_train_end(self) -> None:
        """Stop the clock."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        self.peak_memory_bytes = peak_memory_bytes(self.device)
        self.seconds = time.perf_counter() - self._started
        super().on_train_end()

    def learned(self) -> dict[str, Tensor]:
        """What was trained, in float16: ``tokens.<token>`` and weights by their network's name."""
        tensors: dict[str, Tensor] = {}
        table = self.text_encoder.get_input_embeddings()
        with self.averaged_weights():
            for name, value in self.trained_parameters().items():
                copied = value.detach().to("cpu", torch.float16, copy=True)
                if isinstance(table, NewTokens) and value is table.new:
                    names = [TOKEN_PREFIX + self.token(person) for person in self.people]
                    tensors |= dict(zip(names, copied, strict=True))
                else:
                    tensors[name] = copied
        return tensors

    def export(self, folder: str | Path, settings: Mapping[str, Any] | None = None) -> tuple[Concept, ...]:
        """Write what was learned, and the settings that the training depended on."""
        costs: dict[str, Any] = {
            "seconds": self.seconds / len(self.people),
            "stored_bytes": 0,
            "peak_memory_bytes": self.peak_memory_bytes,
            "steps": self.global_step,
        }
        concepts = [
            Concept(self.method, person.word, self.token(person), Path(folder), **costs)
            for person in self.people
        ]
        return write_concepts(Path(folder), concepts, self.learned(), settings or {})
