"""Segments by a network, or from existing segment maps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from fastcomposer.preparation.interfaces import (
    Photo,
    Region,
    Segmentation,
    Segmenter,
    check_fractions,
    load_with_processor,
)
from fastcomposer.preparation.photos import UnusablePhotoError
from fastcomposer.utils.files import existing_file
from fastcomposer.utils.ranges import Fraction

# Networks that predict logits of classes and of masks for each query.
KINDS = ("mask2former", "maskformer")
# transformers gives every Swin a final norm. The backbone does not use it, and released files lack it.
_UNUSED = frozenset(f"model.pixel_level_module.encoder.swin.layernorm.{name}" for name in ("weight", "bias"))


@dataclass
class PretrainedSegmenter(Segmenter):
    """Mask2Former or MaskFormer, trained for panoptic or for instance segmentation.

    A pixel belongs to the segment whose mask, weighted by its class, has the highest probability there, or
    to none. Segments are not fused: every person is a segment of their own.

    Args:
        model: Folder or hub id.
        threshold: Minimum probability of a segment's class, exclusive.
        mask_threshold: Minimum probability with which a pixel belongs to a segment.
        overlap: Minimum fraction of a mask that other segments do not hide.

    Raises:
        ValueError: If a probability or the fraction is outside [0, 1].
    """

    choice = "pretrained"
    model: str
    threshold: Fraction = 0.8
    mask_threshold: Fraction = 0.5
    overlap: Fraction = 0.8

    def __post_init__(self) -> None:
        values = {name: getattr(self, name) for name in ("threshold", "mask_threshold", "overlap")}
        check_fractions("data.segmenter", **values)

    def load(self) -> None:
        """Load the weights; refuses other networks."""
        from transformers import AutoImageProcessor, AutoModelForUniversalSegmentation

        key = "data.segmenter.model"
        self.network, self._processor = load_with_processor(
            AutoModelForUniversalSegmentation, AutoImageProcessor, self.model, key, _UNUSED
        )
        kind = self.network.config.model_type
        if kind not in KINDS:
            raise ValueError(f"{key}={self.model}: a network of kind {kind}, not {' or '.join(KINDS)}")

    @torch.no_grad()
    def segment(self, photos: Sequence[Photo]) -> list[Segmentation]:
        """Segment photos; the segments of a photo do not depend on the rest of the batch.

        The processor pads a batch to one size, and these networks take the padding for a part of the photo.
        So it is cut off, and photos of one size go through the network together.
        """
        inputs = self._processor(images=[photo.image for photo in photos], return_tensors="pt")
        by_size: dict[tuple[int, int], list[int]] = {}
        for number, mask in enumerate(inputs["pixel_mask"].bool()):
            by_size.setdefault((int(mask.any(1).sum()), int(mask.any(0).sum())), []).append(number)
        found: dict[int, Segmentation] = {}
        for (height, width), numbers in by_size.items():
            pixels = inputs["pixel_values"][numbers, :, :height, :width]
            outputs = self.network(pixel_values=pixels.to(self.network.device))
            logits = zip(numbers, outputs.class_queries_logits, outputs.masks_queries_logits, strict=True)
            for number, classes, masks in logits:
                found[number] = self._segmentation(classes.float(), masks.float(), photos[number])
        return [found[number] for number in range(len(photos))]

    def _segmentation(self, classes: Tensor, masks: Tensor, photo: Photo) -> Segmentation:
        """Assign pixels to queries by (Q, C + 1) class logits, the last one of nothing, and (Q, h, w) masks.

        The post-processing of transformers gives every pixel to the most probable mask, however low its
        probability: where the background fails ``threshold``, a person covers the photo.
        """
        size = (photo.image.height, photo.image.width)
        segment_map = np.zeros(size, np.int64)
        regions: list[Region] = []
        scores, labels = classes.softmax(-1).max(-1)
        kept = (labels < classes.shape[-1] - 1) & (scores > self.threshold)
        if not kept.any():
            return Segmentation(segment_map, ())
        probabilities = functional.interpolate(masks[kept][None], size, mode="bilinear")[0].sigmoid()
        winner = (probabilities * scores[kept, None, None]).argmax(0)
        for query, label in enumerate(labels[kept].tolist()):
            mask = probabilities[query] >= self.mask_threshold
            seen = mask & (winner == query)
            if seen.any() and seen.sum() >= self.overlap * mask.sum():
                regions.append(Region(len(regions) + 1, self.network.config.id2label[label]))
                segment_map[seen.cpu().numpy()] = regions[-1].id
        return Segmentation(segment_map, tuple(regions))


@dataclass
class SegmentMaps(Segmenter):
    """Reads segment maps beside the photos: 2-D ``.npy`` files of integers, 0 for no segment.

    Args:
        label: Label of all segments.
    """

    choice = "maps"
    label: str = "person"

    def segment(self, photos: Sequence[Photo]) -> list[Segmentation]:
        """Read the map of each photo; UnusablePhotoError if it is missing, damaged or of another size."""
        return [self._read(photo) for photo in photos]

    def _read(self, photo: Photo) -> Segmentation:
        file = photo.path.with_suffix(".npy")
        try:
            segment_map = np.load(existing_file(file, "map"), allow_pickle=False)
        except Exception as error:  # a damaged header may raise anything
            raise UnusablePhotoError("no segment map", f"{file.name}: {error}") from None
        if segment_map.shape != (photo.image.height, photo.image.width) or segment_map.dtype.kind not in "iu":
            problem = f"{file.name}: {segment_map.dtype} of shape {segment_map.shape}"
            raise UnusablePhotoError("no segment map", f"{problem} for {photo.image.size} pixels")
        ids = [int(value) for value in np.unique(segment_map) if value != 0]
        return Segmentation(segment_map, tuple(Region(number, self.label) for number in ids))
