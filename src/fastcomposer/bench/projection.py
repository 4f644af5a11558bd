"""Projections from single steps: the time to a new person's first image, and larger trainings."""

from __future__ import annotations

import tempfile
import tracemalloc
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import product
from pathlib import Path
from statistics import median
from types import SimpleNamespace
from typing import Any

import lightning as L
import numpy as np
import pandas as pd
import torch
from lightning.pytorch.callbacks import Callback
from PIL import Image
from torch import Generator, Tensor
from torch.utils.benchmark import timer  # waits for the accelerator

from fastcomposer.batch import SubjectBatch
from fastcomposer.composer import FastComposer
from fastcomposer.data.index import RecordIndex
from fastcomposer.data.portraits import PortraitDataModule, ReferenceSet
from fastcomposer.data.records import record_path
from fastcomposer.evaluation.benchmark import NUM_TUNING_IMAGES
from fastcomposer.evaluation.load_results import OURS, method_name
from fastcomposer.pipeline.schedulers import split_scheduler, use_scheduler
from fastcomposer.pipeline.stable_diffusion import FastComposerPipeline
from fastcomposer.training.personalization.fine_tuning import PersonalizationModule
from fastcomposer.training.personalization.personalize import QUIET
from fastcomposer.utils.ranges import Count, Fraction, Rate

COST_COLUMNS = ("method", "s / step", "steps", "s to personalise", "s / image", "s in all", "× FastComposer")
"""Of a table of :func:`cost_rows`."""
STRATEGIES = ("ddp", "fsdp")
_WORD = "man"
_FLOAT = 4
_SAMPLE = 200  # records whose files are weighed
_BY_DEVICES = {  # heading and unit of each figure
    "memory_bytes": ("GB of a device", 1e9),
    "network_bytes": ("GB sent in a step", 1e9),
    "seconds_per_step": ("s / step", 1),
    "hours_per_epoch": ("h / epoch", 1),
}
_BY_RECORDS = {
    "shard_bytes": ("TB of shards", 1e12),
    "cache_bytes": ("TB of a cache", 1e12),
    "index_bytes": ("GB of index in every process", 1e9),
}


# --- personalization ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Projection:
    """Time until the first image of a new person; only the times of single steps are measured."""

    method: str  # as in results.json
    seconds_per_training_step: float  # median; 0 where nothing is trained
    training_steps: int
    seconds_per_sampling_step: float
    sampling_steps: int
    seconds_around_sampling: float  # encoding of texts and references, decoding of the image
    gradient_checkpointing: bool = False  # makes the steps of the training longer

    @property
    def personalization_seconds(self) -> float:
        """Of the training."""
        return self.seconds_per_training_step * self.training_steps

    @property
    def seconds_per_image(self) -> float:
        """Of an image."""
        return self.seconds_around_sampling + self.seconds_per_sampling_step * self.sampling_steps

    @property
    def seconds(self) -> float:
        """Both together."""
        return self.personalization_seconds + self.seconds_per_image

    def as_dict(self) -> dict[str, Any]:
        """Plain values by name, with what is projected."""
        projected = ("personalization_seconds", "seconds_per_image", "seconds")
        return {**asdict(self), **{f"projected_{name}": getattr(self, name) for name in projected}}


def project_sampling(
    pipeline: FastComposerPipeline, sampler: Mapping[str, Any], resolution: int, repeats: int = 3
) -> Projection:
    """Measure FastComposer, whose personalization is a part of sampling, by at least one repeated step.

    ``sampler`` has the scheduler and the arguments of the pipeline call, with the ``num_inference_steps`` to
    project to; the resolution is in pixels.
    """
    if repeats < 1:
        raise ValueError(f"repeats={repeats}: at least 1")
    reference = Image.fromarray(_noise(resolution))
    scheduler, options = split_scheduler(sampler)
    use_scheduler(pipeline, scheduler)
    options |= {"alpha": 1.0, "height": resolution, "width": resolution}

    def seconds(steps: int) -> float:
        started = timer()
        arguments = {**options, "num_inference_steps": steps, "generator": Generator().manual_seed(0)}
        pipeline(f"a {_WORD} <|image|>", references=[reference], **arguments)
        return timer() - started

    seconds(1)  # not counted: lazy imports and caches
    one, more = seconds(1), seconds(1 + repeats)
    step = max(0.0, (more - one) / repeats)
    return Projection(OURS, 0.0, 0, step, int(sampler["num_inference_steps"]), max(0.0, one - step))


