"""Segments: from a panoptic or instance network, or from maps that are there already."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from fastcomposer.data.photos.interfaces import Photo, Region, Segmentation
from fastcomposer.data.photos.pretrained import load_with_processor
from fastcomposer.data.photos.source import UnusablePhotoError
from fastcomposer.runtime.settings import base_fingerprint

TASKS = ("panoptic", "instance")
# transformers gives every Swin a final norm. The backbone does not use it, and released files lack it.
_UNUSED = frozenset(f"model.pixel_level_module.encoder.swin.layernorm.{name}" for name in ("weight", "bias"))


class PretrainedSegmenter(nn.Module):
    """A segmentation network of transformers, such as Mask2Former.

    Args:
        model: Folder or hub id.
        task: ``panoptic`` or ``instance``, whatever the network was trained for.
        threshold: Least probability of a segment's class.
        mask_threshold: Probability from which a pixel belongs to a segment.
        overlap: Least share of a mask that must not be hidden by others (panoptic).

    Raises:
        ValueError: If the task is unknown or a probability is none.
    """

    def __init__(
        self,
        model: str,
        task: str = "panoptic",
        threshold: float = 0.8,
        mask_threshold: float = 0.5,
        overlap: float = 0.8,
    ) -> None:
        super().__init__()
        if task not in TASKS:
            raise ValueError(f"data.segmenter.task={task}: unknown; there is {', '.join(TASKS)}")
        for name, value in (
            ("threshold", threshold),
            ("mask_threshold", mask_threshold),
            ("overlap", overlap),
        ):
            if not 0 <= value <= 1:
                raise ValueError(f"data.segmenter.{name}={value}: must lie between 0 and 1")
        self.model, self.task = model, task
        self.threshold, self.mask_threshold, self.overlap = threshold, mask_threshold, overlap
        self.network: Any = None

    @property
    def settings(self) -> Mapping[str, Any]:
        """See :class:`~fastcomposer.data.photos.interfaces.Component`."""
        return {
            "segmenter": "pretrained",
            "model": base_fingerprint(self.model, parts=("",)),
            "task": self.task,
            "threshold": self.threshold,
            "mask_threshold": self.mask_threshold,
            "overlap": self.overlap,
        }

    def load(self) -> None:
        """Read the weights."""
        from transformers import AutoImageProcessor, AutoModelForUniversalSegmentation

        key = "data.segmenter.model"
        self.network, self._processor = load_with_processor(
            AutoModelForUniversalSegmentation, AutoImageProcessor, self.model, key, _UNUSED
        )

    @torch.no_grad()
    def segment(self, photos: Sequence[Photo]) -> list[Segmentation]:
        """Segment photos."""
        images = [photo.image for photo in photos]
        inputs = self._processor(images=images, return_tensors="pt").to(self.network.device)
        outputs = self.network(pixel_values=inputs["pixel_values"], pixel_mask=inputs.get("pixel_mask"))
        options: dict[str, Any] = {
            "threshold": self.threshold,
            "mask_threshold": self.mask_threshold,
            "overlap_mask_area_threshold": self.overlap,
            "target_sizes": [(image.height, image.width) for image in images],
        }
        if self.task == "panoptic":
            # Nothing is fused: every person is a segment of their own.
            found = self._processor.post_process_panoptic_segmentation(
                outputs, label_ids_to_fuse=set(), **options
            )
        else:
            found = self._processor.post_process_instance_segmentation(outputs, **options)
        names = self.network.config.id2label
        return [self._numbered(entry, names, photo) for entry, photo in zip(found, photos, strict=True)]

    def _numbered(self, found: Mapping[str, Any], names: Mapping[int, str], photo: Photo) -> Segmentation:
        """Number what is found from 1; pixels of nothing are 0."""
        pixels = found["segmentation"]
        size = (photo.image.height, photo.image.width)
        source = np.zeros(size, np.int64) if pixels is None else pixels.cpu().numpy().astype(np.int64)
        segment_map = np.zeros(size, np.int64)
        regions: list[Region] = []
        for entry in found["segments_info"]:
            mask = source == entry["id"]
            if mask.any():
                regions.append(Region(len(regions) + 1, names[entry["label_id"]]))
                segment_map[mask] = regions[-1].id
        return Segmentation(segment_map, tuple(regions))


class SegmentMaps:
    """Takes segments from maps beside the photos: 2-D ``.npy`` files of integers, 0 for no segment.

    Args:
        label: Label of all segments.
    """

    def __init__(self, label: str = "person") -> None:
        self.label = label

    @property
    def settings(self) -> Mapping[str, Any]:
        """See :class:`~fastcomposer.data.photos.interfaces.Component`."""
        return {"segmenter": "maps", "label": self.label}

    def load(self) -> None:
        """Nothing to read."""

    def segment(self, photos: Sequence[Photo]) -> list[Segmentation]:
        """Read the map of each photo.

        Raises:
            UnusablePhotoError: If a map is missing, damaged or of another size.
        """
        return [self._read(photo) for photo in photos]

    def _read(self, photo: Photo) -> Segmentation:
        file = photo.path.with_suffix(".npy")
        try:
            segment_map = np.load(file, allow_pickle=False)
        except Exception as error:  # a damaged header may raise anything
            raise UnusablePhotoError("no segment map", f"{file.name}: {error}") from None
        if segment_map.shape != (photo.image.height, photo.image.width) or segment_map.dtype.kind not in "iu":
            problem = f"{file.name}: {segment_map.dtype} of shape {segment_map.shape}"
            raise UnusablePhotoError("no segment map", f"{problem} for {photo.image.size} pixels")
        ids = [int(value) for value in np.unique(segment_map) if value != 0]
        return Segmentation(segment_map, tuple(Region(number, self.label) for number in ids))
