"""People found by their faces: coarse segments for whoever can download no network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn

from fastcomposer.preparation.interfaces import Photo, Region, Segmentation

# Outlines of a person in widths and heights of the face, from the middle of the face: what surely is the
# person, and what may be. Hair is above, shoulders are about three faces wide.
_SURE_HEAD, _HEAD = (0.38, 0.45), (1.1, 1.2)
_SURE_TORSO, _TORSO = (0.25, 0.7), (1.0, 2.7)  # half widths at the chin and from the shoulders on
_SHOULDERS = 1.3  # of a face's height below its middle
_LENGTH = 6.0


class FaceSegmenter(nn.Module):
    """Heads and bodies around the faces that MTCNN finds; its weights come with facenet-pytorch.

    A face gives away where its person surely is and where they may be; between the two, random walks (Grady,
    *Random Walks for Image Segmentation*, TPAMI 2006) find the outline along edges of the image. Coarser
    than a network that was trained to segment, and blind to people whose faces are not seen.

    Args:
        label: Label of all segments.
        threshold: Least probability of a face.
        min_face: Least side of a face, as a share of the image's shorter side.
        side: Longer side in pixels at which outlines are found.

    Raises:
        ValueError: If a share is none, or the side is too small.
    """

    def __init__(
        self, label: str = "person", threshold: float = 0.9, min_face: float = 0.05, side: int = 192
    ) -> None:
        super().__init__()
        for name, value in (("threshold", threshold), ("min_face", min_face)):
            if not 0 <= value <= 1:
                raise ValueError(f"data.segmenter.{name}={value}: must lie between 0 and 1")
        if side < 32:
            raise ValueError(f"data.segmenter.side={side}: at least 32")
        self.label, self.threshold, self.min_face, self.side = label, threshold, min_face, side
        self.detector: Any = None

    @property
    def settings(self) -> Mapping[str, Any]:
        """See :class:`~fastcomposer.preparation.interfaces.Component`."""
        shares = {"threshold": self.threshold, "min_face": self.min_face}
        return {"segmenter": "faces", "label": self.label, **shares, "side": self.side}

    def load(self) -> None:
        """Read MTCNN's weights."""
        from facenet_pytorch import MTCNN

        self.detector = MTCNN(keep_all=True).eval().requires_grad_(False)

    @torch.no_grad()
    def segment(self, photos: Sequence[Photo]) -> list[Segmentation]:
        """Segment photos, one at a time: MTCNN wants images of one size otherwise."""
        return [self._segment(photo.image) for photo in photos]

    def _segment(self, image: Image.Image) -> Segmentation:
        self.detector.device = self.detector.pnet.conv1.weight.device  # it does not follow the module
        boxes, scores = self.detector.detect(image)
        least = self.min_face * min(image.size)
        found = [] if boxes is None else list(zip(boxes, scores, strict=True))
        faces = [
            np.asarray(box, float)
            for box, score in found
            if score >= self.threshold and min(box[2] - box[0], box[3] - box[1]) >= least
        ]
        faces.sort(key=lambda box: box[0])
        segment_map = outlines(image, faces, self.side)
        regions = [Region(number + 1, self.label) for number in range(len(faces))]
        return Segmentation(
            segment_map, tuple(region for region in regions if (segment_map == region.id).any())
        )


def outlines(image: Image.Image, faces: Sequence[np.ndarray], side: int = 192) -> np.ndarray:
    """Outline the people whose faces are known.

    Args:
        image: RGB image.
        faces: x1, y1, x2, y2 of each, in pixels.
        side: Longer side at which they are outlined.

    Returns:
        (H, W) int64: 0 for nobody, 1 for the first face's person, and so on.
    """
    if not faces:
        return np.zeros((image.height, image.width), np.int64)
    from skimage.segmentation import random_walker

    scale = min(1.0, side / max(image.size))
    width, height = (max(1, round(length * scale)) for length in image.size)
    small = np.asarray(image.resize((width, height), Image.Resampling.BOX), float) / 255
    y, x = np.mgrid[:height, :width] + 0.5
    sure, possible = (
        np.stack([_person(x, y, face * scale, *shape) for face in faces])
        for shape in ((_SURE_HEAD, _SURE_TORSO), (_HEAD, _TORSO))
    )
    nobody = len(faces) + 1
    seeds = np.where(possible.any(0), 0, nobody)
    for number in reversed(range(len(faces))):  # who overlap: the one further left
        seeds[sure[number]] = number + 1
    # A face in front of somebody else's body is a face.
    for number, face in enumerate(faces):
        seeds[_head(x, y, face * scale, _SURE_HEAD)] = number + 1
    if (seeds == 0).any() and small.std() > 0:  # without any edge nobody is more than what is sure
        # Only who is likeliest counts, which is settled before probabilities are: prob_tol says when to warn.
        seeds = random_walker(small, seeds, beta=300, mode="cg_j", tol=1e-5, prob_tol=1e9, channel_axis=-1)
    people = np.where(seeds == nobody, 0, seeds).astype(np.uint8)
    enlarged = Image.fromarray(people).resize(image.size, Image.Resampling.NEAREST)
    return np.asarray(enlarged).astype(np.int64)


def _head(x: np.ndarray, y: np.ndarray, face: np.ndarray, radii: tuple[float, float]) -> np.ndarray:
    x1, y1, x2, y2 = face
    across, along = (x - (x1 + x2) / 2) / (x2 - x1), (y - (y1 + y2) / 2) / (y2 - y1)
    return (across / radii[0]) ** 2 + (along / radii[1]) ** 2 <= 1


def _person(
    x: np.ndarray, y: np.ndarray, face: np.ndarray, head: tuple[float, float], torso: tuple[float, float]
) -> np.ndarray:
    """Mask of an ellipse for the head, and a body that widens from the chin to the shoulders."""
    x1, y1, x2, y2 = face
    across, along = np.abs(x - (x1 + x2) / 2) / (x2 - x1), (y - (y1 + y2) / 2) / (y2 - y1)
    part = np.clip((along - 0.5) / (_SHOULDERS - 0.5), 0, 1)
    body = (across <= torso[0] + (torso[1] - torso[0]) * part) & (along >= 0.4) & (along <= _LENGTH)
    return body | _head(x, y, face, head)
