"""An embedder of faces whose values are known."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class MeanColor(nn.Module):
    """Embeds a face by its mean colour."""

    def forward(self, images: Tensor, boxes: Tensor) -> Tensor:
        colors = []
        for image, row in zip(images, boxes.long().tolist(), strict=True):
            crops = [image[:, y1 : max(y2, y1 + 1), x1 : max(x2, x1 + 1)] for x1, y1, x2, y2 in row]
            colors.append(torch.stack([crop.mean((1, 2)) for crop in crops]))
        return torch.nn.functional.normalize(torch.stack(colors) - 0.5, dim=-1)
