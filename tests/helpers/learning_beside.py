"""Learning people in one of two processes; a module of its own so that other processes can import it."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import torch.distributed as dist

from fastcomposer.data.portraits import ReferenceSet
from fastcomposer.training.personalization.personalize import personalize


def learn_beside_another(
    rank: int, folder: Path, method: partial[Any], trainer: partial[Any], people: tuple[ReferenceSet, ...]
) -> None:
    """Be one of two processes of an evaluation, of which only the first still has people to learn."""
    rendezvous = f"file://{folder}/rendezvous"
    dist.init_process_group("gloo", init_method=rendezvous, rank=rank, world_size=2)
    for person in people if rank == 0 else ():
        personalize(method, trainer, person.images, person.word, folder, person.name, seed=1)
    dist.barrier()
    dist.destroy_process_group()
