"""Compilation of a denoising network block by block, which takes minutes."""

from __future__ import annotations

import torch
from torch import nn

from fastcomposer.models.families import family_of


def check_backend(backend: str) -> None:
    """Refuse an unknown backend of :func:`torch.compile` by ``ValueError``."""
    known = torch.compiler.list_backends(exclude_tags=None)
    if backend not in known:
        raise ValueError(f"compile={backend}: torch has the backends {', '.join(known)}")


def compile_blocks(backbone: nn.Module, backend: str) -> None:
    """Compile every block of its family's classes in place, each for the shapes of its inputs.

    Modules, parameters and their names do not change. A batch of another size is compiled again: use one
    size, or leave compilation out inside ``torch.compiler.set_stance("force_eager")``.

    Args:
        backbone: The denoising network.
        backend: Of :func:`torch.compile`, such as ``inductor``.

    Raises:
        ValueError: If there is no such backend.
    """
    check_backend(backend)
    blocks = family_of(backbone).BLOCKS
    for module in backbone.modules():
        if isinstance(module, blocks):
            # Blocks of one class share their code: without isolation they would use up one limit together.
            module.compile(backend=backend, dynamic=False, isolate_recompiles=True)
