"""Drawing goes on where it stopped, and draws nothing twice."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from toy_evaluation import SAMPLER, Toy, make_toy, predict

from fastcomposer.evaluation.benchmark import Benchmark, Subset
from fastcomposer.evaluation.generation import GenerationStage, open_runs, plan_runs
from fastcomposer.evaluation.methods import FastComposerMethod, ImageRequest, SampledImages
from fastcomposer.evaluation.store import read_run


class Noted(FastComposerMethod):
    """Notes what it draws."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.drawn: list[ImageRequest] = []
        self.fail_after: int | None = None

    def sample(self, requests: Sequence[ImageRequest], attention: bool = False) -> SampledImages:
        if self.fail_after is not None and len(self.drawn) >= self.fail_after:
            raise KeyboardInterrupt
        self.drawn += requests
        return super().sample(requests, attention)


def generate(
    method: Any, benchmarks: Sequence[Benchmark], output: Path, restart: bool = False, attention: bool = False
) -> GenerationStage:
    runs = plan_runs(method, benchmarks, output)
    open_runs(runs, output / "concepts", restart)
    stage = GenerationStage(method, runs, output / "concepts", attention)
    return predict(stage)


def contents(folder: Path) -> dict[str, tuple[int, bytes]]:
    """Images by name, with the time of their last change."""
    return {
        str(file.relative_to(folder)): (file.stat().st_mtime_ns, np.asarray(Image.open(file)).tobytes())
        for file in sorted(folder.rglob("images/**/*.png"))
    }


def test_every_case_is_drawn_once(toy: Toy, trained: Any, tmp_path: Path) -> None:
    method = Noted(trained, SAMPLER, [0.5, 1.0], batch_size=4, group_size=4)
    stage = generate(method, toy.benchmarks(), tmp_path)
    assert stage.num_images() == len(method.drawn) == len(set(method.drawn)) == 48
    before = contents(tmp_path)
    assert len(before) == 48
    costs = [read_run(run.store.folder)["costs"] for run in stage.runs]  # type: ignore[index]
    assert [cost["reference_images"] for cost in costs] == [1] * 4
    for run in stage.runs:
        for case in run.benchmark.cases:
            pixels, metadata = run.store.read_image(case)
            assert pixels.shape == (3, 32, 32)
            assert metadata.peak_memory_bytes > 1e7 and metadata.seconds > 0 and metadata.unet_calls > 1

    again = Noted(trained, SAMPLER, [0.5, 1.0], batch_size=4, group_size=4)
    assert generate(again, toy.benchmarks(), tmp_path).num_images() == 0
    assert again.drawn == []
    assert contents(tmp_path) == before


def test_it_goes_on_where_it_stopped(toy: Toy, trained: Any, tmp_path: Path) -> None:
    options: dict[str, Any] = {"alphas": [0.5, 1.0], "batch_size": 4, "group_size": 4}
    whole = tmp_path / "whole"
    generate(Noted(trained, SAMPLER, **options), toy.benchmarks(), whole)
    drawn: list[ImageRequest] = []
    for _ in range(8):
        method = Noted(trained, SAMPLER, **options)
        method.fail_after = 8
        try:
            generate(method, toy.benchmarks(), tmp_path / "parts")
            break
        except SystemExit:  # Lightning's way to end after Ctrl-C
            assert 0 < len(method.drawn) <= 12
        finally:
            drawn += method.drawn
    assert len(drawn) == len(set(drawn)) == 48
    parts = contents(tmp_path / "parts")
    assert {name: pixels for name, (_, pixels) in parts.items()} == {
        name: pixels for name, (_, pixels) in contents(whole).items()
    }


