"""Which of several captions a CLIP takes for an image's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import CLIPModel

from fastcomposer.models.conditioning import ReferenceNormalizer


def caption_groups(captions: Sequence[str], rows: Sequence[int], size: int = 16) -> list[list[int]]:
    """Split scenes into groups in which no caption comes twice; what is left over is dropped.

    Args:
        captions: Captions of all scenes.
        rows: Scenes to split.
        size: Scenes in a group.
    """
    groups: list[list[int]] = []
    for row in rows:
        room = (g for g in groups if len(g) < size and all(captions[i] != captions[row] for i in g))
        group = next(room, None)
        if group is None:
            groups.append([row])
        else:
            group.append(row)
    return [group for group in groups if len(group) == size]


@torch.no_grad()
def caption_accuracy(
    clip: CLIPModel, tokenizer: Any, images: Tensor, captions: Sequence[str], rows: Sequence[int]
) -> float | None:
    """Share of images whose own caption scores highest among 16.

    Args:
        clip: Text and vision towers.
        tokenizer: Tokenizer of the base.
        images: (N, 3, H, W) float in [0, 1].
        captions: The N captions.
        rows: Which images compete with each other: those of as many people.

    Returns:
        The share, or ``None`` with fewer than 16 different captions.
    """
    groups = caption_groups(captions, rows)
    if not groups:
        return None
    normalize, right = ReferenceNormalizer(), []
    for group in groups:
        texts = [captions[i] for i in group]
        ids = tokenizer(texts, padding="max_length", truncation=True, return_tensors="pt").input_ids
        text = clip.text_projection(clip.text_model(input_ids=ids).pooler_output)
        pixels = normalize(images[group])
        image = clip.visual_projection(clip.vision_model(pixel_values=pixels).pooler_output)
        best = (F.normalize(image, dim=-1) @ F.normalize(text, dim=-1).T).argmax(1)
        right.append(best == torch.arange(len(group)))
    return float(torch.cat(right).float().mean())
