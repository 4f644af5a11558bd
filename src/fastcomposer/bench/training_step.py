"""Speed and memory of the training step: variants of one model with random weights."""

from __future__ import annotations

import multiprocessing
import re
import resource
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from diffusers.models.attention_processor import AttnProcessor, AttnProcessor2_0
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from torch import Generator
from transformers import CLIPTextConfig, CLIPTextModel, CLIPVisionConfig, CLIPVisionModelWithProjection

from fastcomposer.batch import SubjectBatch
from fastcomposer.bench.timing import Stopwatch, TimedCase
from fastcomposer.composer import FastComposer, TrainingLosses
from fastcomposer.miniworld.embedder import IdentityEmbedder
from fastcomposer.models.compilation import compile_blocks
from fastcomposer.models.fusion import FusionConfig, SubjectFusion
from fastcomposer.models.text import encode_text
from fastcomposer.training.face_losses.identity import IdentityLoss
from fastcomposer.utils.ranges import Count, Side

_NUM_BLOCKS = 5


@dataclass(frozen=True)
class StepSettings:
    """Configurations of a model of random weights, and a batch for it."""

    unet: Mapping[str, Any]
    vae: Mapping[str, Any]
    text_encoder: Mapping[str, Any]
    image_encoder: Mapping[str, Any]
    resolution: Side = 512  # height and width of the images in pixels
    batch_size: Count = 2
    max_subjects: Count = 4  # subject slots, of which each sample fills two

    def model(self) -> FastComposer:
        """Build the model; the weights are the same each time."""
        torch.manual_seed(0)
        return FastComposer(
            vae=AutoencoderKL(**self.vae),
            unet=UNet2DConditionModel(**self.unet),
            text_encoder=CLIPTextModel(CLIPTextConfig(**self.text_encoder)).eval(),
            image_encoder=CLIPVisionModelWithProjection(CLIPVisionConfig(**self.image_encoder)).eval(),
            fusion=SubjectFusion(self.text_encoder["hidden_size"], self.max_subjects),
            noise_scheduler=DDPMScheduler(),
        )


