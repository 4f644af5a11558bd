"""What a command prints at its end: places that exist."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from toy_evaluation import make_toy

from fastcomposer.cli import closing, evaluate, prepare, report, train

Run = Callable[..., tuple[int, str, str]]


def places(err: str) -> list[str]:
    """Paths that are named at the end."""
    lines = err.rpartition("\n\n")[2].splitlines()
    return [line.rpartition("  ")[2] for line in lines if line.startswith("  ")]


@pytest.fixture
def small(world: Path, small_base: Path) -> list[str]:
    """A model and data of seconds."""
    model = [f"model.base={small_base}", "model.resolution=32", "model.reference_size=56"]
    return [*model, f"data.root={world}"]


@pytest.fixture
def training(small: list[str]) -> list[str]:
    steps = ["trainer.max_time=null", "trainer.max_steps=2", "trainer.limit_val_batches=0"]
    less = ["~callbacks.samples", "data.module.batch_size=2", "data.module.num_workers=0"]
    return ["experiment=mini", *small, *steps, "trainer.log_every_n_steps=1", *less]


def test_a_training_names_what_it_left(run: Run, training: list[str]) -> None:
    status, _, err = run(train, "name=my run", *training)
    assert status == 0, err
    inside = ("checkpoints", "logs/metrics.csv", ".hydra/config.yaml")
    assert places(err) == ["outputs/my run", *(f"outputs/my run/{name}" for name in inside)]


def test_a_training_that_was_stopped_says_how_to_resume(run: Run, training: list[str]) -> None:
    stop = "+callbacks.signal._target_=stopping.StopAfterOneStep"
    status, out, err = run(train, *training, stop)
    assert status == 143, err
    assert "1 steps are done. resume=auto" in out
    status, out, err = run(train, *training, "resume=auto")
    assert status == 0, err
    assert "2 steps are done.\n" in out


def test_prepared_data_are_named(run: Run, small: list[str]) -> None:
    rendered = ["data.root=my/world", "data.prepare.num_train=3", "data.prepare.num_test=2"]
    _, _, err = run(prepare, "data=avatars", "data.prepare.num_workers=0", *rendered)
    assert places(err) == ["my/world", "my/world/references"]
    _, _, err = run(prepare, "cache=cache", *small)
    assert places(err) == ["cache"]
    _, _, err = run(prepare, "shards=shards", "sharding.num_workers=0", *small)
    assert places(err) == ["shards"]


def test_scores_and_their_report_are_named(run: Run, small_base: Path, tmp_path: Path) -> None:
    toy = make_toy(small_base, tmp_path / "toy")
    less = ["methods=[text_only]", "benchmark.multi=null", "sampler.num_inference_steps=1"]
    _, _, err = run(evaluate, *toy.arguments(*less))
    assert places(err) == ["outputs/evaluate/results.json", "outputs/evaluate"]
    _, out, err = run(report, "results=outputs/evaluate", "~benchmark")
    assert places(err) == ["outputs/evaluate"]
    assert "outputs/evaluate/report.html" in out


def test_paths_are_short_inside_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert closing.shown(tmp_path / "outputs" / "mini") == "outputs/mini"
    assert closing.shown("outputs") == "outputs"
    assert closing.shown("/elsewhere/outputs") == "/elsewhere/outputs"
