"""Metrics of images that are spread over processes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch.distributed as dist
import torch.multiprocessing as mp

from fastcomposer.metrics.image_scores import CopyPaste, IdentityPreservation, PromptConsistency

SCORES = ([0.9, None, -0.2], [0.8])  # of each process's images


def average(rank: int, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    metrics = [IdentityPreservation(), PromptConsistency(), CopyPaste()]
    for metric in metrics:
        metric.update(SCORES[rank])
    # What is computed is everybody's; what is kept stays a process's own.
    results = [metric.compute().item() for metric in metrics], int(metrics[0].count)
    Path(folder, f"{rank}.json").write_text(json.dumps(results))
    dist.destroy_process_group()


def test_two_processes_with_unequal_numbers_of_images_agree(tmp_path: Path) -> None:
    # Forked, not spawned: new interpreters would take ten seconds to import the libraries.
    mp.start_processes(average, (str(tmp_path),), nprocs=2, start_method="fork")
    results = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2)]
    assert [count for _, count in results] == [2, 1]
    for means, _ in results:
        assert means == pytest.approx([0.5] * 3)  # the mean of the processes' means is 0.575
