"""Families of denoising networks: what differs between them, with a file for each."""

from __future__ import annotations

from fastcomposer.models.families.family import Family
from fastcomposer.models.families.unet import UNetFamily

FAMILIES: tuple[type[Family], ...] = (UNetFamily,)
"""All families; a base has the network of one of them."""

__all__ = ["FAMILIES", "Family"]
