"""Metrics of images that are spread over processes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from fastcomposer.metrics.faces import Faces
from fastcomposer.metrics.identity import IdentityPreservation
from fastcomposer.metrics.image_scores import PromptConsistency
from fastcomposer.metrics.similarity import CopyPaste

COSINES = ([0.9, 0.5, -0.2], [0.8])  # of each process's images with the reference; the last has no face


def score_share(rank: int, folder: str) -> None:
    """Score three images in the first process and one, without a face, in the second."""
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    identity, consistency, copies = IdentityPreservation(), PromptConsistency(), CopyPaste()
    reference, other = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]])
    for cosine in COSINES[rank]:
        vector = torch.tensor([[cosine, (1 - cosine**2) ** 0.5]])
        faces = Faces(torch.tensor([[0.0, 0, 9, 9]]), torch.ones(1), vector)
        if rank == 1:
            faces = Faces(faces.boxes[:0], faces.scores[:0], faces.embeddings[:0])
        identity.update([faces], [reference])
        consistency.update(vector, reference)
        copies.update(vector, reference, [other])
    results = {name: value.item() for name, value in identity.compute().items()}
    results |= {"consistency": consistency.compute().item(), "copy_paste": copies.compute().item()}
    # What is computed is everybody's; what is kept stays a process's own.
    results["images"] = int(identity.count)
    Path(folder, f"{rank}.json").write_text(json.dumps(results))
    dist.destroy_process_group()


def test_two_processes_with_unequal_shares_agree(tmp_path: Path) -> None:
    # Forked, not spawned: new interpreters would take ten seconds to import the libraries.
    mp.start_processes(score_share, (str(tmp_path),), nprocs=2, start_method="fork")
    results = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2)]
    assert [result.pop("images") for result in results] == [3, 1]
    # Means of the two processes' means would be 0.2, 0.5 and 0.6.
    sines = sum((1 - cosine**2) ** 0.5 for share in COSINES for cosine in share)
    expected = {"identity": 1.2 / 4, "detection_rate": 3 / 4, "consistency": 2.0 / 4}
    expected["copy_paste"] = (2.0 - sines) / 4
    for result in results:
        assert result == pytest.approx(expected)
