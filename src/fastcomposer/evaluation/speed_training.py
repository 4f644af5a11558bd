"""Whether the loader keeps up with a training: samples per second of both."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import chain, count
from typing import Any

import torch
from torch import Generator

from fastcomposer.batch import SubjectBatch
from fastcomposer.data.datamodule import SubjectDataModule
from fastcomposer.evaluation.speed import Case, Stopwatch
from fastcomposer.training.module import FastComposerModule

STEP, CACHED_STEP = "training step", "training step, cached latents and text"
_BATCHES = 16


def loader_name(workers: int) -> str:
    """Name of the row of a loader with so many workers."""
    return f"batches of the data folder, {workers or 'no'} workers"


def time_training(
    watch: Stopwatch, module: FastComposerModule, data: Mapping[int, SubjectDataModule]
) -> None:
    """Time training steps without a loader, and the loader without steps.

    Args:
        watch: Keeps the figures.
        module: The training.
        data: By number of workers, the data module with so many.
    """
    batch = next(iter(next(iter(data.values())).train_dataloader()))
    model = module.model
    with torch.no_grad():
        moments, text = model.encode_moments(batch.pixel_values), model.encode_captions(batch)
    cached = batch.replace(latent_moments=moments, text_embeds=text.tokens, pooled_text_embeds=text.pooled)
    optimizer = module.optimizer_factory(list(module.trained_parameters().values()))
    model.train()

    def step(given: SubjectBatch) -> None:
        generator = Generator().manual_seed(0)
        model.training_losses(given, generator=generator, skip_empty=True).loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    cases = {STEP: Case(lambda: step(batch), len(batch)), CACHED_STEP: Case(lambda: step(cached), len(batch))}
    watch.interleave("training", "samples/s", cases)
    for workers, one in data.items():
        # Each by itself: workers would go on loading while another one's turn is timed.
        watch.interleave("training", "samples/s", {loader_name(workers): _loading(one)})


def _loading(data: SubjectDataModule) -> Case:
    """More batches at a time than workers keep ready."""
    loader: Any = data.train_dataloader()
    batches = chain.from_iterable(loader for _ in count())  # epoch after epoch
    return Case(lambda: [next(batches) for _ in range(_BATCHES)], _BATCHES * data.batch_size)
