"""Images drawn while training."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from fastcomposer.training.samples import SampleImages, SampleScore

Make = Callable[..., Any]


def test_samples_are_the_same_images_each_time(
    make_module: Make, fit: Make, world: Path, tmp_path: Path
) -> None:
    portraits = sorted(str(path) for path in (world / "references").glob("*.png"))
    samples = SampleImages(
        tmp_path,
        ["a man <|image|> on the beach", "a man <|image|> and a woman <|image|>"],
        [portraits[:1], portraits[:2]],
        seed=1,
        sampler={"alpha": 1.0, "num_inference_steps": 2, "height": 32, "width": 32},
    )
    frozen = partial(torch.optim.SGD, lr=0.0)
    module = make_module(optimizer=frozen, ema_decay=None)
    validation = {"limit_val_batches": 1, "val_check_interval": 2, "check_val_every_n_epoch": None}
    fit(module, 4, callbacks=[samples], **validation)
    files = sorted(tmp_path.glob("step_*.png"))
    assert [file.name for file in files] == ["step_000002.png", "step_000004.png"]
    assert files[0].read_bytes() == files[1].read_bytes()
    assert Image.open(files[0]).size == (5 * 198 + 6, 2 * 198 + 6)


def test_missing_references_of_samples_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"nobody\.png"):
        SampleImages(tmp_path, ["a man <|image|>"], [["nobody.png"]], 0, {})
    with pytest.raises(ValueError, match="1 prompts, but references for 0"):
        SampleImages(tmp_path, ["a man <|image|>"], [], 0, {})
    portrait = tmp_path / "man.png"
    Image.new("RGB", (8, 8)).save(portrait)
    for prompt, row in (("a beach", []), ("a man <|image|> and a woman <|image|>", [str(portrait)])):
        with pytest.raises(ValueError, match=rf"samples: {len(row)} references for '{re.escape(prompt)}'"):
            SampleImages(tmp_path, [prompt], [row], 0, {})


def test_prompt_consistency_is_a_mean_over_images(
    make_module: Make, fit: Make, world: Path, tmp_path: Path
) -> None:
    portraits = sorted(str(path) for path in (world / "references").glob("*.png"))

    def scores(*_: Any) -> list[SampleScore]:
        return [SampleScore((0.6,), 0.3), SampleScore((0.0, None), 0.1)]

    prompts = ["a man <|image|>", "a man <|image|> and a woman <|image|>"]
    sampler = {"alpha": 1.0, "num_inference_steps": 1, "height": 32, "width": 32}
    samples = SampleImages(tmp_path, prompts, [portraits[:1], portraits[:2]], 1, sampler, scores)
    trainer = fit(make_module(), 1, callbacks=[samples], limit_val_batches=1, val_check_interval=1)
    found = {name: value.item() for name, value in trainer.callback_metrics.items() if "samples/" in name}
    assert found == pytest.approx({"samples/identity": 0.3, "samples/prompt_consistency": 0.2})