def noise_batch(
    size: int, slots: int, resolution: int, reference_size: int, vocabulary: int = 400
) -> SubjectBatch:
    """Make a batch of noise; two subject slots at most are filled, side by side, with faces in the middle."""
    generator = Generator().manual_seed(0)
    filled = min(slots, 2)
    masks = torch.zeros(size, slots, resolution, resolution)
    boxes = torch.zeros(size, slots, 4)
    for subject, half in enumerate((slice(resolution // 2), slice(resolution // 2, None))[:filled]):
        masks[:, subject, resolution // 4 :, half] = 1
        boxes[:, subject] = torch.tensor([subject / 2 + 0.1, 0.3, subject / 2 + 0.4, 0.6]) * resolution
    return SubjectBatch(
        pixel_values=torch.rand(size, 3, resolution, resolution, generator=generator) * 2 - 1,
        input_ids=torch.randint(0, vocabulary, (size, 77), generator=generator),
        subject_pixel_values=torch.rand(size, slots, 3, reference_size, reference_size, generator=generator),
        subject_token_idx=torch.tensor([[2, 5][:filled] + [0] * (slots - filled)] * size),
        subject_present=torch.arange(slots).lt(filled).repeat(size, 1),
        subject_masks=masks,
        subject_face_boxes=boxes,
    )


@dataclass(frozen=True)
class StepVariant:
    """One way to take a training step."""

    cached: bool = True  # latent moments and text states come with the batch
    explicit: Literal["all", "localized", "none"] = "none"  # layers that form the full attention map
    localization: bool = True
    fused_optimizer: bool = True
    channels_last: bool = False  # memory layout of the U-Net
    precision: torch.dtype = torch.float32  # of autocast
    compiled: bool = False  # the U-Net's blocks, by inductor
    num_tokens: int = 1  # of each subject
    identity: int = 0  # steps of the identity loss of every sample, decoded once more in the backward pass


PLAIN, TUNED = "plain: uncached, explicit attention", "tuned: cached, fused attention"
WITHOUT_LOCALIZATION = "tuned without localization"
TOKENS, IDENTITY = "tuned, 9 tokens of each subject", "tuned, identity loss"
VARIANTS = {
    PLAIN: StepVariant(False, "all", fused_optimizer=False),
    "uncached, explicit maps in localized layers": StepVariant(False, "localized", fused_optimizer=False),
    "uncached, fused attention": StepVariant(False),
    "cached, explicit maps in localized layers": StepVariant(explicit="localized"),
    TUNED: StepVariant(),
    WITHOUT_LOCALIZATION: StepVariant(localization=False),
    "tuned, channels last": StepVariant(channels_last=True),
    "tuned, bfloat16": StepVariant(precision=torch.bfloat16),
    "tuned, compiled": StepVariant(compiled=True),
    TOKENS: StepVariant(num_tokens=9),
    IDENTITY: StepVariant(identity=1),
    "tuned, identity loss of 4 steps": StepVariant(identity=4),
}
"""The steps that are compared, by name."""


class StepBench:
    """One model and batch that takes its steps in any variant."""

    def __init__(self, settings: StepSettings) -> None:
        self.model = settings.model().train()
        sizes = settings.resolution, settings.image_encoder["image_size"], settings.text_encoder["vocab_size"]
        batch = noise_batch(settings.batch_size, settings.max_subjects, *sizes)
        with torch.no_grad():  # one image after the other, for a small peak
            moments = torch.cat([self.model.encode_moments(image[None]) for image in batch.pixel_values])
            text = encode_text(self.model.text_encoder, batch.input_ids)
        self.batches = {False: batch, True: batch.replace(latent_moments=moments, text_embeds=text)}
        embedder = IdentityEmbedder(crop_size=160).requires_grad_(False)
        self.identity = IdentityLoss(
            lambda images, boxes: embedder(embedder.crop(images, list(boxes))).unflatten(0, boxes.shape[:2]),
            checkpointing=True,
        )
        self._kinds: dict[int, tuple[SubjectFusion, torch.optim.Optimizer]] = {}
        self._compiled = False
        self._use_tokens(1)

    def use(self, variant: StepVariant) -> None:
        """Set the model and the optimizer to a variant; the first one that is compiled takes minutes."""
        model = self.model
        if variant.compiled and not self._compiled:
            compile_blocks(model.unet, "inductor")
            self._compiled = True
        model.unet.set_attn_processor(AttnProcessor() if variant.explicit == "all" else AttnProcessor2_0())
        layout = torch.channels_last if variant.channels_last else torch.contiguous_format
        model.unet.to(memory_format=layout)
        model.attention_implementation = "fused" if variant.explicit == "none" else "explicit"
        blocks = _NUM_BLOCKS if variant.localization else 0
        model.loss_config = replace(model.loss_config, num_localized_blocks=blocks)
        self._use_tokens(variant.num_tokens)
        for group in self.optimizer.param_groups:
            group["fused"], group["foreach"] = variant.fused_optimizer, False

    def _use_tokens(self, number: int) -> None:
        """Give the model a fusion with so many tokens, and its optimizer."""
        if number not in self._kinds:
            self.model.adopt_fusion(FusionConfig(num_tokens=number))
            optimizer = torch.optim.AdamW(list(self.model.trainable_parameters()), lr=1e-5)
            self._kinds[number] = self.model.fusion, optimizer
        self.model.fusion, self.optimizer = self._kinds[number]

    def losses(self, variant: StepVariant) -> TrainingLosses:
        """Forward, with the same noise each time."""
        half = variant.precision != torch.float32
        compilation = torch.compiler.set_stance("default" if variant.compiled else "force_eager")
        with compilation, torch.autocast("cpu", variant.precision) if half else nullcontext():
            return self.model.training_losses(
                self.batches[variant.cached], generator=Generator().manual_seed(0), skip_empty=True
            )

    def step(self, variant: StepVariant) -> None:
        """Forward, backward and optimizer."""
        losses = self.losses(variant)
        total = losses.loss
        if variant.identity:
            self.identity.steps = variant.identity
            found = self.identity(self.model, self.batches[variant.cached], losses)
            total = total + self.identity.weight * found
        total.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()


def time_step(watch: Stopwatch, settings: StepSettings, names: list[str]) -> None:
    """Time training steps in turns; the memory of each is that of a process of its own."""
    memory = {name: peak_memory(settings, VARIANTS[name]) for name in names}
    bench = StepBench(settings)

    def case(name: str) -> TimedCase:
        variant = VARIANTS[name]
        return TimedCase(
            lambda: bench.step(variant),
            settings.batch_size,
            prepare=lambda: bench.use(variant),
            dtype=variant.precision,
            peak_memory_bytes=memory[name],
        )

    watch.interleave("step", "images/s", {name: case(name) for name in names})


def peak_memory(settings: StepSettings, variant: StepVariant) -> int:
    """Most memory in bytes of a process that does nothing but training steps of a variant."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, context, torch.set_num_threads, (torch.get_num_threads(),)) as pool:
        return pool.submit(_peak_of_steps, settings, variant).result()


def _peak_of_steps(settings: StepSettings, variant: StepVariant) -> int:
    bench = StepBench(settings)
    bench.use(variant)
    for parameter in bench.model.trainable_parameters():
        parameter.grad = torch.zeros_like(parameter)
    bench.optimizer.step()  # its state is there from the second step on, and so at the peak
    bench.optimizer.zero_grad()
    bench.step(variant)
    # Not ru_maxrss: a process begins with its parent's.
    file = Path("/proc/self/status")
    found = re.search(r"VmHWM:\s*(\d+) kB", file.read_text()) if file.exists() else None
    return (int(found[1]) if found else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss) * 1024
