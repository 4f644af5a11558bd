"""Captions: from a network, from whoever knows better, or from records that are there already."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from fastcomposer.preparation.interfaces import Photo
from fastcomposer.preparation.pretrained_networks import load_with_processor
from fastcomposer.utils.settings import base_fingerprint


class PretrainedCaptioner(nn.Module):
    """A captioning network of transformers, such as BLIP or BLIP-2.

    Args:
        model: Folder or hub id.
        prompt: How every caption begins; ``None`` leaves it to the network.
        max_new_tokens: Most tokens of a caption.
        num_beams: Beams of the search; 1 is greedy.
        repetition_penalty: Above 1 discourages saying things twice.

    Raises:
        ValueError: If a number is too small.
    """

    def __init__(
        self,
        model: str,
        prompt: str | None = None,
        max_new_tokens: int = 40,
        num_beams: int = 5,
        repetition_penalty: float = 1.0,
    ) -> None:
        super().__init__()
        if max_new_tokens < 1 or num_beams < 1:
            raise ValueError("data.captioner: max_new_tokens and num_beams must be at least 1")
        self.model, self.prompt = model, prompt
        self.options = {
            "max_new_tokens": max_new_tokens,
            "num_beams": num_beams,
            "repetition_penalty": float(repetition_penalty),
            "do_sample": False,
        }
        self.network: Any = None

    @property
    def settings(self) -> Mapping[str, Any]:
        """See :class:`~fastcomposer.preparation.interfaces.Component`."""
        weights = base_fingerprint(self.model, parts=("",))
        return {"captioner": "pretrained", "model": weights, "prompt": self.prompt, **self.options}

    def load(self) -> None:
        """Read the weights."""
        from transformers import AutoModelForImageTextToText, AutoProcessor

        self.network, self._processor = load_with_processor(
            AutoModelForImageTextToText, AutoProcessor, self.model, "data.captioner.model"
        )

    @torch.no_grad()
    def caption(self, photos: Sequence[Photo]) -> list[str | None]:
        """Caption photos."""
        words: dict[str, Any] = {} if self.prompt is None else {"text": [self.prompt] * len(photos)}
        inputs = self._processor(images=[photo.image for photo in photos], return_tensors="pt", **words)
        inputs = inputs.to(self.network.device)
        ids = self.network.generate(**inputs, **self.options)
        texts = self._processor.batch_decode(ids, skip_special_tokens=True)
        return [" ".join(text.split()) or None for text in texts]


class GivenCaptions:
    """Leaves captions to the captions file and to the ``.txt`` files beside the photos."""

    settings: Mapping[str, Any] = {"captioner": "given"}

    def load(self) -> None:
        """Nothing to read."""

    def caption(self, photos: Sequence[Photo]) -> list[str | None]:
        """None for any photo."""
        return [None] * len(photos)


class RecordCaptions:
    """Takes captions from the JSON beside each photo, where the source is a data folder.

    Args:
        field: Which of its fields.
    """

    def __init__(self, field: str = "caption") -> None:
        self.field = field

    @property
    def settings(self) -> Mapping[str, Any]:
        """See :class:`~fastcomposer.preparation.interfaces.Component`."""
        return {"captioner": "records", "field": self.field}

    def load(self) -> None:
        """Nothing to read."""

    def caption(self, photos: Sequence[Photo]) -> list[str | None]:
        """The field of each photo's JSON; ``None`` where there is none."""
        return [self._read(photo) for photo in photos]

    def _read(self, photo: Photo) -> str | None:
        try:
            content = json.loads(photo.path.with_suffix(".json").read_bytes())
        except (OSError, ValueError):
            return None
        caption = content.get(self.field) if isinstance(content, dict) else None
        return caption if isinstance(caption, str) and caption else None
