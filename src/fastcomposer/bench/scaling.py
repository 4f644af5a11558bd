"""What a training takes on many devices and of many records, projected from measurements on one.

Only the figures of :class:`Measured` are measured. The rest is arithmetic on them, under the assumptions of
:class:`Machines`: devices compute as fast together as alone, and a ring moves what has to be exchanged.
"""

from __future__ import annotations

import time
import tracemalloc
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Generator, Tensor

from fastcomposer.batch import SubjectBatch
from fastcomposer.composer import FastComposer
from fastcomposer.data.index import RecordIndex
from fastcomposer.data.records import record_path

_FLOAT = 4
_SAMPLE = 200  # records whose files are weighed
STRATEGIES = ("ddp", "fsdp")


@dataclass(frozen=True)
class Machines:
    """What the devices are joined by.

    Attributes:
        per_node: Devices in a node.
        node_bandwidth: Bytes a second between devices of a node.
        network_bandwidth: Bytes a second between nodes.
        overlap: Share of a step's time that exchanging may hide behind computing, 0 to 1.

    Raises:
        ValueError: If a figure is out of range.
    """

    per_node: int = 8
    node_bandwidth: float = 300e9
    network_bandwidth: float = 25e9
    overlap: float = 0.5

    def __post_init__(self) -> None:
        for name in ("per_node", "node_bandwidth", "network_bandwidth"):
            if getattr(self, name) <= 0:
                raise ValueError(f"plan.machines.{name}={getattr(self, name)}: must be more than 0")
        if not 0 <= self.overlap <= 1:
            raise ValueError(f"plan.machines.overlap={self.overlap}: must lie between 0 and 1")

    def bandwidth(self, devices: int) -> float:
        """Bytes a second along a ring of so many devices."""
        return self.node_bandwidth if devices <= self.per_node else self.network_bandwidth


@dataclass(frozen=True)
class Measured:
    """Figures of one device and of some records.

    Attributes:
        seconds_per_step: Of a training step, data ready.
        batch_size: Its samples.
        trained: Numbers that are trained.
        frozen: Numbers that are not.
        averaged: Whether a moving average is kept.
        activation_bytes: What a sample's forward leaves for its backward.
        cache_bytes: Of a record's precomputed states.
        shard_bytes: Of a record's files.
        index_bytes: Of a record in the memory of every process that reads data.
    """

    seconds_per_step: float
    batch_size: int
    trained: int
    frozen: int
    averaged: bool
    activation_bytes: float
    cache_bytes: float
    shard_bytes: float
    index_bytes: float


@dataclass(frozen=True)
class Plan:
    """A training on so many devices, of so many records.

    Attributes:
        devices: Their number.
        records: Their number.
        strategy: ``ddp`` or ``fsdp``.
        memory_bytes: Of a device: weights, gradients, two moments, the average, and activations.
        network_bytes: What each device sends in a step.
        seconds_per_step: With what of the exchange does not hide behind computing.
        hours_per_epoch: All records once.
        cache_bytes: Of all records.
        shard_bytes: Of all records.
        index_bytes: In the memory of every process, with the order of an epoch.
    """

    devices: int
    records: int
    strategy: str
    memory_bytes: float
    network_bytes: float
    seconds_per_step: float
    hours_per_epoch: float
    cache_bytes: float
    shard_bytes: float
    index_bytes: float

    def as_dict(self) -> dict[str, Any]:
        """As JSON keeps it."""
        return asdict(self)


