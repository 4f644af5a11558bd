"""Captions by a network, by hand, or from existing records."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from fastcomposer.preparation.interfaces import Captioner, Photo, load_with_processor
from fastcomposer.utils.ranges import Count, Positive


@dataclass
class PretrainedCaptioner(Captioner):
    """A captioning network of transformers, such as BLIP or BLIP-2.

    Args:
        model: Folder or hub id.
        prompt: Beginning of every caption; ``None`` for none.
        max_new_tokens: Maximum number of generated tokens.
        num_beams: Beams of the search; 1 is greedy.
        repetition_penalty: Values above 1 discourage repetition.

    Raises:
        ValueError: If a number is too small.
    """

    choice = "pretrained"
    model: str
    prompt: str | None = None
    max_new_tokens: Count = 40
    num_beams: Count = 5
    repetition_penalty: Positive = 1.0

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1 or self.num_beams < 1:
            raise ValueError("data.captioner: max_new_tokens and num_beams must be at least 1")
        self.options = {
            "max_new_tokens": self.max_new_tokens,
            "num_beams": self.num_beams,
            "repetition_penalty": float(self.repetition_penalty),
            "do_sample": False,
        }

    @property
    def settings(self) -> Mapping[str, Any]:
        """Everything that determines the captions."""
        return {**super().settings, **self.options}

    def load(self) -> None:
        """Load the weights."""
        from transformers import AutoModelForImageTextToText, AutoProcessor

        self.network, self._processor = load_with_processor(
            AutoModelForImageTextToText, AutoProcessor, self.model, "data.captioner.model"
        )

    @torch.no_grad()
    def caption(self, photos: Sequence[Photo]) -> list[str | None]:
        """Caption photos."""
        text: dict[str, Any] = {} if self.prompt is None else {"text": [self.prompt] * len(photos)}
        inputs = self._processor(images=[photo.image for photo in photos], return_tensors="pt", **text)
        ids = self.network.generate(**inputs.to(self.network.device), **self.options)
        texts = self._processor.batch_decode(ids, skip_special_tokens=True)
        return [" ".join(text.split()) or None for text in texts]


@dataclass
class GivenCaptions(Captioner):
    """Adds no captions to those of the captions file and the ``.txt`` files beside the photos."""

    choice = "given"

    def caption(self, photos: Sequence[Photo]) -> list[str | None]:
        """Return ``None`` for each photo."""
        return [None] * len(photos)


@dataclass
class RecordCaptions(Captioner):
    """Reads captions from the JSON beside each photo, where the source is a data folder.

    Args:
        field: Name of the field.
    """

    choice = "records"
    field: str = "caption"

    def caption(self, photos: Sequence[Photo]) -> list[str | None]:
        """Return the field of each photo's JSON; ``None`` where it is missing."""
        return [self._read(photo.path.with_suffix(".json")) for photo in photos]

    def _read(self, file: Path) -> str | None:
        try:
            caption = json.loads(file.read_bytes())[self.field]
        except (OSError, ValueError, LookupError, TypeError):
            return None
        return caption if isinstance(caption, str) and caption else None
