"""What the page draws with: a pipeline, and what its images say of themselves."""

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
    """What somebody wants drawn.

    Attributes:
        prompt: Text with markers.
        references: Images of the person of each marker.
        seed: Of the first image; further ones count up.
        steps: Sampling steps.
        guidance: Guidance scale.
        negative_prompt: What to guide away from; empty for nothing.
    """

    prompt: str
    references: tuple[Person, ...]
    seed: int
    steps: int
    guidance: float
    negative_prompt: str = ""


@dataclass(frozen=True)
class GeneratedImage:
    """An image, and how it came about.

    Attributes:
        order: What was wanted.
        image: The image.
        alpha: Ratio of steps that saw the references.
        seed: Its own.
        withheld: Whether the safety checker objected; the image is black then.
        attention: (K, h, w) attention to the K marked words; ``None`` where none was seen.
    """

    order: Order
    image: Image.Image
    alpha: float
    seed: int
    withheld: bool = False
    attention: Tensor | None = None


class Studio:
    """Draws with one pipeline, one order at a time.

    Args:
        pipeline: A FastComposer pipeline.
        settings: What it was made from, as plain values: ``model``, ``checkpoint`` and ``sampler``, whose
            entries are arguments of the pipeline's call.
    """

    def __init__(self, pipeline: Any, settings: Mapping[str, Any]) -> None:
        self.pipeline, self.settings = pipeline, settings
        ours = ("scheduler", "alpha", "num_inference_steps", "guidance_scale", "negative_prompt")
        self._options = {key: value for key, value in settings["sampler"].items() if key not in ours}
        self._turn = threading.Lock()
        # One of its own: asked while somebody's prompt is encoded, the pipeline's would change under it.
        self._tokenizer, self._reading = copy.deepcopy(pipeline.tokenizer), threading.Lock()
        pipeline.set_progress_bar_config(disable=True)

    @property
    def max_subjects(self) -> int | None:
        """Most people in one image; ``None`` for any number."""
        return self.pipeline.fusion.config.max_subjects

    @property
    def checks_safety(self) -> bool:
        """Whether images go through a safety checker."""
        return getattr(self.pipeline, "safety_checker", None) is not None

    def unread(self, prompt: str) -> str:
        """The end of a prompt that is too long for the text encoder; empty where all of it is read.

        Args:
            prompt: Text with markers.
        """
        if self._tokenizer is None:
            return ""
        text = strip_markers(prompt)
        with self._reading:
            tokens = self._tokenizer(
                text, add_special_tokens=False, truncation=False, return_offsets_mapping=True, verbose=False
            )
        kept = self._tokenizer.model_max_length - 2  # begin and end have a place each
        beyond = tokens.offset_mapping[kept:]
        return text[beyond[0][0] :].strip() if beyond else ""

    def draw(
        self, order: Order, alphas: Sequence[float], count: int, on_call: Callable[[int, int], None]
    ) -> list[list[GeneratedImage]]:
        """Draw so many images for each α; the steps that see the text alone are taken once for all.

        Args:
            order: What is wanted.
            alphas: Ratios of steps that see the references, in [0, 1].
            count: Images for each, from as many seeds.
            on_call: Told after every U-Net call how many are done and how many there are.

        Raises:
            PromptError: If markers and references do not match.
            ValueError: If another setting is out of range.
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
        drawn = []
        for v, alpha in enumerate(alphas):
            unsafe, maps = output.nsfw_content_detected[v], output.attention_maps[v]
            drawn.append(
                [
                    GeneratedImage(
                        order,
                        image,
                        alpha,
                        seeds[i],
                        withheld=unsafe is not None and bool(unsafe[i]),
                        attention=None if maps is None else maps[i, 0],
                    )
                    for i, image in enumerate(output.images[v])
                ]
            )
        return drawn

    def png(self, drawn: GeneratedImage) -> bytes:
        """An image as PNG with all its settings, under the names of the command ``generate``.

        Of the references it has digests: neither names nor images of people are in the file.
        """
        order = drawn.order
        sampler = {
            **self.settings["sampler"],
            "alpha": drawn.alpha,
            "num_inference_steps": order.steps,
            "guidance_scale": order.guidance,
            "negative_prompt": order.negative_prompt or None,
        }
        facts = {
            **self.settings,
            "sampler": sampler,
            "prompt": order.prompt,
            "reference_digests": [[reference.digest for reference in person] for person in order.references],
            "alpha": drawn.alpha,
            "num_images": 1,
            "seed": drawn.seed,
        }
        data = io.BytesIO()
        drawn.image.save(data, "PNG", pnginfo=image_text(facts))
        return data.getvalue()

    def _num_calls(self, steps: int, alphas: Sequence[float]) -> int:
        """U-Net calls of a drawing that has begun: those before variants part, then each variant's own."""
        calls: int = self.pipeline.num_timesteps
        schedule = Schedule(torch.arange(calls), steps, getattr(self.pipeline.scheduler, "order", 1))
        starts = [schedule.first_subject_call(alpha) for alpha in alphas]
        return max(starts) + sum(calls - start for start in starts)


def file_name(drawn: GeneratedImage) -> str:
    """Name for the file of an image: its prompt and seed."""
    name = re.sub(r"\W+", "_", strip_markers(drawn.order.prompt)).strip("_")[:60] or "image"
    return f"{name}_{drawn.seed}.png"


def overlays(drawn: GeneratedImage) -> list[tuple[Image.Image, str]]:
    """Show for each marked word which pixels attended to it.

    Returns:
        For each person an image, bright where their word was looked at, and the word with their number.
    """
    if drawn.attention is None or drawn.withheld:
        return []
    image = drawn.image
    if max(image.size) < _LARGE:
        factor = _LARGE // max(image.size)
        size = (image.width * factor, image.height * factor)
        image = image.resize(size, Image.Resampling.BICUBIC)
    words = subject_words(drawn.order.prompt)
    return [
        (attention_overlay(image, attention), f"{number} · {word}")
        for number, (word, attention) in enumerate(zip(words, drawn.attention, strict=False), start=1)
    ]
