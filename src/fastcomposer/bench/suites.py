"""Speed of everything but training: scenes, loader, sampler, evaluation and start-up."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Generator

from fastcomposer.bench.plain_loading import plain_augmentation, plain_sample
from fastcomposer.bench.timing import Case, Stopwatch
from fastcomposer.composer import FastComposer
from fastcomposer.data.dataset import SubjectDataset
from fastcomposer.data.records import Record, Segment, record_path, write_ids, write_record
from fastcomposer.data.transforms import PUBLISHED
from fastcomposer.miniworld.render import prepare_avatars
from fastcomposer.miniworld.scenes import AvatarScenes
from fastcomposer.pipeline.schedulers import split_scheduler, use_scheduler
from fastcomposer.pipeline.stable_diffusion import FastComposerPipeline
from fastcomposer.pipeline.variants import Variant

_PROMPT = "a man <|image|> on the beach"


def time_scenes(watch: Stopwatch, scenes: AvatarScenes, workers: int, number: int = 200) -> None:
    """Time rendering and writing ``number`` scenes."""

    def render() -> None:
        with tempfile.TemporaryDirectory() as folder:
            prepare_avatars(Path(folder), scenes, number, 0, num_workers=workers)

    watch.interleave("scenes", "scenes/s", {f"render and write, {workers} processes": Case(render, number)})


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
    names = [f"{place:07d}" for place in range(number)]
    for place, name in enumerate(names):
        image = Image.new("RGB", (side, side))
        for corner in range(4):
            image.paste(tiles[place >> corner & 1], (corner % 2 * half, corner // 2 * half))
        write_record(root, Record(name, "a man and a woman", segments), image, segment_map)
        # Colours at half the resolution, as cameras and the web save them; our own records keep them whole.
        image.save(record_path(root, name, ".jpg"), quality=90)
    write_ids(root, "train", names)


def time_loader(watch: Stopwatch, tokenizer: Any, *, records: int = 8, side: int = 1024) -> None:
    """Time samples of square images on one core, against the plain order.

    Args:
        watch: Keeps the figures.
        tokenizer: CLIP tokenizer.
        records: Number of images.
        side: Their height and width in pixels.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with tempfile.TemporaryDirectory() as folder:
            write_large_records(Path(folder), records, side)
            whole, scaled = (
                SubjectDataset(folder, "train", tokenizer, 512, 224, scaled_decoding=choice)
                for choice in (False, True)
            )
            plain = plain_augmentation(PUBLISHED, 224)
            number, epochs = len(scaled), count()

            def every(sample: Callable[[int], Any]) -> Case:
                return Case(lambda: [sample(index) for index in range(number)], number)

            cases = {
                f"plain order, {side} px": every(lambda index: plain_sample(scaled, index, plain)),
                f"loader without scaled decoding, {side} px": every(lambda index: whole[next(epochs), index]),
                f"loader, {side} px": every(lambda index: scaled[next(epochs), index]),
            }
            watch.interleave("loader", "samples/s per core", cases)
    finally:
        torch.set_num_threads(threads)


def _quiet(model: FastComposer, sampler: Mapping[str, Any]) -> tuple[FastComposerPipeline, dict[str, Any]]:
    """A pipeline with a sampler's scheduler, and the arguments of its call."""
    pipeline = model.to_pipeline(safety_checker=False)
    pipeline.set_progress_bar_config(disable=True)
    scheduler, options = split_scheduler(sampler)
    use_scheduler(pipeline, scheduler)
    return pipeline, options


def time_sampler(
    watch: Stopwatch, model: FastComposer, sampler: Mapping[str, Any], batches: Sequence[int] = (1, 4, 16)
) -> None:
    """Time sampling with a reference, by batch."""
    pipeline, options = _quiet(model, sampler)
    portrait = Image.new("RGB", (64, 64), "brown")

    steps = options["num_inference_steps"]

    def case(batch: int, number: int) -> Case:
        prompts, references = [_PROMPT] * batch, [[portrait]] * batch
        draw = partial(pipeline, prompts, references=references, **options)
        return Case(draw, number, unet_calls=steps * batch)

    for unit in ("images/s", "steps/s"):
        cases = {
            f"{steps} steps, batch {batch}": case(batch, batch if unit == "images/s" else steps)
            for batch in batches
        }
        watch.interleave("sampler", unit, cases)


def time_evaluation(watch: Stopwatch, model: FastComposer, sampler: Mapping[str, Any]) -> None:
    """Time one subject at three alphas: each by itself, and sharing the steps that see the text alone."""
    pipeline, options = _quiet(model, sampler)
    portrait = Image.new("RGB", (64, 64), "brown")
    alphas = (0.6, 0.8, 1.0)
    settings = {key: value for key, value in options.items() if key != "alpha"}

    def variants(chosen: Sequence[float]) -> Any:
        generator = Generator().manual_seed(0)
        return pipeline.sample_variants(
            _PROMPT, [Variant([portrait], alpha) for alpha in chosen], generator=generator, **settings
        )

    shared = sum(variants(alphas).unet_calls)
    alone = sum(sum(variants([alpha]).unet_calls) for alpha in alphas)
    cases = {
        "three alphas, each by itself": Case(
            lambda: [variants([alpha]) for alpha in alphas], len(alphas), unet_calls=alone
        ),
        "three alphas, shared steps": Case(lambda: variants(alphas), len(alphas), unet_calls=shared),
    }
    watch.interleave("evaluation", "images/s", cases)


def time_startup(watch: Stopwatch, commands: Mapping[str, Sequence[str]]) -> None:
    """Time commands from their start to their end.

    Args:
        watch: Keeps the figures.
        commands: By what they do, the module under ``fastcomposer.cli`` and its arguments, in which
            ``{folder}`` stands for an empty one.
    """

    def call(arguments: Sequence[str]) -> None:
        module, *rest = arguments
        with tempfile.TemporaryDirectory() as folder:
            rest = [argument.replace("{folder}", folder) for argument in rest]
            subprocess.run(
                [sys.executable, "-m", f"fastcomposer.cli.{module}", *rest], check=True, capture_output=True
            )

    cases = {what: Case(partial(call, arguments)) for what, arguments in commands.items()}
    watch.interleave("start-up", "s", cases)
