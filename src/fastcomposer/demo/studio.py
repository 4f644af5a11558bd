"""Generation of the page's images, and the settings in their files."""

from __future__ import annotations

import copy
import io
import re
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from torch import Generator, Tensor

from fastcomposer.demo.marking import subject_words
from fastcomposer.demo.uploads import Person
from fastcomposer.pipeline.sampling import Schedule
from fastcomposer.pipeline.variants import Variant
from fastcomposer.prompt import strip_markers
from fastcomposer.utils.image_grid import attention_overlay
from fastcomposer.utils.provenance import image_text

_LARGE = 384  # pixels; smaller images are enlarged for overlays, so that these are smooth


@dataclass(frozen=True)
class Order:
    """A request for images."""

    prompt: str  # with markers
    references: tuple[Person, ...]  # of the person of each marker
    seed: int  # of the first image; the following ones count up
    steps: int
    guidance: float
    negative_prompt: str = ""


@dataclass(frozen=True)
class GeneratedImage:
    """An image and its settings."""

    order: Order
    image: Image.Image
    alpha: float  # fraction of the steps that use the references
    seed: int
    withheld: bool = False  # by the safety checker; the image is black then
    attention: Tensor | None = None  # (K, h, w), to the K marked words


class Studio:
    """Generates images with one pipeline, one request at a time.

    Args:
        pipeline: A FastComposer pipeline.
        settings: Plain values of ``model``, ``checkpoint`` and ``sampler``, which has arguments of the
            pipeline's call.
    """

    def __init__(self, pipeline: Any, settings: Mapping[str, Any]) -> None:
        self.pipeline, self.settings = pipeline, settings
        ours = ("scheduler", "alpha", "num_inference_steps", "guidance_scale", "negative_prompt")
        self._options = {key: value for key, value in settings["sampler"].items() if key not in ours}
        self._turn = threading.Lock()
        # A copy: tokenizers are not thread-safe, and the pipeline uses its own.
        self._tokenizer, self._reading = copy.deepcopy(pipeline.tokenizer), threading.Lock()
        pipeline.set_progress_bar_config(disable=True)

    @property
    def max_subjects(self) -> int | None:
        """Maximum number of people in one image; ``None`` for no limit."""
        return self.pipeline.fusion.config.max_subjects

    def unread(self, prompt: str) -> str:
        """The end of a prompt that the text encoder truncates; empty where it fits."""
        if self._tokenizer is None:
            return ""
        text = strip_markers(prompt)
        with self._reading:
            tokens = self._tokenizer(
                text, add_special_tokens=False, truncation=False, return_offsets_mapping=True, verbose=False
            )
        kept = self._tokenizer.model_max_length - 2  # without the start and end tokens
        beyond = tokens.offset_mapping[kept:]
        return text[beyond[0][0] :].strip() if beyond else ""

    def generate(
        self, order: Order, alphas: Sequence[float], count: int, on_call: Callable[[int, int], None]
    ) -> list[list[GeneratedImage]]:
        """Generate ``count`` images, of consecutive seeds, for each α; they share their text-only steps.

        After every backbone call ``on_call`` is called with the number of finished calls and of all calls.
        """
        seeds = range(order.seed, order.seed + count)
        marked = bool(subject_words(order.prompt))
        files = [[str(reference.file) for reference in person] for person in order.references] or None
        done = 0

        def count_call(pipeline: Any, call: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
            nonlocal done
            done += 1
            on_call(done, self._num_calls(order.steps, alphas if marked else [0.0]))
            return {}

        with self._turn:
            output = self.pipeline.sample_variants(
                order.prompt,
                [Variant(files, alpha) for alpha in alphas],
                generator=[Generator().manual_seed(seed) for seed in seeds],
                num_inference_steps=order.steps,
                guidance_scale=order.guidance,
                negative_prompt=order.negative_prompt or None,
                return_attention=1 if marked else 0,
                callback_on_step_end=count_call,
                **self._options,
            )
        found = output.images, output.nsfw_content_detected, output.attention_maps
        made = []
        for alpha, images, unsafe, maps in zip(alphas, *found, strict=True):
            withheld: Any = [False] * count if unsafe is None else map(bool, unsafe)
            seen: Any = [None] * count if maps is None else maps[:, 0]
            columns = zip(images, seeds, withheld, seen, strict=True)
            made.append([GeneratedImage(order, image, alpha, *rest) for image, *rest in columns])
        return made

    def png(self, generated: GeneratedImage) -> bytes:
        """An image as PNG with all settings of the command ``generate``.

        The references are stored as digests: the file holds neither their names nor their images.
        """
        order = generated.order
        sampler = {
            "alpha": generated.alpha,
            "num_inference_steps": order.steps,
            "guidance_scale": order.guidance,
            "negative_prompt": order.negative_prompt or None,
        }
        metadata = {
            **self.settings,
            "sampler": {**self.settings["sampler"], **sampler},
            "prompt": order.prompt,
            "reference_digests": [[reference.digest for reference in person] for person in order.references],
            "alpha": generated.alpha,
            "num_images": 1,
            "seed": generated.seed,
        }
        data = io.BytesIO()
        generated.image.save(data, "PNG", pnginfo=image_text(metadata))
        return data.getvalue()

    def _num_calls(self, steps: int, alphas: Sequence[float]) -> int:
        """Backbone calls of the running request: shared ones, then those of each α."""
        calls: int = self.pipeline.num_timesteps
        schedule = Schedule(torch.arange(calls), steps, getattr(self.pipeline.scheduler, "order", 1))
        starts = [schedule.first_subject_call(alpha) for alpha in alphas]
        return max(starts) + sum(calls - start for start in starts)


def file_name(generated: GeneratedImage) -> str:
    """File name of an image: its prompt and seed."""
    name = re.sub(r"\W+", "_", strip_markers(generated.order.prompt)).strip("_")[:60] or "image"
    return f"{name}_{generated.seed}.png"


def overlays(generated: GeneratedImage) -> list[tuple[Image.Image, str]]:
    """For each person an image that is bright where it attends to their word, and its caption."""
    if generated.attention is None or generated.withheld:
        return []
    image = generated.image
    if max(image.size) < _LARGE:
        factor = _LARGE // max(image.size)
        size = (image.width * factor, image.height * factor)
        image = image.resize(size, Image.Resampling.BICUBIC)
    words = subject_words(generated.order.prompt)
    return [
        (attention_overlay(image, attention), f"{number} · {word}")
        for number, (word, attention) in enumerate(zip(words, generated.attention, strict=False), start=1)
    ]
