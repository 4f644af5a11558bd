"""Scores of the images that are drawn while training."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.functional import to_tensor

from fastcomposer.evaluation.scoring import read_reference
from fastcomposer.metrics.faces import FaceExtractor
from fastcomposer.metrics.identity import identity_score
from fastcomposer.metrics.image_scores import prompt_consistency
from fastcomposer.metrics.image_text import ImageTextExtractor
from fastcomposer.prompt import strip_markers
from fastcomposer.training.samples import SampleScore


class SampleScores:
    """Scores images as an evaluation does, subject by subject.

    Args:
        faces: Finds and embeds faces.
        image_text: Embeds images and texts.
        reference_size: See :func:`~fastcomposer.evaluation.scoring.read_reference`.
    """

    def __init__(
        self, faces: FaceExtractor, image_text: ImageTextExtractor, reference_size: int | None = None
    ) -> None:
        self.faces, self.image_text, self.reference_size = faces, image_text, reference_size
        self._known: dict[str, Tensor] = {}

    @torch.no_grad()
    def __call__(
        self, photos: Sequence[Image.Image], prompts: Sequence[str], references: Sequence[Sequence[str]]
    ) -> list[SampleScore]:
        """See :class:`~fastcomposer.training.samples.SampleScorer`."""
        images = torch.stack([to_tensor(image.convert("RGB")) for image in photos])
        texts = self.image_text.embed_texts([strip_markers(prompt) for prompt in prompts])
        consistency = prompt_consistency(self.image_text.embed_images(images), texts)
        scores = []
        for found, names, value in zip(self.faces(images), references, consistency, strict=True):
            known = [self._face(name) for name in names]
            seen = [k for k, face in enumerate(known) if len(face)]
            matched: dict[int, float] = {}
            if seen:
                score = identity_score(found, torch.cat([known[k] for k in seen]))
                matched = dict(zip(seen, score.matched, strict=True))
            identity = tuple(matched.get(k) for k in range(len(known)))
            scores.append(SampleScore(identity, float(value)))
        return scores

    def _face(self, file: str) -> Tensor:
        """Embedding (1, d) of the largest face of a reference; (0, d) without any."""
        if file not in self._known:
            (found,) = self.faces(read_reference(Path(file), self.reference_size)[None])
            self._known[file] = found.largest_first().embeddings[:1].cpu()
        return self._known[file]
