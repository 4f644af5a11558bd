"""Trained weights as differences from a base, in 8 bits: a quarter of the size, and nearly the same numbers.

A row of a matrix (or the output channel of a convolution) is stored as integers from -127 to 127 and one
scale. The change by training is rounded, not the weight, so the error is a few thousandths of the change.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from fastcomposer.models.lora import is_lora, plain_name

BASE_DIGEST = "base_digest"
"""Key in a file's metadata: digest of the weights that the differences are added to."""
SCALE = ".scale"
"""Suffix of the tensor that holds a tensor's scales."""


def base_weights(networks: Mapping[str, nn.Module], names: Iterable[str]) -> dict[str, Tensor]:
    """Tensors of the base's networks among names such as ``unet.conv_in.weight``; no fusion, no LoRA."""
    wanted = {name for name in names if not is_lora(name)}
    return {
        plain_name(f"{part}.{name}"): value.detach().cpu().float()
        for part, network in networks.items()
        if part != "fusion"
        for name, value in network.state_dict().items()
        if plain_name(f"{part}.{name}") in wanted
    }


def digest(weights: Mapping[str, Tensor]) -> str:
    """Digest of weights, whatever their order."""
    found = hashlib.sha256()
    for name in sorted(weights):
        found.update(f"{name} {tuple(weights[name].shape)}\n".encode())
        found.update(weights[name].contiguous().numpy().tobytes())
    return found.hexdigest()[:16]


def encode_differences(trained: Mapping[str, Tensor], base: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Encode tensors by name: 8-bit differences from those in the base, float16 for the others."""
    state: dict[str, Tensor] = {}
    for name, value in trained.items():
        if name not in base:
            state[name] = value.half()
            continue
        rows = (value.float() - base[name]).reshape(_rows(value))
        scale = rows.abs().amax(dim=1, keepdim=True).clamp(min=1e-12) / 127
        state[name] = (rows / scale).round().to(torch.int8).reshape(value.shape)
        state[name + SCALE] = scale.squeeze(1)
    return state


def decode_differences(state: Mapping[str, Tensor], base: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Invert :func:`encode_differences`; tensors come in float32.

    Raises:
        ValueError: If a tensor has no scale, or is not in the base.
    """
    trained: dict[str, Tensor] = {}
    for name, value in state.items():
        if name.endswith(SCALE):
            continue
        if value.dtype != torch.int8:
            trained[name] = value.float()
            continue
        if name + SCALE not in state or name not in base or value.shape != base[name].shape:
            raise ValueError(f"{name}: a difference without a scale, or from nothing in the base")
        rows = value.reshape(_rows(value)).float() * state[name + SCALE].unsqueeze(1)
        trained[name] = base[name] + rows.reshape(value.shape)
    return trained


def _rows(value: Tensor) -> tuple[int, int]:
    """Shape with a row for each output; a vector is one row."""
    return (value.shape[0], -1) if value.ndim > 1 else (1, -1)
