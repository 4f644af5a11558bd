"""Which phrase names which segment: greedily by likeness, or by order."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol
from zlib import crc32

import numpy as np
import torch
from torch import Tensor, nn
from torchvision.transforms.v2 import functional as tvf

from fastcomposer.data.segment_crop import cut_out
from fastcomposer.data.transforms import bounded_square, pad_to_square
from fastcomposer.preparation.interfaces import Match, SegmentedPhoto
from fastcomposer.utils.matching import greedy_pairs
from fastcomposer.utils.settings import base_fingerprint, described

BACKGROUNDS = ("noise", "grey", "keep")


class ImageTextEmbedder(Protocol):
    """Maps images and texts into one space, as metrics.image_text.ClipExtractor does."""

    def embed_images(self, images: Tensor) -> Tensor:
        """Unit vectors (N, d) of images (N, 3, H, W) in [0, 1]."""

    def embed_texts(self, texts: Sequence[str]) -> Tensor:
        """Unit vectors (N, d) of texts."""


class SimilarityMatcher(nn.Module):
    """Greedy one-to-one matching by the similarity of CLIP.

    A segment is shown to CLIP as the references of training are, cut out and on noise. In the mini world that
    tells people apart best: what is around them belongs to others.

    Args:
        image_text: Loads the network; called without arguments.
        template: Sentence around each phrase, with ``{}`` in its place.
        background: What is outside a segment: ``noise``, ``grey``, or ``keep`` for what is there.
        relative: Take means off before pairs are compared (:func:`without_means`); where there is nothing
            to choose, nothing changes.
        min_similarity: Pairs with a smaller cosine are no pairs.
        side: Side in pixels to which cut-outs are resized before the network resizes them to its own.

    Raises:
        ValueError: If the template has no place or the background is unknown.
    """

    def __init__(
        self,
        image_text: Callable[[], ImageTextEmbedder],
        template: str = "a photo of {}",
        background: str = "noise",
        relative: bool = True,
        min_similarity: float = -1.0,
        side: int = 224,
    ) -> None:
        super().__init__()
        if template.count("{}") != 1:
            raise ValueError(f"data.matcher.template={template!r}: needs one {{}} where the phrase goes")
        if background not in BACKGROUNDS:
            raise ValueError(
                f"data.matcher.background={background}: unknown; there is {', '.join(BACKGROUNDS)}"
            )
        self._load = image_text
        self.template, self.background, self.relative = template, background, relative
        self.min_similarity, self.side = min_similarity, side
        self.network: Any = None

    @property
    def settings(self) -> Mapping[str, Any]:
        """See :class:`~fastcomposer.preparation.interfaces.Component`."""
        how = described(self._load, "data.matcher.image_text")
        if isinstance(how, dict) and "model" in how:
            parts = (how.get("subfolder") or "", "tokenizer")
            how = {**how, "model": base_fingerprint(how["model"], parts=parts)}
        return {
            "matcher": "similarity",
            "image_text": how,
            "template": self.template,
            "background": self.background,
            "relative": self.relative,
            "min_similarity": self.min_similarity,
            "side": self.side,
        }

    def load(self) -> None:
        """Read the weights."""
        self.network = self._load()

    @torch.no_grad()
    def match(self, scenes: Sequence[SegmentedPhoto]) -> list[tuple[Match, ...]]:
        """Match the phrases and regions of scenes; all images go through the network together."""
        crops = [self._crop(scene, number) for scene in scenes for number in range(len(scene.regions))]
        texts = [self.template.format(phrase.text) for scene in scenes for phrase in scene.phrases]
        if not crops or not texts:
            return [()] * len(scenes)
        device = next((parameter.device for parameter in self.parameters()), torch.device("cpu"))
        with torch.autocast(device.type, enabled=False):  # pairs are judged in full
            images = self.network.embed_images(torch.stack(crops).to(device)).float().cpu().numpy()
            words = self.network.embed_texts(texts).float().cpu().numpy()
        matches, image, word = [], 0, 0
        for scene in scenes:
            own = images[image : image + len(scene.regions)]
            similarity = words[word : word + len(scene.phrases)] @ own.T
            image, word = image + len(scene.regions), word + len(scene.phrases)
            matches.append(self._pairs(scene, similarity))
        return matches

    def _pairs(self, scene: SegmentedPhoto, similarity: np.ndarray) -> tuple[Match, ...]:
        found: list[Match] = []
        for label in dict.fromkeys(phrase.label for phrase in scene.phrases):
            phrases = [i for i, phrase in enumerate(scene.phrases) if phrase.label == label]
            regions = [i for i, region in enumerate(scene.regions) if region.label == label]
            own = similarity[np.ix_(phrases, regions)]
            scores = without_means(own) if self.relative else own
            pairs = greedy_pairs(scores, own >= self.min_similarity)
            found += [Match(phrases[p], regions[r], float(own[p, r])) for p, r in pairs]
        return tuple(sorted(found, key=lambda match: match.phrase))

    def _crop(self, scene: SegmentedPhoto, number: int) -> Tensor:
        """(3, S, S) float in [0, 1]."""
        region = scene.regions[number]
        segment_map, box = scene.segmentation.segment_map, scene.segmentation.box(region.id)
        pixels = np.array(scene.photo.image)
        x1, y1, x2, y2 = box
        if self.background == "noise":
            # Noise of its own for every segment, the same whenever it is drawn.
            rng = np.random.default_rng([crc32(scene.photo.photo_id.encode()), region.id])
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
    """Leave of similarities what tells the candidates apart.

    Some phrases fit every image better than others do, and some images every phrase. Where every segment
    gets a phrase, how well it fits all of them is beside the point, so its mean over the phrases is taken
    off; and where every phrase gets a segment, its mean over the segments.

    Args:
        similarity: (P, R), of phrases with regions.

    Returns:
        (P, R), to compare among themselves only.
    """
    phrases, regions = similarity.shape
    relative = similarity
    if 0 < regions <= phrases:
        relative = relative - relative.mean(0, keepdims=True)
    if 0 < phrases <= regions:
        relative = relative - relative.mean(1, keepdims=True)
    return relative


class OrderMatcher:
    """Matches phrases and segments from left to right, for captions that name people in that order.

    Where there are not as many phrases of a kind as segments, nobody knows who is who, and none is matched.
    """

    settings: Mapping[str, Any] = {"matcher": "order"}

    def load(self) -> None:
        """Nothing to read."""

    def match(self, scenes: Sequence[SegmentedPhoto]) -> list[tuple[Match, ...]]:
        """Match the phrases of each scene, in their order, with its regions by the middle of their boxes."""
        return [self._pairs(scene) for scene in scenes]

    def _pairs(self, scene: SegmentedPhoto) -> tuple[Match, ...]:
        def middle(number: int) -> int:
            left, _, right, _ = scene.segmentation.box(scene.regions[number].id)
            return left + right

        found: list[Match] = []
        for label in dict.fromkeys(phrase.label for phrase in scene.phrases):
            phrases = [i for i, phrase in enumerate(scene.phrases) if phrase.label == label]
            regions = [i for i, region in enumerate(scene.regions) if region.label == label]
            if len(phrases) == len(regions):
                pairs = zip(phrases, sorted(regions, key=middle), strict=True)
                found += [Match(phrase, region, 1.0) for phrase, region in pairs]
        return tuple(sorted(found, key=lambda match: match.phrase))
