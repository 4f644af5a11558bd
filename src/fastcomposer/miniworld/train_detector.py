"""Training of the head detector, a metric model of the mini world."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from fastcomposer.miniworld.degradation import jitter_colors, soften
from fastcomposer.miniworld.detector import CenterMaps, HeadDetector, count_detections, encode
from fastcomposer.miniworld.part_module import PartModule
from fastcomposer.miniworld.scene_dataset import SceneBatch
from fastcomposer.training.base_module import OptimizerFactory
from fastcomposer.utils.ranges import Amount, Fraction


def focal_loss(logits: Tensor, target: Tensor, alpha: float = 2.0, beta: float = 4.0) -> Tensor:
    """Penalty-reduced focal loss of a heat map, per centre (Zhou et al. 2019, equation 1).

    Both are (B, h, w), the target in [0, 1] and exactly 1 at centres. ``alpha`` is how fast the weight of an
    easy cell falls, ``beta`` how much less a cell near a centre counts.
    """
    heat = logits.sigmoid()
    centers = target == 1
    at_centers = -F.logsigmoid(logits) * (1 - heat) ** alpha
    elsewhere = -F.logsigmoid(-logits) * heat**alpha * (1 - target) ** beta
    return torch.where(centers, at_centers, elsewhere).sum() / centers.sum().clamp(min=1)


def box_loss(predicted: CenterMaps, target: CenterMaps) -> Tensor:
    """Mean absolute error of size and offset at the centres (Zhou et al. 2019, equations 2 and 3).

    Sizes are compared as logarithms: a pixel matters more to a small head.
    """
    centers = (target.heat == 1).unsqueeze(1)
    error = (predicted.log_size - target.log_size).abs() + (predicted.offset - target.offset).abs()
    return (error * centers).sum() / centers.sum().clamp(min=1)


class DetectorModule(PartModule):
    """Centre points of heads in scenes with softened, noisy and recoloured pixels.

    Args:
        detector: The detector.
        optimizer: Makes the optimizer.
        box_weight: Weight of size and offset against the heat.
        color_jitter: Range of contrast and of each colour's brightness, relative to 1.
        grey: Fraction of scenes that lose their colour.
        **recipe: Further arguments of :class:`RecipeModule`.
    """

    PART = "detector"
    LOGGED = ("train/loss", "train/heat", "train/boxes", "val/recall", "val/precision")

    def __init__(
        self,
        detector: HeadDetector,
        optimizer: OptimizerFactory,
        box_weight: Amount = 1.0,
        color_jitter: Fraction = 0.25,
        grey: Fraction = 0.1,
        **recipe: Any,
    ) -> None:
        super().__init__(optimizer, **recipe)
        self.detector = detector
        self.box_weight, self.color_jitter, self.grey = box_weight, color_jitter, grey

    def training_step(self, batch: SceneBatch, batch_idx: int) -> Tensor:
        """Heat, size and offset of a batch of scenes."""
        generator = self.step_generator()
        images = jitter_colors((batch.pixel_values + 1) / 2, self.color_jitter, generator, self.grey)
        predicted = self.detector(soften(images, generator))
        target = encode(batch.heads, batch.present, *images.shape[-2:])
        heat, boxes = focal_loss(predicted.heat, target.heat), box_loss(predicted, target)
        loss = heat + self.box_weight * boxes
        self.log_dict({"train/loss": loss, "train/heat": heat, "train/boxes": boxes}, prog_bar=True)
        return loss

    def validation_step(self, batch: SceneBatch, batch_idx: int) -> None:
        """Measure recall and precision at an intersection over union of one half."""
        with self.averaged_weights():
            found = self.detector.detect((batch.pixel_values + 1) / 2)
        truth = [heads[present] for heads, present in zip(batch.heads, batch.present, strict=True)]
        heads, detections, matches = count_detections(found, truth)
        self.log("val/recall", matches / max(heads, 1), batch_size=heads, prog_bar=True)
        self.log("val/precision", matches / max(detections, 1), batch_size=max(detections, 1), prog_bar=True)