def project(measured: Measured, machines: Machines, devices: int, records: int, strategy: str) -> Plan:
    """Project a training.

    Of N devices, each sends 2 (N − 1) / N of all gradients in a ring that sums them (``ddp``); where weights
    are divided (``fsdp``), they are gathered for the forward and for the backward, and gradients are summed
    to their owners: 3 (N − 1) / N.

    Raises:
        ValueError: If a number is not positive, or the strategy is unknown.
    """
    if devices < 1 or records < 1:
        raise ValueError(f"plan: {devices} devices and {records} records; both must be at least 1")
    if strategy not in STRATEGIES:
        raise ValueError(f"plan.strategies: {strategy!r} is not one of {', '.join(STRATEGIES)}")
    divided = strategy == "fsdp"
    kept = _FLOAT * measured.trained * (4 + measured.averaged) / (devices if divided else 1)
    memory = kept + _FLOAT * measured.frozen + measured.activation_bytes * measured.batch_size
    sent = (3 if divided else 2) * (devices - 1) / devices * _FLOAT * measured.trained
    exposed = sent / machines.bandwidth(devices) - machines.overlap * measured.seconds_per_step
    seconds = measured.seconds_per_step + max(0.0, exposed)
    return Plan(
        devices,
        records,
        strategy,
        memory,
        sent,
        seconds,
        records / (devices * measured.batch_size) * seconds / 3600,
        records * measured.cache_bytes,
        records * measured.shard_bytes,
        records * (measured.index_bytes + 8),
    )


def measure_step(model: FastComposer, batch: SubjectBatch, repeats: int) -> tuple[float, float]:
    """Measure seconds of a step (median), and bytes that a sample's forward leaves for its backward."""
    parameters = list(model.trainable_parameters())
    optimizer = torch.optim.AdamW(parameters, lr=1e-6)
    seconds = []
    for number in range(repeats + 1):
        begun = time.perf_counter()
        model.training_losses(batch, generator=Generator().manual_seed(0)).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if number:  # the first one warms up
            seconds.append(time.perf_counter() - begun)
    weights = {tensor.untyped_storage().data_ptr() for tensor in model.state_dict().values()}
    kept: dict[int, int] = {}

    def weigh(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(weigh, lambda tensor: tensor):
        losses = model.training_losses(batch, generator=Generator().manual_seed(0))
    activations = sum(kept.values()) / len(batch)
    del losses
    return median(seconds), activations


def noise_batch(model: FastComposer, resolution: int, reference_size: int, size: int) -> SubjectBatch:
    """Make a batch of noise with one subject in each image."""
    generator = Generator().manual_seed(0)
    slots = model.fusion.config.max_subjects or 1
    masks = torch.zeros(size, slots, resolution, resolution)
    masks[:, 0, : resolution // 2] = 1
    return SubjectBatch(
        pixel_values=torch.rand(size, 3, resolution, resolution, generator=generator) * 2 - 1,
        input_ids=torch.randint(0, 400, (size, 77), generator=generator),
        subject_pixel_values=torch.rand(size, slots, 3, reference_size, reference_size, generator=generator),
        subject_token_idx=torch.tensor([[2] + [0] * (slots - 1)] * size),
        subject_present=torch.tensor([[True] + [False] * (slots - 1)] * size),
        subject_masks=masks,
    )


def weigh_cache(model: FastComposer, batch: SubjectBatch) -> float:
    """Bytes of a record's moments and text states in single precision."""
    with torch.no_grad():
        moments = model.encode_moments(batch.pixel_values[:1])
        text = model.encode_captions(batch)
    pooled = 0 if text.pooled is None else text.pooled[0].numel()
    return _FLOAT * (moments.numel() + text.tokens[0].numel() + pooled)


def weigh_records(root: str | Path, split: str = "train") -> tuple[float, float]:
    """Mean bytes of a record's files, and of a record in the index that every process keeps in memory."""
    tracemalloc.start()
    index = RecordIndex(root, split)
    held = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    ids: Sequence[str] = index.record_ids
    chosen = ids[:: max(1, len(ids) // _SAMPLE)]
    sizes = [
        record_path(root, name, suffix).stat().st_size
        for name in chosen
        for suffix in (".json", ".jpg", ".npy")
    ]
    return sum(sizes) / len(chosen), held / len(ids)
