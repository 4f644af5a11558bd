"""How good the parts of the embedded base are, on renders of people that none of them was trained on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from torch import Generator, Tensor
from torchmetrics.functional.classification import binary_auroc
from transformers import CLIPModel

from fastcomposer.miniworld.card.captions import caption_accuracy
from fastcomposer.miniworld.degradation import occlude
from fastcomposer.miniworld.detector import HeadDetector, count_matches
from fastcomposer.miniworld.embedder import IdentityEmbedder, pair_up
from fastcomposer.miniworld.scenes import AvatarScenes, Person
from fastcomposer.models.loading import load_tokenizer
from fastcomposer.utils.progress import tracked

_BATCH = 64


@dataclass(frozen=True)
class Row:
    """One figure.

    Attributes:
        part: Part of the base, by the name of its folder.
        measure: What was measured, with its unit.
        value: The figure.
        at_least: What it must reach; ``None`` where nothing is asked.
    """

    part: str
    measure: str
    value: float
    at_least: float | None = None

    @property
    def holds(self) -> bool | None:
        """Whether the figure reaches what is asked; ``None`` where nothing is."""
        return None if self.at_least is None else self.value >= self.at_least

    def as_dict(self) -> dict[str, Any]:
        """Plain values by name."""
        return asdict(self) | {"holds": self.holds}


@dataclass(frozen=True)
class HeldOutScenes:
    """Renders of held-out people.

    Attributes:
        images: (N, 3, S, S) float in [0, 1].
        captions: Captions that never say who somebody is.
        rich_captions: Captions that name skin, hair and beard too, as CLIP learns from.
        people: Who is in each scene, from left to right.
    """

    images: Tensor
    captions: tuple[str, ...]
    rich_captions: tuple[str, ...]
    people: tuple[tuple[Person, ...], ...]

    @property
    def heads(self) -> list[Tensor]:
        """Boxes of the heads in each scene, (n_i, 4) float, x1, y1, x2, y2 in pixels."""
        return [torch.tensor([person.head for person in scene]).float() for scene in self.people]

    def rows(self, count: int) -> Tensor:
        """Positions of the scenes with so many people."""
        return torch.tensor(
            [i for i, scene in enumerate(self.people) if len(scene) == count], dtype=torch.long
        )


def render_held_out(scenes: AvatarScenes, number: int) -> HeldOutScenes:
    """Render the first scenes of the held-out split, as ``prepare`` does but without JPEG in between."""
    rendered = [scenes.scene("test", i) for i in tracked(range(number), "held-out scenes", transient=True)]
    images = torch.stack([torch.tensor(scene.image).permute(2, 0, 1) for scene in rendered])
    return HeldOutScenes(
        images.float() / 255,
        tuple(scene.caption for scene in rendered),
        tuple(scene.rich_caption for scene in rendered),
        tuple(scene.people for scene in rendered),
    )


@torch.no_grad()
def reconstruction_psnr(vae: AutoencoderKL, images: Tensor) -> float:
    """Measure the peak signal-to-noise ratio of an autoencoder, in dB, mean over images.

    Args:
        vae: The autoencoder; the mean of its posterior is decoded.
        images: (N, 3, H, W) float in [0, 1].
    """
    values = []
    for pixels in images.split(_BATCH):
        decoded = vae.decode(vae.encode(2 * pixels - 1).latent_dist.mode()).sample
        error = (((decoded.clamp(-1, 1) + 1) / 2) - pixels).square().mean((1, 2, 3))
        values.append(-10 * error.clamp(min=1e-10).log10())
    return float(torch.cat(values).mean())


@dataclass(frozen=True)
class DetectionRates:
    """How many heads are found and how many detections are heads, at an overlap of one half.

    Attributes:
        heads: Heads that are there.
        detections: Heads that were said to be there.
        matches: Pairs of the two.
    """

    heads: int
    detections: int
    matches: int

    @property
    def recall(self) -> float:
        """Share of heads that were found; 1 where there are none."""
        return self.matches / self.heads if self.heads else 1.0

    @property
    def precision(self) -> float:
        """Share of detections that are heads; 1 where there are none."""
        return self.matches / self.detections if self.detections else 1.0


def detection_rates(detector: HeadDetector, images: Tensor, heads: Sequence[Tensor]) -> DetectionRates:
    """Match detections to heads, the surest first, at an intersection over union of one half.

    Args:
        detector: The detector.
        images: (N, 3, H, W) float in [0, 1].
        heads: For each image the boxes of its heads, (n_i, 4).
    """
    found = [detections for part in images.split(_BATCH) for detections in detector.detect(part)]
    matches = sum(count_matches(detections, truth) for detections, truth in zip(found, heads, strict=True))
    return DetectionRates(sum(map(len, heads)), sum(map(len, found)), matches)


@dataclass(frozen=True)
class Verification:
    """Whether two heads are the same person's, told by the cosine of their vectors.

    Attributes:
        auc: Area under the receiver operating characteristic.
        same: Mean cosine of pairs of one person.
        different: Mean cosine of pairs of two people.
    """

    auc: float
    same: float
    different: float


def verify(cosine: Tensor, same: Tensor) -> Verification:
    """Summarise pairs.

    Args:
        cosine: (P,) similarity of the two heads.
        same: (P,) bool, whether they are one person's.

    Raises:
        ValueError: If there are no pairs of one person, or none of two.
    """
    if not same.any() or same.all():
        raise ValueError("verification needs pairs of one person and of two: measure on more scenes")
    auc = binary_auroc((cosine.double() + 1) / 2, same.long())  # outside [0, 1] it would take them for logits
    return Verification(float(auc), float(cosine[same].mean()), float(cosine[~same].mean()))


def comparable(people: Sequence[Sequence[Person]]) -> Tensor:
    """Find the pairs of heads from two scenes that differ in clothing and in expression.

    Args:
        people: Who is in each scene; heads count scene by scene.

    Returns:
        (M, M) bool for M heads in all.
    """
    clothing: dict[str, int] = {}
    expressions: dict[str, int] = {}
    facts = torch.tensor(
        [
            (
                scene,
                clothing.setdefault(person.appearance.describe_clothes(), len(clothing)),
                expressions.setdefault(person.appearance.expression, len(expressions)),
            )
            for scene, group in enumerate(people)
            for person in group
        ]
    )
    return (facts[:, None] != facts).all(-1)


def verification(
    embedder: IdentityEmbedder, scenes: HeldOutScenes, hidden: float = 0.0, seed: int = 0
) -> Verification:
    """Verify held-out people across clothing and expression, from the true boxes of their heads.

    Args:
        embedder: The embedder.
        scenes: Renders.
        hidden: Share of each head's box, 0 to 1, behind a rectangle of random form, place and colour.
        seed: Seed of the rectangles.

    Raises:
        ValueError: If the scenes are too few for pairs of one person.
    """
    scene = torch.tensor([i for i, group in enumerate(scenes.people) for _ in group])
    boxes = torch.cat(scenes.heads)
    images = scenes.images[scene]
    if hidden:
        images = occlude(images, boxes, torch.full((len(boxes),), hidden), Generator().manual_seed(seed))
    parts = zip(images.split(_BATCH), boxes.split(_BATCH), strict=True)
    vectors = torch.cat([embedder.embed(part, box) for part, box in parts])
    names: dict[str, int] = {}
    keys = [person.identity.key for group in scenes.people for person in group]
    who = torch.tensor([names.setdefault(key, len(names)) for key in keys])
    pairs = pair_up(vectors, who, comparable(scenes.people))
    return verify(pairs.cosine, pairs.same)


def measure_vae(base: Path, scenes: HeldOutScenes) -> list[Row]:
    """Measure the autoencoder."""
    vae = AutoencoderKL.from_pretrained(base, subfolder="vae")
    return [Row("vae", "PSNR of held-out scenes, dB", reconstruction_psnr(vae, scenes.images), 27.0)]


def measure_clip(base: Path, scenes: HeldOutScenes) -> list[Row]:
    """Measure how well images and captions find each other.

    What is asked is asked of the captions that CLIP is trained on. Plain captions leave out most of what is
    to be seen, so that several of 16 often describe an image truly; their figure is given beside.
    """
    clip, tokenizer = load_clip(base)
    rows = []
    for kind, captions, asked in (
        ("rich", scenes.rich_captions, 0.90),
        ("plain", scenes.captions, None),
    ):
        for count in (1, 2, 3):
            among = scenes.rows(count).tolist()
            share = caption_accuracy(clip, tokenizer, scenes.images, captions, among)
            if share is not None:
                rows.append(Row("clip", f"right {kind} caption among 16, {subjects(count)}", share, asked))
    return rows


def load_clip(base: Path) -> tuple[CLIPModel, Any]:
    """Load CLIP and tokenizer of a base."""
    clip = CLIPModel.from_pretrained(base, subfolder="clip", dtype=torch.float32)
    return clip.eval(), load_tokenizer(str(base))


def measure_detector(base: Path, scenes: HeldOutScenes) -> list[Row]:
    """Measure recall and precision by number of people."""
    detector = HeadDetector.from_pretrained(base, subfolder="detector")
    result, heads = [], scenes.heads
    for count in (1, 2, 3):
        rows = scenes.rows(count)
        if not len(rows):
            continue
        rates = detection_rates(detector, scenes.images[rows], [heads[i] for i in rows.tolist()])
        result.append(Row("detector", f"recall at IoU 0.5, {subjects(count)}", rates.recall, 0.97))
        result.append(Row("detector", f"precision at IoU 0.5, {subjects(count)}", rates.precision, 0.97))
    return result


def measure_embedder(base: Path, scenes: HeldOutScenes) -> list[Row]:
    """Measure verification of held-out people, also partly hidden."""
    embedder = IdentityEmbedder.from_pretrained(base, subfolder="embedder")
    seen, hidden = verification(embedder, scenes), verification(embedder, scenes, hidden=0.3)
    return [
        Row("embedder", "verification AUC, other clothing and expression", seen.auc, 0.99),
        Row("embedder", "verification AUC, 30 % of both heads hidden", hidden.auc, 0.95),
        Row("embedder", "mean cosine, same person", seen.same),
        Row("embedder", "mean cosine, different people", seen.different),
        Row("embedder", "same minus different", seen.same - seen.different, 0.5),
    ]


QUALITY: dict[str, Callable[[Path, HeldOutScenes], list[Row]]] = {
    "vae": measure_vae,
    "clip": measure_clip,
    "detector": measure_detector,
    "embedder": measure_embedder,
}


def subjects(count: int) -> str:
    """Say how many."""
    return f"{count} subject{'s' if count > 1 else ''}"
