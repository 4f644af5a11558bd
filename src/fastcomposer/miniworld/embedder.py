"""Identity embedder: a unit vector of a person that does not depend on clothing and expression."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics.functional.classification import binary_auroc
from torchvision.ops import roi_align

from fastcomposer.metrics.pretrained import load_pretrained
from fastcomposer.utils.ranges import Count, Positive, Side


class IdentityEmbedder(ModelMixin, ConfigMixin):  # type: ignore[misc]
    """A small convolutional network on the crop of a head.

    The last layer is linear over all positions of the crop instead of their mean, as in Deng et al. (2019,
    "ArcFace", section 3.1), because hair and beard have their positions.

    Args:
        embed_dim: Width d of the unit vectors.
        crop_size: Side of the crop in pixels, a multiple of 8.
        margin: Size of the crop relative to the head's box, at least 1: long hair reaches out of the box.
        channels: Widths at strides 2, 4 and 8, multiples of 8.

    Raises:
        ValueError: If the crop's side or a width is not a positive multiple of 8, or the margin below 1.
    """

    config: Any

    @register_to_config
    def __init__(
        self,
        embed_dim: Count = 96,
        crop_size: Side = 48,
        margin: Positive = 1.15,
        channels: tuple[int, int, int] = (24, 48, 96),
    ) -> None:
        super().__init__()
        if len(channels) != 3 or any(c < 8 or c % 8 for c in (crop_size, *channels)):
            raise ValueError(
                f"crop_size={crop_size}, channels={list(channels)}: a side and three widths, "
                "each a multiple of 8"
            )
        if margin < 1:
            raise ValueError(f"margin={margin}: a crop is at least as large as the head, so at least 1")
        first, second, third = channels
        self.features = nn.Sequential(
            *_layer(3, first, stride=2),
            *_layer(first, second, stride=2),
            _Residual(second),
            *_layer(second, third, stride=2),
            _Residual(third),
            nn.Conv2d(third, third // 2, 1),
        )
        self.project = nn.Linear(third // 2 * (crop_size // 8) ** 2, embed_dim)

    def forward(self, crops: Tensor) -> Tensor:
        """Map crops (N, 3, S, S), centred on 0 as :meth:`crop` makes them, to unit vectors (N, d)."""
        return F.normalize(self.project(self.features(crops).flatten(1)).float(), dim=-1)

    def crop(self, images: Tensor, boxes: Tensor | Sequence[Tensor]) -> Tensor:
        """Cut heads out of (B, 3, H, W) float in [0, 1] as (sum of n_i, 3, S, S) in [-1, 1], image by image.

        Boxes, x1, y1, x2, y2 in pixels, are (B, 4), one per image, or (n_i, 4) for each. Outside is grey.
        """
        if len(boxes) != len(images):
            raise ValueError(f"boxes for {len(boxes)} images, but there are {len(images)} images")
        each = list(boxes.unsqueeze(1)) if isinstance(boxes, Tensor) else list(boxes)
        larger = [_enlarge(box.to(images), self.config.margin) for box in each]
        side = self.config.crop_size
        return roi_align(images * 2 - 1, larger, side, sampling_ratio=-1, aligned=True)

    @torch.no_grad()
    def embed(self, images: Tensor, boxes: Tensor | Sequence[Tensor]) -> Tensor:
        """Embed heads; arguments as for :meth:`crop`, unit vectors (sum of n_i, d) float32."""
        crops = self.crop(images, boxes)
        if not len(crops):
            return crops.new_zeros(0, self.config.embed_dim, dtype=torch.float32)
        return self(crops)


class HeadEmbedder(nn.Module):
    """Embeds annotated heads for the identity loss: a second embedder, which does not score.

    Args:
        base: Base folder.
        subfolder: Folder of the embedder in it.

    Raises:
        FileNotFoundError: If there is no such network.
    """

    def __init__(self, base: str | Path, subfolder: str = "training_embedder") -> None:
        super().__init__()
        self.embedder = load_pretrained(IdentityEmbedder, base, "embedder.base", subfolder)

    def forward(self, images: Tensor, boxes: Tensor) -> Tensor:
        """See :class:`~fastcomposer.training.face_losses.face_loss.FaceEmbedder`."""
        return self.embedder(self.embedder.crop(images, list(boxes))).unflatten(0, boxes.shape[:2])


@dataclass(frozen=True)
class Pairs:
    """Pairs of heads."""

    cosine: Tensor  # (P,) float, similarity of the two
    same: Tensor  # (P,) bool, whether both are the same person

    @property
    def auc(self) -> float:
        """Area under the receiver operating characteristic of verification by the cosine."""
        if not self.same.any() or self.same.all():
            raise ValueError("verification needs pairs of one person and of two: measure on more scenes")
        probability = (self.cosine.double() + 1) / 2  # values outside [0, 1] would be taken for logits
        return float(binary_auroc(probability, self.same.long()))

    @property
    def gap(self) -> Tensor:
        """Mean similarity of the same person minus that of different people; NaN without either."""
        return self.cosine[self.same].mean() - self.cosine[~self.same].mean()


def pair_up(embeddings: Tensor, people: Tensor, allowed: Tensor) -> Pairs:
    """Compare every two heads once: (N, d) unit vectors, (N,) people; ``allowed`` (N, N) is symmetric."""
    first, second = torch.nonzero(allowed.triu(1), as_tuple=True)
    return Pairs((embeddings[first] * embeddings[second]).sum(-1), people[first] == people[second])


def _enlarge(boxes: Tensor, factor: float) -> Tensor:
    center, half = (boxes[:, :2] + boxes[:, 2:]) / 2, (boxes[:, 2:] - boxes[:, :2]) / 2 * factor
    return torch.cat([center - half, center + half], dim=1)


def _layer(inputs: int, outputs: int, stride: int = 1) -> list[nn.Module]:
    convolution = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)
    return [convolution, nn.GroupNorm(8, outputs), nn.SiLU()]


class _Residual(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.layer = nn.Sequential(*_layer(channels, channels))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layer(x)
