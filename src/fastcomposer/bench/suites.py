"""Speed of everything but training, and what must hold of the figures of speed."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import deepcopy
from functools import partial
from itertools import chain, count
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import lightning as L
import numpy as np
import torch
from PIL import Image
from torch import Generator

from fastcomposer.batch import SubjectBatch
from fastcomposer.bench.plain_loading import plain_augmentation, plain_sample
from fastcomposer.bench.timing import Speed, Stopwatch, TimedCase
from fastcomposer.bench.training_step import IDENTITY, PLAIN, TOKENS, TUNED, WITHOUT_LOCALIZATION
from fastcomposer.composer import FastComposer
from fastcomposer.data.datamodule import StreamingDataModule, SubjectDataModule
from fastcomposer.data.dataset import SubjectDataset
from fastcomposer.data.records import Record, Segment, record_path, write_ids, write_record
from fastcomposer.data.sample_settings import SampleSettings
from fastcomposer.data.shards import write_shards
from fastcomposer.data.transforms import PUBLISHED
from fastcomposer.miniworld.render import prepare_avatars
from fastcomposer.miniworld.scenes import AvatarScenes
from fastcomposer.models.fusion import FusionConfig
from fastcomposer.pipeline.schedulers import split_scheduler, use_scheduler
from fastcomposer.pipeline.variants import Variant
from fastcomposer.training.personalization.personalize import QUIET
from fastcomposer.training.precompute import CacheStage

if TYPE_CHECKING:
    from fastcomposer.pipeline.kinds import AnyPipeline

_PROMPT = "a man <|image|> on the beach"
_ONE_TOKEN, _SEVERAL_TOKENS = "one token of each subject", "9 tokens of each subject"
_STEP, _CACHED_STEP = "training step", "training step from a cache"
_SOURCES = {  # what is read, and the step that it is for
    "data folder": _STEP,
    "data folder and cache": _CACHED_STEP,
    "shards": _STEP,
    "shards and cache": _CACHED_STEP,
}
_READING, _WORKERS = "batches from {}", "batches from data folder, {} workers"
_BATCHES = 16  # more than workers keep ready
_PEOPLE = 16  # few enough for most to be in another scene too, where references come from
_NUM_WORKERS = 4
_STARTUP_SECONDS = {"help": 2, "cfg": 2, "first training step": 12, "first sampling step": 12}


def time_scenes(watch: Stopwatch, scenes: AvatarScenes, workers: int, number: int = 200) -> None:
    """Time rendering and writing ``number`` scenes."""

    def render() -> None:
        with TemporaryDirectory() as folder:
            prepare_avatars(Path(folder), scenes, number, 0, num_workers=workers)

    cases = {f"render and write, {workers} processes": TimedCase(render, number)}
    watch.interleave("scenes", "scenes/s", cases)


def write_large_records(root: Path, number: int, side: int) -> None:
    """Write images of two people, made of a photograph that matplotlib ships."""
    import matplotlib

    photograph = Path(matplotlib.get_data_path()) / "sample_data" / "grace_hopper.jpg"
    half = side // 2
    with Image.open(photograph) as file:
        tile = file.convert("RGB").resize((half, half))
    tiles = (tile, tile.transpose(Image.Transpose.FLIP_LEFT_RIGHT))
    boxes = ((side // 50, side // 16, half - 12, side - 14), (half + 8, side // 7, side - 24, side - 14))
    heights, widths = np.mgrid[:side, :side]
    segment_map = np.zeros((side, side), dtype=np.int32)
    for segment_id, (x1, y1, x2, y2) in enumerate(boxes, start=1):
        across = (widths - (x1 + x2) / 2) / ((x2 - x1) / 2)
        down = (heights - (y1 + y2) / 2) / ((y2 - y1) / 2)
        segment_map[across**2 + down**2 <= 1] = segment_id
    segments = tuple(Segment(i + 1, box, (5, 17)[i], "person") for i, box in enumerate(boxes))
    names = [f"{index:07d}" for index in range(number)]
    for index, name in enumerate(names):
        image = Image.new("RGB", (side, side))
        for corner in range(4):
            image.paste(tiles[index >> corner & 1], (corner % 2 * half, corner // 2 * half))
        write_record(root, Record(name, "a man and a woman", segments), image, segment_map)
        # Colours at half the resolution, as cameras and the web save them, unlike our own records.
        image.save(record_path(root, name, ".jpg"), quality=90)
    write_ids(root, "train", names)


def time_loader(watch: Stopwatch, tokenizer: Any, *, records: int = 8, side: int = 1024) -> None:
    """Time samples of ``records`` square images on one core, against the plain order."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with TemporaryDirectory() as folder:
            write_large_records(Path(folder), records, side)
            full, scaled = (
                SubjectDataset(folder, "train", tokenizer, SampleSettings(512, 224, scaled_decoding=choice))
                for choice in (False, True)
            )
            plain = plain_augmentation(PUBLISHED, 224)
            number, epochs = len(scaled), count()

            def every(sample: Callable[[int], Any]) -> TimedCase:
                return TimedCase(lambda: [sample(index) for index in range(number)], number)

            cases = {
                f"plain order, {side} px": every(lambda index: plain_sample(scaled, index, plain)),
                f"loader without scaled decoding, {side} px": every(lambda index: full[next(epochs), index]),
                f"loader, {side} px": every(lambda index: scaled[next(epochs), index]),
            }
            watch.interleave("loader", "samples/s per core", cases)
    finally:
        torch.set_num_threads(threads)


