"""Families of denoising networks: what differs between them, with a file for each."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fastcomposer.models.base_files import declares
from fastcomposer.models.families.family import Family
from fastcomposer.models.families.sd3 import SD3Family
from fastcomposer.models.families.unet import UNetFamily

FAMILIES: tuple[type[Family], ...] = (UNetFamily, SD3Family)
"""All families; a base has the network of one of them."""

__all__ = ["FAMILIES", "Family", "family_of", "family_of_base"]


def family_of(backbone: Any) -> type[Family]:
    """Family of a denoising network."""
    backbone = getattr(backbone, "_orig_mod", backbone)  # torch.compile wraps it
    return next(family for family in FAMILIES if isinstance(backbone, family.NETWORK))


def family_of_base(index: Mapping[str, Any]) -> type[Family]:
    """Family of a base by its ``model_index.json``; that of the U-Nets where it names no known network."""
    return next((family for family in FAMILIES if declares(index, family.NAME)), UNetFamily)
