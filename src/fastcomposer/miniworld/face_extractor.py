"""Heads of the mini world as faces: its detector, with its identity embedder or alone."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from fastcomposer.metrics.faces import Faces
from fastcomposer.metrics.pretrained import load_pretrained
from fastcomposer.miniworld.detector import HeadDetector
from fastcomposer.miniworld.embedder import IdentityEmbedder
from fastcomposer.utils.ranges import Fraction


class MiniFaces(nn.Module):
    """Heads of the mini world, the surest first.

    Args:
        base: Base folder with ``detector/`` and ``embedder/``.
        threshold: Least score of a head, 0 to 1.

    Raises:
        FileNotFoundError: If the folder has no such networks.
    """

    def __init__(self, base: str | Path, threshold: Fraction = 0.4) -> None:
        super().__init__()
        self.detector = load_pretrained(HeadDetector, base, "metrics.faces.base", "detector")
        self.embedder = load_pretrained(IdentityEmbedder, base, "metrics.faces.base", "embedder")
        self.threshold = threshold
        self.embed_dim = int(self.embedder.config.embed_dim)

    @torch.no_grad()
    def forward(self, images: Tensor) -> list[Faces]:
        """Extract heads; see :class:`FaceExtractor`. Both sides of the images are multiples of 4."""
        pixels = images.to(self.embedder.device)
        found = self.detector.detect(pixels, self.threshold)
        vectors = self.embedder.embed(pixels, [heads.boxes for heads in found])
        parts = vectors.split([len(heads) for heads in found])
        return [
            Faces(heads.boxes.to(images.device), heads.scores.to(images.device), part.to(images.device))
            for heads, part in zip(found, parts, strict=True)
        ]

    @torch.no_grad()
    def blank(self) -> Tensor:
        """Embedding (d,) of a grey crop."""
        side = self.embedder.config.crop_size
        return self.embedder(torch.zeros(1, 3, side, side, device=self.embedder.device))[0].cpu()


class MiniBoxes(nn.Module):
    """Boxes of the mini world's heads: those of :class:`MiniFaces`, without an embedder.

    Args:
        base: Base folder with ``detector/``.
        threshold: Least score of a head, 0 to 1.

    Raises:
        FileNotFoundError: If the folder has no such network.
    """

    def __init__(self, base: str | Path, threshold: Fraction = 0.4) -> None:
        super().__init__()
        self.detector = load_pretrained(HeadDetector, base, "reward.loss.detector.base", "detector")
        self.threshold = threshold

    def forward(self, images: Tensor) -> list[Tensor]:
        """See :class:`~fastcomposer.training.face_losses.matching.FaceDetector`."""
        found = self.detector.detect(images.to(self.detector.device), self.threshold)
        return [heads.boxes.to(images.device) for heads in found]