def _pipeline(model: FastComposer, sampler: Mapping[str, Any]) -> tuple[AnyPipeline, dict[str, Any]]:
    """A pipeline with a sampler's scheduler, and the arguments of its call."""
    pipeline = model.to_pipeline(safety_checker=False)
    pipeline.set_progress_bar_config(disable=True)
    scheduler, options = split_scheduler(sampler)
    use_scheduler(pipeline, scheduler)
    return pipeline, options


def time_sampler(
    watch: Stopwatch, model: FastComposer, sampler: Mapping[str, Any], batches: Sequence[int] = (1, 4, 16)
) -> None:
    """Time sampling with a reference, by batch; then with one token of the subject and with several."""
    pipeline, options = _pipeline(model, sampler)
    portrait, steps = Image.new("RGB", (64, 64), "brown"), options["num_inference_steps"]

    def case(batch: int, number: int, pipeline: AnyPipeline = pipeline) -> TimedCase:
        sample = partial(pipeline, [_PROMPT] * batch, references=[[portrait]] * batch, **options)
        return TimedCase(sample, number, unet_calls=steps * batch)

    for unit, number in (("images/s", None), ("steps/s", steps)):
        cases = {f"{steps} steps, batch {batch}": case(batch, number or batch) for batch in batches}
        watch.interleave("sampler", unit, cases)
    several = deepcopy(model)
    several.adopt_fusion(FusionConfig(num_tokens=9))
    compared = {_ONE_TOKEN: pipeline, _SEVERAL_TOKENS: _pipeline(several, sampler)[0]}
    cases = {what: case(max(batches), max(batches), one) for what, one in compared.items()}
    watch.interleave("sampler", "images/s", cases)


def time_evaluation(watch: Stopwatch, model: FastComposer, sampler: Mapping[str, Any]) -> None:
    """Time one subject at three alphas: each by itself, and sharing the steps that see the text alone."""
    pipeline, options = _pipeline(model, sampler)
    portrait, alphas = Image.new("RGB", (64, 64), "brown"), (0.6, 0.8, 1.0)
    settings = {key: value for key, value in options.items() if key != "alpha"}

    def calls(*chosen: float) -> float:
        found = [Variant([portrait], alpha) for alpha in chosen]
        generator = Generator().manual_seed(0)
        return sum(pipeline.sample_variants(_PROMPT, found, generator=generator, **settings).unet_calls)

    def alone() -> float:
        return sum(map(calls, alphas))

    shared = partial(calls, *alphas)
    cases = {
        "three alphas, each by itself": TimedCase(alone, len(alphas), unet_calls=alone()),
        "three alphas, shared steps": TimedCase(shared, len(alphas), unet_calls=shared()),
    }
    watch.interleave("evaluation", "images/s", cases)


def time_startup(watch: Stopwatch, commands: Mapping[str, Sequence[str]]) -> None:
    """Time modules of ``fastcomposer.cli`` with arguments; in these ``{folder}`` is an empty folder."""

    def call(arguments: Sequence[str]) -> None:
        with TemporaryDirectory() as folder:
            module, *rest = (argument.replace("{folder}", folder) for argument in arguments)
            command = [sys.executable, "-m", f"fastcomposer.cli.{module}", *rest]
            subprocess.run(command, check=True, capture_output=True)

    cases = {what: TimedCase(partial(call, arguments)) for what, arguments in commands.items()}
    watch.interleave("start-up", "s", cases)


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
    """Time filling a cache; then batches from all sources and training steps in turns; then data workers.

    The settings are arguments of a training's data module, some of which are replaced. So many records are
    rendered of the scenes, with fewer people. ``workers`` are numbers of processes that read the folder.
    """
    with TemporaryDirectory() as folder:
        root, cache, shards = (Path(folder) / name for name in ("data", "cache", "shards"))
        odds = scenes.subject_odds, scenes.style_odds, scenes.context_odds
        few = AvatarScenes(scenes.size, scenes.seed, _PEOPLE, *odds)
        prepare_avatars(root, few, records, 1, num_workers=0)
        ours = {"num_workers": 0, "batch_size": batch_size, "cache": None}
        data = partial(SubjectDataModule, **{**settings, **ours, "root": root})
        streamed = partial(StreamingDataModule, **{**settings, **ours, "root": str(shards)})
        fill = TimedCase(lambda: _fill(model, data(), cache), records + 1)
        watch.interleave("reading", "records/s", {"fill a cache": fill})
        write_shards(root, shards, num_workers=0)
        modules = (data(), data(cache=cache), streamed(), streamed(cache=cache))
        names = map(_READING.format, _SOURCES)
        cases = {name: _reading(module) for name, module in zip(names, modules, strict=True)}
        steps = _steps(model, {_STEP: modules[0], _CACHED_STEP: modules[1]})
        watch.interleave("reading", "samples/s", cases | steps)
        for number in workers:
            # Each by itself: they would keep reading in the turn of another.
            read = _reading(data(num_workers=number), _BATCHES)
            watch.interleave("reading", "samples/s", {_WORKERS.format(number): read})


