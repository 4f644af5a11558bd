"""What the parts of an embedded base weigh and cost, and the whole measurement of one."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import Any

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from safetensors import safe_open
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import CLIPTextModel, CLIPVisionModelWithProjection

from fastcomposer.miniworld.card.generated import measure_generated
from fastcomposer.miniworld.card.quality import QUALITY, HeldOutScenes, Row
from fastcomposer.miniworld.detector import HeadDetector
from fastcomposer.miniworld.embedder import IdentityEmbedder
from fastcomposer.models.weights_io import WEIGHTS_NAME

_SIDE = 64  # pixels, of a scene
PARTS = (
    "tokenizer",
    "vae",
    "text_encoder",
    "image_encoder",
    "clip",
    "unet",
    "scheduler",
    "detector",
    "embedder",
)
"""Folders of a complete base."""


CHECKPOINTS = {
    "fastcomposer": WEIGHTS_NAME,
    "without_localization": f"without_localization/{WEIGHTS_NAME}",
}
"""Trained weights that may lie beside the parts."""


@dataclass(frozen=True)
class BaseReport:
    """All figures of a base.

    Attributes:
        rows: The figures, part by part.
        missing: Parts that are not there.
    """

    rows: tuple[Row, ...]
    missing: tuple[str, ...]

    def extended(self, rows: Sequence[Row]) -> BaseReport:
        """Add further figures."""
        return replace(self, rows=(*self.rows, *rows))

    def as_dict(self) -> dict[str, Any]:
        """Plain values by name."""
        return {"schema": 1, "rows": [row.as_dict() for row in self.rows], "missing": list(self.missing)}


def measure_base(
    base: str | Path, scenes: HeldOutScenes, sampler: Mapping[str, Any] | None = None, per_count: int = 64
) -> BaseReport:
    """Measure every part that is there, and what they draw together.

    Args:
        base: Folder of the base.
        scenes: Held-out renders.
        sampler: Arguments of the pipeline call; ``None`` leaves out what is measured on generated images.
        per_count: Generated images of one, of two and of three people.
    """
    base = Path(base)
    present = [part for part in PARTS if any((base / part).glob("*"))]
    rows: list[Row] = []
    for part in present:
        if part in QUALITY and (part != "clip" or "tokenizer" in present):
            rows += QUALITY[part](base, scenes)
        rows += size_rows(base, part)
        rows += [Row(part, f"{what}, MFLOP", flops / 1e6) for what, flops in flops_of(base, part).items()]
    for name, file in CHECKPOINTS.items():
        if (base / file).is_file():
            rows.append(Row(name, "size, bytes", float((base / file).stat().st_size)))
    missing = tuple(part for part in PARTS if part not in present)
    if sampler is not None and not missing:
        rows += measure_generated(base, scenes, sampler, per_count)
    return BaseReport(tuple(rows), missing)


def size_rows(base: Path, part: str) -> list[Row]:
    """Count the parameters of a part and the bytes of its folder."""
    files = [file for file in (base / part).rglob("*") if file.is_file()]
    rows = [Row(part, "size, bytes", float(sum(file.stat().st_size for file in files)))]
    weights = [file for file in files if file.suffix == ".safetensors"]
    if weights:
        rows.insert(0, Row(part, "parameters", float(sum(map(_count_parameters, weights)))))
    return rows


def _count_parameters(path: Path) -> int:
    with safe_open(path, "pt") as file:
        return sum(prod(file.get_slice(name).get_shape()) for name in file.keys())  # noqa: SIM118


def flops_of(base: Path, part: str) -> dict[str, int]:
    """Count the floating-point operations of a part on one image or prompt, two per multiplication.

    Args:
        base: Folder of the base.
        part: Name of the part's folder.

    Returns:
        Operations by what was done; empty for a part that is no network.
    """
    return _COSTS[part](base) if part in _COSTS else {}


@torch.no_grad()
def count_flops(function: Callable[[], Any]) -> int:
    """Count the floating-point operations of matrix products, attention and convolutions in a call."""
    with FlopCounterMode(display=False) as counter:
        function()
    return counter.get_total_flops()


def _vae_cost(base: Path) -> dict[str, int]:
    vae = AutoencoderKL.from_pretrained(base, subfolder="vae")
    config: Any = vae.config
    side = config["sample_size"]
    reduction = 2 ** (len(config["block_out_channels"]) - 1)
    latents = torch.zeros(1, config["latent_channels"], side // reduction, side // reduction)
    return {
        "encode one image": count_flops(lambda: vae.encode(torch.zeros(1, 3, side, side))),
        "decode one image": count_flops(lambda: vae.decode(latents)),
    }


def _text_cost(base: Path) -> dict[str, int]:
    encoder = CLIPTextModel.from_pretrained(base, subfolder="text_encoder", dtype=torch.float32)
    ids = torch.zeros(1, encoder.config.max_position_embeddings, dtype=torch.long)
    return {"one prompt": count_flops(lambda: encoder(input_ids=ids))}


def _image_cost(base: Path) -> dict[str, int]:
    encoder = CLIPVisionModelWithProjection.from_pretrained(
        base, subfolder="image_encoder", dtype=torch.float32
    )
    config: Any = encoder.config
    side = config.image_size
    return {"one reference": count_flops(lambda: encoder(pixel_values=torch.zeros(1, 3, side, side)))}


def _unet_cost(base: Path) -> dict[str, int]:
    unet = UNet2DConditionModel.from_pretrained(base, subfolder="unet")
    config: Any = unet.config
    side = config["sample_size"]
    latents = torch.zeros(1, config["in_channels"], side, side)
    text = torch.zeros(1, 77, config["cross_attention_dim"])
    return {"one step of one sample": count_flops(lambda: unet(latents, torch.zeros(1), text))}


def _metric_cost(model: nn.Module, side: int, what: str) -> dict[str, int]:
    return {what: count_flops(lambda: model(torch.zeros(1, 3, side, side)))}


def _detector_cost(base: Path) -> dict[str, int]:
    return _metric_cost(HeadDetector.from_pretrained(base, subfolder="detector"), _SIDE, "one scene")


def _embedder_cost(base: Path) -> dict[str, int]:
    embedder = IdentityEmbedder.from_pretrained(base, subfolder="embedder")
    return _metric_cost(embedder, embedder.config.crop_size, "one head")


_COSTS: dict[str, Callable[[Path], dict[str, int]]] = {
    "vae": _vae_cost,
    "text_encoder": _text_cost,
    "image_encoder": _image_cost,
    "unet": _unet_cost,
    "detector": _detector_cost,
    "embedder": _embedder_cost,
}