def test_damaged_and_missing_images_are_drawn_again_and_no_others(
    toy: Toy, trained: Any, tmp_path: Path
) -> None:
    benchmarks = toy.benchmarks(multi=None)
    generate(Noted(trained, SAMPLER, [0.5, 1.0]), benchmarks, tmp_path)
    before = contents(tmp_path)
    gone, damaged = sorted(tmp_path.rglob("images/**/*.png"))[3:5]
    gone.unlink()
    damaged.write_bytes(damaged.read_bytes()[:-30])
    method = Noted(trained, SAMPLER, [0.5, 1.0])
    generate(method, benchmarks, tmp_path)
    assert len(method.drawn) == 2
    after = contents(tmp_path)
    assert {name for name in after if after[name][0] != before[name][0]} == {
        str(file.relative_to(tmp_path)) for file in (gone, damaged)
    }
    for name in after:  # in a smaller batch they are the same but for rounding
        new, old = (np.frombuffer(content[name][1], np.uint8).astype(int) for content in (after, before))
        assert np.abs(new - old).max() <= 1


def test_alphas_that_were_drawn_otherwise_are_told_apart(toy: Toy, trained: Any, tmp_path: Path) -> None:
    part = toy.benchmarks(single=Subset(num_subjects=2, images_per_prompt=1), multi=None)
    generate(FastComposerMethod(trained, SAMPLER, [0.5]), part, tmp_path)
    before = contents(tmp_path)
    sampler = {**SAMPLER, "guidance_scale": 4.0}
    message = r"alpha_0.5 was made under other settings \(sampler.guidance_scale: 3.0, not 4.0\).*labels="
    for restart in (False, True):
        with pytest.raises(ValueError, match=message):
            generate(FastComposerMethod(trained, sampler, [1.0]), part, tmp_path, restart=restart)
    assert contents(tmp_path) == before
    assert not (tmp_path / "single_subject" / "fastcomposer-alpha_1.0").exists()
    generate(FastComposerMethod(trained, sampler, [1.0], labels={"guidance": 4}), part, tmp_path)
    generate(FastComposerMethod(trained, sampler, [0.5, 1.0]), part, tmp_path, restart=True)


def test_a_changed_reference_is_seen(trained: Any, tmp_path: Path, small_base: Path) -> None:
    own = make_toy(small_base, tmp_path / "toy")
    benchmarks = own.benchmarks(single=Subset(num_subjects=2, images_per_prompt=1), multi=None)
    method = FastComposerMethod(trained, SAMPLER, [0.5])
    generate(method, benchmarks, tmp_path / "out")
    image = own.references / "00_man.png"
    Image.open(image).rotate(90).save(image)
    with pytest.raises(ValueError, match=r"references\.00_man: '") as caught:
        generate(method, benchmarks, tmp_path / "out")
    assert "resume=restart" in str(caught.value)
    generate(method, benchmarks, tmp_path / "out", restart=True)


def test_attention_of_the_first_case_of_each_pair(toy: Toy, trained: Any, tmp_path: Path) -> None:
    method = Noted(trained, SAMPLER, [0.5, 0.0])
    stage = generate(method, toy.benchmarks(), tmp_path, attention=True)
    single, late, multi, none = (run.store.folder for run in stage.runs)
    assert not (single / "attention").exists() and not (late / "attention").exists()
    for name in ("00_man+01_woman", "00_man+02_man", "01_woman+02_man"):
        folder = multi / "attention" / "multi_subject" / name
        assert [str(f.relative_to(folder)) for f in sorted(folder.rglob("*.*"))] == [
            "context_0/0/0.png",
            "context_0/0/1.png",
            "context_0/0/maps.npz",
        ]
        maps = np.load(folder / "context_0" / "0" / "maps.npz")["maps"]
        assert maps.shape == (2, 16, 16) and maps.min() > 0
        empty = np.load(none / "attention" / "multi_subject" / name / "context_0" / "0" / "maps.npz")["maps"]
        assert empty.shape == (0, 0, 0)
    before = contents(tmp_path)
    method.drawn.clear()
    generate(method, toy.benchmarks(), tmp_path, attention=True)
    assert not method.drawn
    (multi / "attention" / "multi_subject" / "00_man+02_man" / "context_0" / "0" / "maps.npz").unlink()
    generate(method, toy.benchmarks(), tmp_path, attention=True)
    assert [request.case.id for request in method.drawn] == ["multi_subject/00_man+02_man/context_0/0"]
    assert contents(tmp_path) == before
