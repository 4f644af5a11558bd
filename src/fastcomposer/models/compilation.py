"""Compilation of a U-Net by the block, which takes minutes rather than a long while."""

from __future__ import annotations

import torch
from diffusers.models.attention import BasicTransformerBlock
from diffusers.models.resnet import ResnetBlock2D
from torch import nn

_BLOCKS = (ResnetBlock2D, BasicTransformerBlock)


def check_backend(backend: str) -> None:
    """Refuse what :func:`torch.compile` does not know.

    Raises:
        ValueError: If there is no such backend.
    """
    known = torch.compiler.list_backends(exclude_tags=None)
    if backend not in known:
        raise ValueError(f"compile={backend}: torch has the backends {', '.join(known)}")


def compile_blocks(unet: nn.Module, backend: str) -> None:
    """Compile every residual and every transformer block in place, each for the shapes that it meets.

    Modules, parameters and their names stay what they are. A batch of another size is compiled anew: draw or
    train with one, or leave compilation out inside ``torch.compiler.set_stance("force_eager")``.

    Args:
        unet: The U-Net.
        backend: Of :func:`torch.compile`, such as ``inductor``.

    Raises:
        ValueError: If there is no such backend.
    """
    check_backend(backend)
    for module in unet.modules():
        if isinstance(module, _BLOCKS):
            # Blocks of one class share their code: without isolation they would use up one limit together.
            module.compile(backend=backend, dynamic=False, isolate_recompiles=True)
