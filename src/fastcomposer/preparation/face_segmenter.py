"""Coarse segments of people around their faces, without any downloaded network."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image

from fastcomposer.preparation.interfaces import Photo, Region, Segmentation, Segmenter, check_fractions
from fastcomposer.utils.ranges import Fraction, Side

# Outlines of a person in widths and heights of the face, from the middle of the face: the certain part and
# the possible part. Hair is above, shoulders are about three faces wide.
_SURE_HEAD, _HEAD = (0.38, 0.45), (1.1, 1.2)
_SURE_TORSO, _TORSO = (0.25, 0.7), (1.0, 2.7)  # half widths at the chin and from the shoulders on
_SHOULDERS = 1.3  # heights of the face below its middle
_LENGTH = 6.0


@dataclass
class FaceSegmenter(Segmenter):
    """Heads and bodies around the faces that MTCNN finds; its weights come with facenet-pytorch.

    Between the certain and the possible part of a person, random walks (Grady, *Random Walks for Image
    Segmentation*, TPAMI 2006) find the outline along edges of the image. The result is coarser than that of
    a segmentation network, and people whose face is not visible are missed.

    Args:
        label: Label of all segments.
        threshold: Minimum probability of a face.
        min_face: Minimum side of a face, as a fraction of the image's shorter side.
        side: Longer side in pixels at which outlines are found, at least 32.

    Raises:
        ValueError: If a value is out of range.
    """

    choice = "faces"
    label: str = "person"
    threshold: Fraction = 0.9
    min_face: Fraction = 0.05
    side: Side = 192

    def __post_init__(self) -> None:
        check_fractions("data.segmenter", threshold=self.threshold, min_face=self.min_face)
        if self.side < 32:
            raise ValueError(f"data.segmenter.side={self.side}: must be at least 32")

    def load(self) -> None:
        """Load MTCNN."""
        from facenet_pytorch import MTCNN

        self.network = MTCNN(keep_all=True).eval().requires_grad_(False)

    @torch.no_grad()
    def segment(self, photos: Sequence[Photo]) -> list[Segmentation]:
        """Segment photos one by one: MTCNN batches images of one size only."""
        return [self._segment(photo.image) for photo in photos]

    def _segment(self, image: Image.Image) -> Segmentation:
        self.network.device = self.network.pnet.conv1.weight.device  # it does not follow the module
        boxes, scores = self.network.detect(image)
        smallest = self.min_face * min(image.size)
        faces = [
            np.asarray(box, float)
            for box, score in ([] if boxes is None else zip(boxes, scores, strict=True))
            if score >= self.threshold and min(box[2] - box[0], box[3] - box[1]) >= smallest
        ]
        faces.sort(key=lambda box: box[0])
        segment_map = outlines(image, faces, self.side)
        ids = [number + 1 for number in range(len(faces)) if (segment_map == number + 1).any()]
        return Segmentation(segment_map, tuple(Region(number, self.label) for number in ids))


def outlines(image: Image.Image, faces: Sequence[np.ndarray], side: int = 192) -> np.ndarray:
    """Outline people around their faces (x1, y1, x2, y2 in pixels); ``side`` as of :class:`FaceSegmenter`.

    Returns:
        (H, W) int64: 0 for the background, 1 for the person of the first face, and so on.
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
    for number in reversed(range(len(faces))):  # where people overlap, the one further left
        seeds[sure[number]] = number + 1
    # A face in front of another person's body keeps its own person.
    for number, face in enumerate(faces):
        seeds[_head(x, y, face * scale, _SURE_HEAD)] = number + 1
    if (seeds == 0).any() and small.std() > 0:  # without edges, the certain part only
        # The most probable person settles before the probabilities do: prob_tol only silences a warning.
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
