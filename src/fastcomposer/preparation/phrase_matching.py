"""Matching of phrases with segments: greedily by similarity, or by order."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any
from zlib import crc32

import numpy as np
import torch
from torch import Tensor, nn
from torchvision.transforms.v2 import functional as tvf

from fastcomposer.data.segment_crop import cut_out
from fastcomposer.data.transforms import bounded_square, pad_to_square
from fastcomposer.preparation.interfaces import Match, Matcher, SegmentedPhoto
from fastcomposer.utils.matching import greedy_pairs
from fastcomposer.utils.ranges import Cosine, Side
from fastcomposer.utils.settings import base_fingerprint, described

BACKGROUNDS = ("noise", "grey", "keep")


@dataclass
class SimilarityMatcher(Matcher):
    """Greedy one-to-one matching by CLIP similarity.

    CLIP sees a segment as the training sees references: cut out and on noise. In the mini world this
    separates people best, because their surroundings belong to other people.

    Args:
        image_text: Loads the network; called without arguments
            (:class:`~fastcomposer.metrics.image_text.ClipExtractor`).
        template: Sentence around each phrase, with ``{}`` for the phrase.
        background: Pixels outside a segment: ``noise``, ``grey``, or ``keep`` for those of the photo.
        relative: Subtract means before pairs are compared (:func:`without_means`).
        min_similarity: Minimum cosine similarity of a pair.
        side: Side in pixels to which crops are resized before the network resizes them to its own.

    Raises:
        ValueError: If the template has no ``{}`` or the background is unknown.
    """

    choice = "similarity"
    image_text: Callable[[], Any]
    template: str = "a photo of {}"
    background: str = "noise"
    relative: bool = True
    min_similarity: Cosine = -1.0
    side: Side = 224

    def __post_init__(self) -> None:
        if self.template.count("{}") != 1:
            raise ValueError(f"data.matcher.template={self.template!r}: needs one {{}} for the phrase")
        if self.background not in BACKGROUNDS:
            raise ValueError(
                f"data.matcher.background={self.background}: must be one of {', '.join(BACKGROUNDS)}"
            )

    @property
    def settings(self) -> Mapping[str, Any]:
        """Everything that determines the pairs."""
        network = described(self.image_text, "data.matcher.image_text")
        if isinstance(network, dict) and "model" in network:
            parts = (network.get("subfolder") or "", "tokenizer")
            network = {**network, "model": base_fingerprint(network["model"], parts=parts)}
        return {**super().settings, "image_text": network}

    def load(self) -> None:
        """Load the weights."""
        self.network = self.image_text()

    @torch.no_grad()
    def match(self, photos: Sequence[SegmentedPhoto]) -> list[tuple[Match, ...]]:
        """Match phrases and regions; the crops of all photos go through the network together."""
        crops = [self._crop(photo, number) for photo in photos for number in range(len(photo.regions))]
        texts = [self.template.format(phrase.text) for photo in photos for phrase in photo.phrases]
        if not crops or not texts:
            return [()] * len(photos)
        parameters = self.network.parameters() if isinstance(self.network, nn.Module) else ()
        device = next((parameter.device for parameter in parameters), torch.device("cpu"))
        with torch.autocast(device.type, enabled=False):  # similarities are compared in float32
            images = self.network.embed_images(torch.stack(crops).to(device)).float().cpu().numpy()
            words = self.network.embed_texts(texts).float().cpu().numpy()
        own_images = np.split(images, [*accumulate(len(photo.regions) for photo in photos)][:-1])
        own_words = np.split(words, [*accumulate(len(photo.phrases) for photo in photos)][:-1])
        similarities = (word @ image.T for word, image in zip(own_words, own_images, strict=True))
        return [self._pairs(*pair) for pair in zip(photos, similarities, strict=True)]

    def _pairs(self, photo: SegmentedPhoto, similarity: np.ndarray) -> tuple[Match, ...]:
        found: list[Match] = []
        for phrases, regions in _by_label(photo):
            own = similarity[np.ix_(phrases, regions)]
            scores = without_means(own) if self.relative else own
            pairs = greedy_pairs(scores, own >= self.min_similarity)
            found += [Match(phrases[p], regions[r], float(own[p, r])) for p, r in pairs]
        return tuple(sorted(found, key=lambda match: match.phrase))

    def _crop(self, photo: SegmentedPhoto, number: int) -> Tensor:
        """(3, S, S) float in [0, 1]."""
        region = photo.regions[number]
        segment_map, box = photo.segmentation.segment_map, photo.segmentation.box(region.id)
        pixels = np.array(photo.photo.image)
        x1, y1, x2, y2 = box
        if self.background == "noise":
            # Reproducible noise for each segment.
            rng = np.random.default_rng([crc32(photo.photo.photo_id.encode()), region.id])
            square = _on_noise(bounded_square(cut_out(pixels, segment_map, region.id, box, rng)), rng)
        else:
            if self.background == "grey":
                pixels[segment_map != region.id] = 127
            square = pad_to_square(torch.from_numpy(pixels[y1:y2, x1:x2]).permute(2, 0, 1))
        size = [self.side, self.side]
        square = tvf.resize(square.contiguous(), size, tvf.InterpolationMode.BICUBIC, antialias=True)
        return tvf.to_dtype(square, torch.float32, scale=True)


def _on_noise(crop: Tensor, rng: np.random.Generator) -> Tensor:
    """Put a (3, h, w) uint8 crop into the middle of a square of noise."""
    height, width = crop.shape[-2:]
    side = max(height, width)
    square = torch.from_numpy(rng.integers(0, 256, (3, side, side), dtype=np.uint8))
    top, left = (side - height) // 2, (side - width) // 2
    square[:, top : top + height, left : left + width] = crop
    return square


def without_means(similarity: np.ndarray) -> np.ndarray:
    """Subtract from similarities what does not separate the candidates.

    Some phrases are similar to every image, and some images to every phrase. Where every region gets a
    phrase, its mean over the phrases is subtracted; where every phrase gets a region, its mean over the
    regions. Input and output are (P, R), of phrases with regions; the output compares among itself only.
    """
    phrases, regions = similarity.shape
    relative = similarity
    if 0 < regions <= phrases:
        relative = relative - relative.mean(0, keepdims=True)
    if 0 < phrases <= regions:
        relative = relative - relative.mean(1, keepdims=True)
    return relative


@dataclass
class OrderMatcher(Matcher):
    """Matches phrases and segments from left to right, for captions that name people in that order.

    Where the numbers of phrases and of segments of a label differ, none of them is matched.
    """

    choice = "order"

    def match(self, photos: Sequence[SegmentedPhoto]) -> list[tuple[Match, ...]]:
        """Match the phrases of each photo, in their order, with its regions by the middle of their boxes."""
        return [self._pairs(photo) for photo in photos]

    def _pairs(self, photo: SegmentedPhoto) -> tuple[Match, ...]:
        boxes = [photo.segmentation.box(region.id) for region in photo.regions]
        found: list[Match] = []
        for phrases, regions in _by_label(photo):
            if len(phrases) == len(regions):
                ordered = sorted(regions, key=lambda number: boxes[number][0] + boxes[number][2])
                found += [Match(*pair, 1.0) for pair in zip(phrases, ordered, strict=True)]
        return tuple(sorted(found, key=lambda match: match.phrase))


def _by_label(photo: SegmentedPhoto) -> Iterator[tuple[list[int], list[int]]]:
    """Indices of the phrases and of the regions of each label."""
    for label in dict.fromkeys(phrase.label for phrase in photo.phrases):
        phrases = [i for i, phrase in enumerate(photo.phrases) if phrase.label == label]
        yield phrases, [i for i, region in enumerate(photo.regions) if region.label == label]