def project_training(module: PersonalizationModule, sampling: Projection, repeats: int = 3) -> Projection:
    """Measure training steps of a fine-tuning method, with the optimizer, on images of noise.

    The module cannot be used afterwards. ``sampling`` is the projection of FastComposer over the same base,
    which samples as fast as a fine-tuned one.
    """
    timing, side = _StepTimer(), module.images.resolution
    with tempfile.TemporaryDirectory() as folder:
        files = tuple(Path(folder) / f"{number}.png" for number in range(NUM_TUNING_IMAGES))
        for number, file in enumerate(files):
            Image.fromarray(_noise(side, number)).save(file)
        people = (ReferenceSet("somebody", _WORD, files),)
        if module.class_images is not None:
            module.class_images = replace(module.class_images, folder=folder, count=module.images.batch_size)
            images = module.class_images.image_folder(_WORD, module.fingerprint, side)
            module.class_images.generate(_class_noise, _WORD, images, side)
        # One step more: the first is not counted.
        trainer = L.Trainer(accelerator="auto", devices=1, max_steps=repeats + 1, callbacks=[timing], **QUIET)
        trainer.fit(module, PortraitDataModule(people, module.images, seed=0))
    return replace(
        sampling,
        method=module.method,
        seconds_per_training_step=median(timing.seconds[1:]),
        training_steps=module.steps,
        gradient_checkpointing=module.unet.is_gradient_checkpointing,
    )


def cost_rows(projections: Sequence[Projection]) -> list[list[str]]:
    """Rows of a table; the first projection is FastComposer's."""
    rows = []
    for one in projections:
        relative = one.seconds / projections[0].seconds
        figures = (one.personalization_seconds, one.seconds_per_image, one.seconds, relative)
        step = f"{one.seconds_per_training_step:.3g}" if one.training_steps else ""
        name = method_name(one.method) + (" (gradient checkpointing)" if one.gradient_checkpointing else "")
        shown = [f"{figure:,.3g}" if figure < 1000 else f"{figure:,.0f}" for figure in figures]
        rows.append([name, step, f"{one.training_steps:,}", *shown])
    return rows


