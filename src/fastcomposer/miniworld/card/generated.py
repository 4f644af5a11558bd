"""How well the embedded base draws what a caption says, judged by its own metric models."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Generator, Tensor

from fastcomposer.composer import FastComposer
from fastcomposer.miniworld.card.captions import caption_accuracy
from fastcomposer.miniworld.card.quality import (
    HeldOutScenes,
    Row,
    load_clip,
    subjects,
)
from fastcomposer.miniworld.detector import HeadDetector
from fastcomposer.pipeline.schedulers import split_scheduler, use_scheduler
from fastcomposer.utils.progress import tracked

_BATCH = 32


@torch.no_grad()
def draw_captions(base: str | Path, captions: list[str], sampler: Mapping[str, Any], seed: int = 0) -> Tensor:
    """Draw one image of each caption with the base alone.

    Args:
        base: Folder of the base.
        captions: N captions.
        sampler: Arguments of the pipeline call and the scheduler; its ``alpha`` is not used.
        seed: Image i starts from the noise of seed + i.

    Returns:
        (N, 3, H, W) float in [0, 1].
    """
    pipeline: Any = FastComposer.from_pretrained(base).to_pipeline()
    pipeline.set_progress_bar_config(disable=True)
    scheduler, options = split_scheduler({**sampler, "alpha": 0.0, "output_type": "pt"})
    use_scheduler(pipeline, scheduler)
    images: list[Tensor] = []
    for start in tracked(range(0, len(captions), _BATCH), "images from captions", transient=True):
        part = captions[start : start + _BATCH]
        generators = [Generator().manual_seed(seed + start + i) for i in range(len(part))]
        images.append(pipeline(part, generator=generators, **options).images)
    return torch.cat(images)


def measure_generated(
    base: str | Path, scenes: HeldOutScenes, sampler: Mapping[str, Any], per_count: int = 64
) -> list[Row]:
    """Draw the rich captions of held-out scenes, count the heads, and ask CLIP for the right caption.

    Args:
        base: Folder of the base with ``detector/``, ``clip/`` and ``tokenizer/``.
        scenes: Renders whose captions are drawn.
        sampler: Arguments of the pipeline call.
        per_count: Images of one, of two and of three people.

    Raises:
        ValueError: If there are no scenes with one of these numbers of people.
    """
    base = Path(base)
    rows = [scenes.rows(count)[:per_count].tolist() for count in (1, 2, 3)]
    if not all(rows):
        raise ValueError("scenes without one, two or three people: measure on more scenes")
    captions = [scenes.rich_captions[i] for group in rows for i in group]
    images = draw_captions(base, captions, sampler)
    detector = HeadDetector.from_pretrained(base, subfolder="detector")
    found = torch.tensor([len(heads) for part in images.split(_BATCH) for heads in detector.detect(part)])
    wanted = torch.tensor([count for count, group in enumerate(rows, 1) for _ in group])
    right = (found == wanted).float()
    clip, tokenizer = load_clip(base)
    result, shares = [Row("generated", "right number of subjects", float(right.mean()), 0.90)], []
    for count in (1, 2, 3):
        at = torch.nonzero(wanted == count).flatten().tolist()
        result.append(Row("generated", f"right number, {subjects(count)}", float(right[at].mean())))
        share = caption_accuracy(clip, tokenizer, images, captions, at)
        if share is not None:
            shares.append(share)
            result.append(Row("generated", f"right caption among 16, {subjects(count)}", share))
    if shares:
        mean = sum(shares) / len(shares)
        result.append(Row("generated", "right caption among 16, mean of the three", mean, 0.70))
    return result
