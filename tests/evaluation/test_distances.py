"""Runs are held against real images once, and again where something has changed."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from toy_evaluation import predict

from fastcomposer.evaluation.benchmark import Benchmark, Case, Subject
from fastcomposer.evaluation.distances import DistanceStage
from fastcomposer.evaluation.generation import PlannedRun
from fastcomposer.evaluation.results import Distances
from fastcomposer.evaluation.store import ImageMetadata, RunStore, images_key, read_distances, write_all


class Colours:
    """Mean colour of an image."""

    num_features = 3

    def __init__(self, gain: float = 1.0) -> None:
        self.gain = gain

    def __call__(self, images: Tensor) -> Tensor:
        return images.mean((2, 3)) * self.gain


class Data:
    """Real images in batches of 4, as a data module gives them."""

    batch_size = 4

    def __init__(self, seed: int = 0) -> None:
        self.images = torch.rand(12, 3, 8, 8, generator=torch.Generator().manual_seed(seed))
        self.read = 0

    def val_dataloader(self) -> Any:
        for some in self.images.split(4):
            self.read += len(some)
            yield SimpleNamespace(pixel_values=some * 2 - 1)


@pytest.fixture
def run(tmp_path: Path) -> PlannedRun:
    cases = tuple(
        Case(f"single_subject/a/style_{n}/0", "single_subject", "style", f"a man {n}", "a man", ("a",), n)
        for n in range(5)
    )
    store = RunStore(tmp_path, "single_subject", "text_only", {}, {"weights": 1}, {"a": "x"})
    store.open()
    generator = torch.Generator().manual_seed(1)
    for case in cases:
        pixels = torch.rand(3, 8, 8, generator=generator)
        write_all({store.image_file(case): store.encode_image(case, pixels, ImageMetadata(1.0, 2.0, 3))})
    return PlannedRun(store, Benchmark("single_subject", (Subject("a", "man", ()),), cases), 0)


def measure(runs: Sequence[PlannedRun], **options: Any) -> int:
    """Measure; returns how many images were looked at."""
    options = {"features": Colours(), "data": Data(), **options}
    stage = DistanceStage(runs=runs, batch_size=2, **options)
    return predict(stage).num_images()


def kept(run: PlannedRun) -> Distances | None:
    return read_distances(run.store.folder, images_key(run.store.hash, [c.id for c in run.benchmark.cases]))


def test_a_run_is_measured_once(run: PlannedRun) -> None:
    assert kept(run) is None
    assert measure([run]) == 5
    distances = kept(run)
    assert distances is not None
    assert (distances.real_images, distances.features) == (12, "Colours")
    assert distances.fid > 0
    assert measure([run]) == 0
    assert kept(run) == distances


def test_what_has_changed_is_measured_anew(run: PlannedRun) -> None:
    assert measure([run]) == 5
    assert measure([run], data=Data(seed=1)) == 5
    assert measure([run], features=Colours(2.0)) == 5
    assert measure([run], num_real=6) == 5
    distances = kept(run)
    assert distances is not None and distances.real_images == 6
    part = replace(run, benchmark=replace(run.benchmark, cases=run.benchmark.cases[:3]))
    assert kept(part) is None
    (run.store.folder / "distances.json").write_text("{")
    assert kept(run) is None
    assert measure([run], num_real=6) == 5
    assert json.loads((run.store.folder / "distances.json").read_text())["distances"]["real_images"] == 6


def test_distances_from_other_images_do_not_mix(run: PlannedRun, tmp_path: Path) -> None:
    assert measure([run]) == 5
    distances = kept(run)
    assert distances is not None and distances.scored_by
    other = DistanceStage(Colours(2.0), Data(), num_real=6)
    with pytest.raises(ValueError, match=r"metrics\.features\.gain: 1\.0, not 2\.0.*num_real: 1000, not 6"):
        other.check_others(tmp_path, set())
    other.check_others(tmp_path, {run.store.folder})
    with pytest.raises(ValueError, match=r"\(data\.first_images: '\w+', not '\w+'\)"):
        DistanceStage(Colours(), Data(seed=1)).check_others(tmp_path, set())
    DistanceStage(Colours(), Data()).check_others(tmp_path, set())


def test_bad_numbers_are_refused() -> None:
    for name in ("num_real", "batch_size"):
        with pytest.raises(ValueError, match=rf"distances\.{name}=0: at least"):
            DistanceStage(Colours(), Data(), [], **{name: 0})