class _StepTimer(Callback):
    """Wall time of every training step."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self._started = 0.0

    def on_train_batch_start(self, *args: Any) -> None:
        self._started = timer()

    def on_train_batch_end(self, *args: Any) -> None:
        self.seconds.append(timer() - self._started)


def _noise(side: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(256, size=(side, side, 3), dtype=np.uint8)


def _class_noise(prompts: Sequence[str], *, height: int, **_: Any) -> SimpleNamespace:
    return SimpleNamespace(images=[Image.fromarray(_noise(height)) for _ in prompts])


# --- growth -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Machines:
    """Connections between devices, in bytes a second; a ring exchanges gradients and divided weights."""

    per_node: Count = 8
    node_bandwidth: Rate = 300e9
    network_bandwidth: Rate = 25e9
    overlap: Fraction = 0.5  # fraction of a step that hides the exchange

    def __post_init__(self) -> None:
        for name in ("per_node", "node_bandwidth", "network_bandwidth"):
            if getattr(self, name) <= 0:
                raise ValueError(f"plan.machines.{name}={getattr(self, name)}: must be more than 0")
        if not 0 <= self.overlap <= 1:
            raise ValueError(f"plan.machines.overlap={self.overlap}: must lie between 0 and 1")


@dataclass(frozen=True)
class Measured:
    """Figures of one device and of some records."""

    seconds_per_step: float
    batch_size: int
    trained: int  # numbers
    frozen: int
    averaged: bool  # whether a moving average is kept
    activation_bytes: float  # that a sample's forward leaves for its backward
    cache_bytes: float  # of a record
    shard_bytes: float
    index_bytes: float  # in the memory of every process


def measure_growth(
    model: FastComposer, batch: SubjectBatch, root: str | Path, repeats: int, averaged: bool
) -> Measured:
    """Measure training steps of a batch of noise, and the records of a data folder."""
    optimizer = torch.optim.AdamW(list(model.trainable_parameters()), lr=1e-6)
    seconds = []
    for _ in range(repeats + 1):
        begun = timer()
        model.training_losses(batch, generator=Generator().manual_seed(0)).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        seconds.append(timer() - begun)
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
    with torch.no_grad():
        text = model.text.encode(batch.input_ids, pad=False)
        states = [model.encode_moments(batch.pixel_values[:1]), text.tokens[0]]
    states += [] if text.pooled is None else [text.pooled[0]]
    cached = float(_FLOAT * sum(state.numel() for state in states))
    trained = sum(parameter.numel() for parameter in model.trainable_parameters())
    frozen = sum(parameter.numel() for parameter in model.parameters()) - trained
    step = median(seconds[1:])  # the first one warms up
    return Measured(step, len(batch), trained, frozen, averaged, activations, cached, *weigh_records(root))


def weigh_records(root: str | Path, split: str = "train") -> tuple[float, float]:
    """Mean bytes of a record's files, and of a record in the index that every process keeps in memory."""
    tracemalloc.start()
    ids: Sequence[str] = (index := RecordIndex(root, split)).record_ids
    held = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    chosen = ids[:: max(1, len(ids) // _SAMPLE)]
    files = [record_path(root, name, suffix) for name in chosen for suffix in (".json", ".jpg", ".npy")]
    del index
    return sum(file.stat().st_size for file in files) / len(chosen), held / len(ids)


def project_growth(
    measured: Measured,
    machines: Machines,
    devices: Sequence[int],
    records: Sequence[int],
    strategies: Sequence[str] = STRATEGIES,
) -> pd.DataFrame:
    """Project a training to all choices of devices, records and strategies, a row for each.

    Of N devices, each sends 2 (N − 1) / N of all gradients in a ring that sums them (``ddp``); where weights
    are divided (``fsdp``), they are gathered for the forward and for the backward, and gradients are summed
    to their owners: 3 (N − 1) / N. Memory is weights, gradients, two moments, the average, and activations.
    """
    if min(*devices, *records) < 1:
        raise ValueError(f"plan: {devices} devices and {records} records; all must be at least 1")
    if unknown := [name for name in strategies if name not in STRATEGIES]:
        raise ValueError(f"plan.strategies: {unknown[0]!r} is not one of {', '.join(STRATEGIES)}")
    rows = product(strategies, devices, records)
    plan = pd.DataFrame(rows, columns=["strategy", "devices", "records"])
    divided = plan.strategy == "fsdp"
    kept = _FLOAT * measured.trained * (4 + measured.averaged) / plan.devices.where(divided, 1)
    shared = _FLOAT * measured.frozen + measured.activation_bytes * measured.batch_size
    plan["memory_bytes"] = kept + shared
    sent = (2 + divided) * (plan.devices - 1) / plan.devices * _FLOAT * measured.trained
    near = plan.devices <= machines.per_node
    bandwidth = np.where(near, machines.node_bandwidth, machines.network_bandwidth)
    exposed = sent / bandwidth - machines.overlap * measured.seconds_per_step
    plan["network_bytes"] = sent
    plan["seconds_per_step"] = measured.seconds_per_step + exposed.clip(lower=0.0)
    steps = plan.records / (plan.devices * measured.batch_size)
    plan["hours_per_epoch"] = steps * plan.seconds_per_step / 3600
    plan["cache_bytes"] = plan.records * measured.cache_bytes
    plan["shard_bytes"] = plan.records * measured.shard_bytes
    plan["index_bytes"] = plan.records * (measured.index_bytes + 8)  # with the order of an epoch
    return plan


def growth_tables(plan: pd.DataFrame) -> list[tuple[str, pd.DataFrame]]:
    """Title and texts of two tables: by devices for the first number of records, and of disks by records."""
    first = plan.iloc[0]
    few = plan[plan.records == first.records]
    many = plan[(plan.strategy == first.strategy) & (plan.devices == first.devices)]
    return [
        (f"Projection: {first.records:,} records", _texts(few, ["strategy", "devices"], _BY_DEVICES)),
        ("Projection: disk", _texts(many, ["records"], _BY_RECORDS)),
    ]


def _texts(plan: pd.DataFrame, names: list[str], figures: Mapping[str, tuple[str, float]]) -> pd.DataFrame:
    texts = plan[names].map(lambda value: value if isinstance(value, str) else f"{value:,}")
    for name, (title, unit) in figures.items():
        texts[title] = (plan[name] / unit).map("{:,.3g}".format)
    return texts
