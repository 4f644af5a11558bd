"""Speed of reading: from the data folder, a cache and shards, beside the training step that waits for it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from itertools import chain, count
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import lightning as L
import torch
from torch import Generator

from fastcomposer.batch import SubjectBatch
from fastcomposer.bench.timing import Case, Speed, Stopwatch
from fastcomposer.composer import FastComposer
from fastcomposer.data.datamodule import SubjectDataModule
from fastcomposer.data.shards import write_shards
from fastcomposer.data.streaming import StreamingDataModule
from fastcomposer.miniworld.render import prepare_avatars
from fastcomposer.miniworld.scenes import AvatarScenes
from fastcomposer.training.personalization.personalize import QUIET, quietly
from fastcomposer.training.precompute import CacheStage

SUITE = "reading"
STEP, CACHED_STEP = "training step", "training step from a cache"
SOURCES = {  # what is read, and the step that it is for
    "data folder": STEP,
    "data folder and cache": CACHED_STEP,
    "shards": STEP,
    "shards and cache": CACHED_STEP,
}
_BATCHES = 16  # more than workers keep ready
_PEOPLE = 16  # few enough for most to be in another scene too, where references come from


def time_reading(
    watch: Stopwatch,
    settings: Mapping[str, Any],
    model: FastComposer,
    scenes: AvatarScenes,
    *,
    records: int = 256,
    batch_size: int = 16,
    workers: Sequence[int] = (1, 2, 4),
) -> None:
    """Time filling a cache; then batches from everywhere, read in this process, and training steps, in turns.

    After these, batches of the folder that other processes read.

    Args:
        watch: Keeps the figures.
        settings: Arguments of a training's data module; some are replaced.
        model: What is trained, and whose VAE and text encoder fill the cache.
        scenes: Of which world records are rendered, with fewer people.
        records: How many.
        batch_size: Samples in a batch.
        workers: Numbers of processes.

    Raises:
        ValueError: If the records do not fill a batch.
    """
    with TemporaryDirectory() as folder:
        root, cache, shards = (Path(folder) / name for name in ("data", "cache", "shards"))
        few = AvatarScenes(
            scenes.size, scenes.seed, _PEOPLE, scenes.subject_odds, scenes.style_odds, scenes.context_odds
        )
        prepare_avatars(root, few, records, 1, num_workers=0)
        ours = {"num_workers": 0, "batch_size": batch_size, "cache": None}
        data = partial(SubjectDataModule, **{**settings, **ours, "root": root})
        streamed = partial(StreamingDataModule, **{**settings, **ours, "root": str(shards)})
        fill = Case(lambda: _fill(model, data(), cache), records + 1)
        watch.interleave(SUITE, "records/s", {"fill a cache": fill})
        write_shards(root, shards, num_workers=0)
        modules = (data(), data(cache=cache), streamed(), streamed(cache=cache))
        cases = {what: _reading(module) for what, module in zip(map(_name, SOURCES), modules, strict=True)}
        steps = _steps(model, {STEP: modules[0], CACHED_STEP: modules[1]})
        watch.interleave(SUITE, "samples/s", cases | steps)
        for number in workers:
            # Each by itself: they would go on reading in the turn of another.
            read = _reading(data(num_workers=number), _BATCHES)
            watch.interleave(SUITE, "samples/s", {workers_name(number): read})


def shares(taken: Sequence[Speed]) -> list[str]:
    """Share of reading in the time of reading and training, for each source that was timed."""
    rows = {row.what: row.value for row in taken if row.suite == SUITE}
    lines = []
    for source, step in SOURCES.items():
        if _name(source) in rows and step in rows:
            read, trained = 1 / rows[_name(source)], 1 / rows[step]
            lines.append(
                f"reading from {source}: {read / (read + trained):.1%} of the time of a training that reads "
                "in its own process; workers read meanwhile"
            )
    return lines


def workers_name(number: int) -> str:
    """Name of the row of batches that so many processes read."""
    return f"{_name('data folder')}, {number} workers"


def _name(source: str) -> str:
    return f"batches from {source}"


def _fill(model: FastComposer, data: SubjectDataModule, folder: Path) -> None:
    stage = CacheStage(model, data, folder, restart=folder.exists())
    with quietly():
        L.Trainer(accelerator="cpu", devices=1, **QUIET).predict(stage, return_predictions=False)


def _batches(data: SubjectDataModule) -> Iterator[SubjectBatch]:
    loader = data.train_dataloader()
    return chain.from_iterable(loader for _ in count())  # epoch after epoch


def _reading(data: SubjectDataModule, number: int = 1) -> Case:
    batches = _batches(data)
    return Case(lambda: [next(batches) for _ in range(number)], number * data.batch_size)


def _steps(model: FastComposer, sources: dict[str, SubjectDataModule]) -> dict[str, Case]:
    """Forward, backward and optimizer, without a change: the learning rate is 0."""
    model.train().set_trainable()
    optimizer = torch.optim.AdamW(model.trainable_parameters(), lr=0.0, weight_decay=0.0)

    def step(batch: Any) -> None:
        losses = model.training_losses(batch, generator=Generator().manual_seed(0), skip_empty=True)
        losses.loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    batches = {what: next(_batches(data)) for what, data in sources.items()}
    return {what: Case(partial(step, batch), len(batch)) for what, batch in batches.items()}