def _fill(model: FastComposer, data: SubjectDataModule, folder: Path) -> None:
    stage = CacheStage(model, data, folder, restart=folder.exists())
    L.Trainer(accelerator="cpu", devices=1, **QUIET).predict(stage, return_predictions=False)


def _batches(data: SubjectDataModule) -> Iterator[SubjectBatch]:
    loader = data.train_dataloader()
    return chain.from_iterable(loader for _ in count())  # epoch after epoch


def _reading(data: SubjectDataModule, number: int = 1) -> TimedCase:
    batches = _batches(data)
    return TimedCase(lambda: [next(batches) for _ in range(number)], number * data.batch_size)


def _steps(model: FastComposer, sources: dict[str, SubjectDataModule]) -> dict[str, TimedCase]:
    """Forward, backward and optimizer, without a change: the learning rate is 0."""
    model.train().set_trainable()
    optimizer = torch.optim.AdamW(model.trainable_parameters(), lr=0.0, weight_decay=0.0)

    def step(batch: Any) -> None:
        losses = model.training_losses(batch, generator=Generator().manual_seed(0), skip_empty=True)
        losses.loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    batches = {what: next(_batches(data)) for what, data in sources.items()}
    return {what: TimedCase(partial(step, batch), len(batch)) for what, batch in batches.items()}


def shares(taken: Sequence[Speed]) -> list[str]:
    """Fraction of reading in the time of reading and training, for each source."""
    rows = {row.what: row.value for row in taken if row.suite == "reading"}
    lines = []
    for source, step in _SOURCES.items():
        if (name := _READING.format(source)) in rows and step in rows:
            read, trained = 1 / rows[name], 1 / rows[step]
            lines.append(
                f"reading from {source}: {read / (read + trained):.1%} of the time of a training that reads "
                "in its own process; workers read meanwhile"
            )
    return lines


def limits(rows: Sequence[Speed]) -> list[str]:
    """Report what was measured of each limit; those whose figures were not taken are left out."""
    by_name = {row.what: row for row in rows}
    loader, twin = (next((n for n in by_name if n.startswith(s)), "") for s in ("loader, ", "plain order, "))
    reading = f"reading with {_NUM_WORKERS} workers over training from a cache: {{:.2f}} times as fast"
    localized = "step with localization over without: {:.3f} times as long (at most 1.05)"
    sampled = "sampling with 9 tokens over one: {:.3f} times as long (at most 1.05)"
    compared = [
        (TUNED, PLAIN, "value", "tuned over plain step: {:.2f} times as fast (at least 1.6)"),
        (TUNED, PLAIN, "peak_memory_bytes", "tuned over plain memory: {:.2f} (at most 0.75)"),
        (WITHOUT_LOCALIZATION, TUNED, "value", localized),
        (TUNED, TOKENS, "value", "step with 9 tokens over one: {:.3f} times as long (at most 1.1)"),
        (_ONE_TOKEN, _SEVERAL_TOKENS, "value", sampled),
        (TUNED, IDENTITY, "value", "step with the identity loss over without: {:.2f} times as long"),
        (loader, twin, "value", "loader over plain order: {:.2f} times as fast (at least 3)"),
        (_WORKERS.format(_NUM_WORKERS), _CACHED_STEP, "value", f"{reading} (at least 1)"),
    ]
    lines = []
    for *names, figure, text in compared:
        above, below = (getattr(by_name.get(name), figure, None) for name in names)
        if above and below:
            lines.append(text.format(above / below))
    for name, seconds in _STARTUP_SECONDS.items():
        if name in by_name:
            lines.append(f"start-up, {name}: {by_name[name].value:.1f} s (less than {seconds})")
    return lines
