"""Tables and the last lines of a command."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from rich.table import Table

from fastcomposer.cli import train
from fastcomposer.cli.common import conclude, show_table

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
    stop = [f"+callbacks.signal.{key}" for key in ("_target_=notices.SignalAt", "step=0", "name=SIGTERM")]
    status, out, err = run(train, *training, *stop)
    assert status == 143, err
    assert "1 steps are done. resume=auto" in out
    status, out, err = run(train, *training, "resume=auto")
    assert status == 0, err
    assert "2 steps are done.\n" in out


def test_paths_are_short_inside_the_working_directory_and_exist(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("outputs").mkdir()
    conclude({"results": tmp_path / "outputs", "gone": "nowhere", "system": "/tmp", "none": None})
    assert capsys.readouterr().err == "\n  results  outputs\n  system   /tmp\n"


def test_a_log_shows_every_cell(capsys: pytest.CaptureFixture[str]) -> None:
    names = [f"a method with a name of {length} letters, {'x' * length}" for length in (3, 80)]
    table = Table("method", "seconds until the first image of a new person")
    for name in names:
        table.add_row(name, "61,145")
    show_table(table)
    lines = capsys.readouterr().out.splitlines()
    assert [name for name in names if any(name in line for line in lines)] == names
    assert len({len(line) for line in lines}) == 1
