"""Quality, size and cost of the parts of an embedded base, measured on renders of held-out people."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from safetensors.torch import load_file
from torch import Generator, Tensor
from torch.utils.flop_counter import FlopCounterMode
from transformers import CLIPTextModel, CLIPVisionModelWithProjection

from fastcomposer.composer import FastComposer
from fastcomposer.metrics.image_text import ClipExtractor
from fastcomposer.metrics.pretrained import load_pretrained
from fastcomposer.miniworld.degradation import occlude
from fastcomposer.miniworld.detector import HeadDetector, count_detections
from fastcomposer.miniworld.embedder import IdentityEmbedder, Pairs, pair_up
from fastcomposer.miniworld.scenes import AvatarScenes, Person
from fastcomposer.miniworld.train_vae import reconstruction_psnr
from fastcomposer.models.base_files import WEIGHTS_NAME
from fastcomposer.models.families import FAMILIES, family_of, family_of_base
from fastcomposer.pipeline.schedulers import split_scheduler, use_scheduler
from fastcomposer.utils.progress import tracked

CHECKPOINTS = {
    "fastcomposer": ".",
    "without_localization": "without_localization",
    "fastcomposer_id": "fastcomposer_id",
}
"""Trained weights beside the parts, by the folder of their file in the base."""
_BATCH = 64
_COUNTS = (1, 2, 3)  # people in a scene


@dataclass(frozen=True)
class Row:
    """One figure of the card."""

    part: str  # its folder in the base
    measure: str  # with its unit
    value: float
    at_least: float | None = None  # the target

    @property
    def holds(self) -> bool | None:
        """Whether the figure reaches its target; ``None`` without one."""
        return None if self.at_least is None else self.value >= self.at_least

    def as_dict(self) -> dict[str, Any]:
        """Plain values by name."""
        return asdict(self) | {"holds": self.holds}


@dataclass(frozen=True)
class HeldOutScenes:
    """N renders of held-out people, with images (N, 3, S, S) float in [0, 1]; see :class:`Scene`."""

    images: Tensor
    captions: tuple[str, ...]
    rich_captions: tuple[str, ...]
    people: tuple[tuple[Person, ...], ...]

    @property
    def heads(self) -> list[Tensor]:
        """Boxes of the heads in each scene, (n_i, 4) float, x1, y1, x2, y2 in pixels."""
        return [torch.tensor([person.head for person in scene]).float() for scene in self.people]

    def rows(self, count: int) -> list[int]:
        """Positions of the scenes with so many people."""
        return [i for i, scene in enumerate(self.people) if len(scene) == count]


def render_held_out(scenes: AvatarScenes, number: int) -> HeldOutScenes:
    """Render the first scenes of the held-out split, as ``prepare`` does but without JPEG."""
    rendered = [scenes.scene("test", i) for i in tracked(range(number), "held-out scenes", transient=True)]
    images = torch.stack([torch.tensor(scene.image).permute(2, 0, 1) for scene in rendered])
    return HeldOutScenes(
        images.float() / 255,
        tuple(scene.caption for scene in rendered),
        tuple(scene.rich_caption for scene in rendered),
        tuple(scene.people for scene in rendered),
    )


def measure_base(
    base: Path, scenes: HeldOutScenes, sampler: Mapping[str, Any] | None = None, per_count: int = 64
) -> list[Row]:
    """Measure every part that exists, and, with a sampler, the images that they generate together."""
    missing = missing_parts(base)
    rows: list[Row] = []
    for part in (part for part in parts_of(base) if part not in missing):
        if part in QUALITY and not (part == "clip" and "tokenizer" in missing):
            rows += QUALITY[part](base, scenes)
        rows += size_rows(base, part)
        rows += [Row(part, f"{what}, MFLOP", flops / 1e6) for what, flops in flops_of(base, part).items()]
    for name, folder in CHECKPOINTS.items():
        file = base / folder / WEIGHTS_NAME
        if file.is_file():
            rows.append(Row(name, "size, bytes", float(file.stat().st_size)))
    if sampler is not None and not missing:
        rows += measure_generated(base, scenes, sampler, per_count)
    return rows


def parts_of(base: Path) -> tuple[str, ...]:
    """Folders of a complete base, whose denoising network is the one that it declares."""
    file = base / "model_index.json"
    backbone = family_of_base(json.loads(file.read_bytes()) if file.is_file() else {}).NAME
    networks = ("vae", "text_encoder", "image_encoder", "clip", backbone)
    return ("tokenizer", *networks, "scheduler", "detector", "embedder")


def missing_parts(base: Path) -> list[str]:
    """Parts that the base does not have."""
    return [part for part in parts_of(base) if not any((base / part).glob("*"))]


# --- size and cost -----------------------------------------------------------------------------------------


def size_rows(base: Path, part: str) -> list[Row]:
    """Count the parameters of a part and the bytes of its folder."""
    files = [file for file in (base / part).rglob("*") if file.is_file()]
    size = Row(part, "size, bytes", float(sum(file.stat().st_size for file in files)))
    weights = [load_file(file) for file in files if file.suffix == ".safetensors"]
    if not weights:
        return [size]
    return [Row(part, "parameters", float(sum(v.numel() for w in weights for v in w.values()))), size]


@torch.no_grad()
def flops_of(base: Path, part: str) -> dict[str, int]:
    """Count the operations of matrix products, attention and convolutions of a part, by what it does."""
    network_class, calls = _CALLS.get(part, (None, {}))
    network = load_pretrained(network_class, base, "model.base", part) if calls else None
    found = {}
    for what, call in calls.items():
        with FlopCounterMode(display=False) as counter:
            call(network)
        found[what] = counter.get_total_flops()
    return found


def _square(side: int, channels: int = 3) -> Tensor:
    return torch.zeros(1, channels, side, side)


def _decode(vae: Any) -> Any:
    side = vae.config.sample_size // 2 ** (len(vae.config.block_out_channels) - 1)
    return vae.decode(_square(side, vae.config.latent_channels))


def _denoise(backbone: Any) -> Any:
    kind, config = family_of(backbone), backbone.config
    family = kind(backbone, kind.SCHEDULER())
    states, pooled = (torch.zeros(1, *shape) for shape in ((77, family.text_dims[0]), family.text_dims[1:]))
    noisy = _square(config.sample_size, config.in_channels)
    return family.predict(noisy, torch.zeros(1), states, {"text_embeds": pooled})


def _encode_text(encoder: Any) -> Any:
    return encoder(input_ids=torch.zeros(1, encoder.config.max_position_embeddings, dtype=torch.long))


_CALLS: dict[str, tuple[Any, dict[str, Callable[[Any], Any]]]] = {
    "vae": (
        AutoencoderKL,
        {
            "encode one image": lambda vae: vae.encode(_square(vae.config.sample_size)),
            "decode one image": _decode,
        },
    ),
    "text_encoder": (CLIPTextModel, {"one prompt": _encode_text}),
    "image_encoder": (
        CLIPVisionModelWithProjection,
        {"one reference": lambda encoder: encoder(pixel_values=_square(encoder.config.image_size))},
    ),
    **{family.NAME: (family.NETWORK, {"one step of one sample": _denoise}) for family in FAMILIES},
    "detector": (HeadDetector, {"one scene": lambda detector: detector(_square(64))}),
    "embedder": (IdentityEmbedder, {"one head": lambda network: network(_square(network.config.crop_size))}),
}


# --- quality -----------------------------------------------------------------------------------------------


def measure_vae(base: Path, scenes: HeldOutScenes) -> list[Row]:
    """Measure the reconstruction of the autoencoder."""
    vae = load_pretrained(AutoencoderKL, base, "model.base", "vae")
    psnr = torch.cat([reconstruction_psnr(vae, 2 * part - 1) for part in scenes.images.split(_BATCH)])
    return [Row("vae", "PSNR of held-out scenes, dB", float(psnr.mean()), 27.0)]


def measure_clip(base: Path, scenes: HeldOutScenes) -> list[Row]:
    """Measure how well images and captions find each other.

    The target is for the captions that CLIP is trained on; of 16 plain ones several often describe an image.
    """
    clip = ClipExtractor(base, "clip")
    images, rows = clip.embed_images(scenes.images), []
    for kind, captions, target in (("rich", scenes.rich_captions, 0.90), ("plain", scenes.captions, None)):
        texts = clip.embed_texts(captions)
        for count in _COUNTS:
            accuracy = caption_accuracy(images, texts, captions, scenes.rows(count))
            if accuracy is not None:
                rows.append(
                    Row("clip", f"right {kind} caption among 16, {_subjects(count)}", accuracy, target)
                )
    return rows


def caption_accuracy(
    images: Tensor, texts: Tensor, captions: Sequence[str], rows: Sequence[int], size: int = 16
) -> float | None:
    """Fraction of images whose own caption scores highest in a group of ``size`` different captions.

    Images and texts are (N, d) unit vectors. Of the compared ``rows``, those left over from full groups are
    dropped; without a full group the result is ``None``.
    """
    groups: list[list[int]] = []
    for row in rows:
        for group in groups:
            if len(group) < size and captions[row] not in [captions[i] for i in group]:
                group.append(row)
                break
        else:
            groups.append([row])
    groups = [group for group in groups if len(group) == size]
    if not groups:
        return None
    right = [(images[group] @ texts[group].T).argmax(1) == torch.arange(size) for group in groups]
    return float(torch.cat(right).float().mean())


def measure_detector(base: Path, scenes: HeldOutScenes) -> list[Row]:
    """Measure recall and precision by number of people; 1 without heads or without detections."""
    detector = load_pretrained(HeadDetector, base, "model.base", "detector")
    found = [heads for part in scenes.images.split(_BATCH) for heads in detector.detect(part)]
    truth, result = scenes.heads, []
    for count in _COUNTS:
        rows = scenes.rows(count)
        heads, detections, matches = count_detections([found[i] for i in rows], [truth[i] for i in rows])
        if rows:
            for name, of in (("recall", heads), ("precision", detections)):
                measure = f"{name} at IoU 0.5, {_subjects(count)}"
                result.append(Row("detector", measure, matches / of if of else 1.0, 0.97))
    return result


def measure_embedder(base: Path, scenes: HeldOutScenes) -> list[Row]:
    """Measure verification of held-out people, also partly hidden."""
    embedder = load_pretrained(IdentityEmbedder, base, "model.base", "embedder")
    pairs, hidden = held_out_pairs(embedder, scenes), held_out_pairs(embedder, scenes, hidden=0.3)
    same, different = (float(pairs.cosine[which].mean()) for which in (pairs.same, ~pairs.same))
    return [
        Row("embedder", "verification AUC, other clothing and expression", pairs.auc, 0.99),
        Row("embedder", "verification AUC, 30 % of both heads hidden", hidden.auc, 0.95),
        Row("embedder", "mean cosine, same person", same),
        Row("embedder", "mean cosine, different people", different),
        Row("embedder", "same minus different", same - different, 0.5),
    ]


def held_out_pairs(
    embedder: IdentityEmbedder, scenes: HeldOutScenes, hidden: float = 0.0, seed: int = 0
) -> Pairs:
    """Compare heads of two scenes that differ in clothing and in expression, from their true boxes.

    A rectangle of random form, position and colour covers the fraction ``hidden`` of each head's box.
    """
    people = [(scene, person) for scene, group in enumerate(scenes.people) for person in group]
    boxes = torch.cat(scenes.heads)
    images = scenes.images[[scene for scene, _ in people]]
    if hidden:
        images = occlude(images, boxes, torch.full((len(boxes),), hidden), Generator().manual_seed(seed))
    parts = zip(images.split(_BATCH), boxes.split(_BATCH), strict=True)
    vectors = torch.cat([embedder.embed(part, box) for part, box in parts])
    seen = [(scene, p.appearance.describe_clothes(), p.appearance.expression) for scene, p in people]
    differ = [_numbered(values)[:, None] != _numbered(values) for values in zip(*seen, strict=True)]
    return pair_up(vectors, _numbered(p.identity.key for _, p in people), torch.stack(differ).all(0))


def _numbered(values: Iterable[Any]) -> Tensor:
    """The same number for the same value, (N,)."""
    numbers: dict[Any, int] = {}
    return torch.tensor([numbers.setdefault(value, len(numbers)) for value in values])


QUALITY: dict[str, Callable[[Path, HeldOutScenes], list[Row]]] = {
    "vae": measure_vae,
    "clip": measure_clip,
    "detector": measure_detector,
    "embedder": measure_embedder,
}


# --- generated images --------------------------------------------------------------------------------------


def measure_generated(
    base: Path, scenes: HeldOutScenes, sampler: Mapping[str, Any], per_count: int = 64
) -> list[Row]:
    """Generate images from rich captions of held-out scenes, count the heads, and let CLIP find the caption.

    ``per_count`` images each are of one, of two and of three people.
    """
    rows = {count: scenes.rows(count)[:per_count] for count in _COUNTS}
    if not all(rows.values()):
        raise ValueError("scenes without one, two or three people: measure on more scenes")
    wanted = torch.tensor([count for count, group in rows.items() for _ in group])
    captions = [scenes.rich_captions[i] for group in rows.values() for i in group]
    images = generate_from_captions(base, captions, sampler)
    detector = load_pretrained(HeadDetector, base, "model.base", "detector")
    found = torch.tensor([len(heads) for part in images.split(_BATCH) for heads in detector.detect(part)])
    clip = ClipExtractor(base, "clip")
    vectors, texts = clip.embed_images(images), clip.embed_texts(captions)
    right = (found == wanted).float()
    result = [Row("generated", "right number of subjects", float(right.mean()), 0.90)]
    accuracies = []
    for count in _COUNTS:
        of_count = wanted == count
        result.append(Row("generated", f"right number, {_subjects(count)}", float(right[of_count].mean())))
        accuracy = caption_accuracy(vectors, texts, captions, of_count.nonzero().flatten().tolist())
        if accuracy is not None:
            accuracies.append(accuracy)
            result.append(Row("generated", f"right caption among 16, {_subjects(count)}", accuracy))
    if accuracies:
        mean = sum(accuracies) / len(accuracies)
        result.append(Row("generated", "right caption among 16, mean of the three", mean, 0.70))
    return result


@torch.no_grad()
def generate_from_captions(
    base: str | Path, captions: Sequence[str], sampler: Mapping[str, Any], seed: int = 0
) -> Tensor:
    """Generate one image of each caption with the base alone, (N, 3, H, W) float in [0, 1].

    Image i starts from the noise of seed + i; the ``alpha`` of the sampler's settings is not used.
    """
    pipeline: Any = FastComposer.from_pretrained(base).to_pipeline()
    pipeline.set_progress_bar_config(disable=True)
    scheduler, options = split_scheduler({**sampler, "alpha": 0.0, "output_type": "pt"})
    use_scheduler(pipeline, scheduler)
    images = []
    for start in tracked(range(0, len(captions), 32), "images from captions", transient=True):
        part = list(captions[start : start + 32])
        generators = [Generator().manual_seed(seed + start + i) for i in range(len(part))]
        images.append(pipeline(part, generator=generators, **options).images)
    return torch.cat(images)


def _subjects(count: int) -> str:
    return f"{count} subject{'s' if count > 1 else ''}"
