"""Two runs in one folder: the second is refused, whoever the first is."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
from collections.abc import Iterator
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from fastcomposer.cli import attention, evaluate, prepare, train
from fastcomposer.utils.errors import FaultError
from fastcomposer.utils.lock import LOCK_NAME, sole_run

_CONTEXT = multiprocessing.get_context("fork")


def hold(folder: Path, held: Any) -> None:
    with sole_run(folder):
        held.set()
        signal.pause()


@pytest.fixture
def holder(tmp_path: Path) -> Iterator[BaseProcess]:
    """A process that runs in ``<tmp_path>/run``."""
    held = _CONTEXT.Event()
    process = _CONTEXT.Process(target=hold, args=(tmp_path / "run", held))
    process.start()
    assert held.wait(60)
    yield process
    process.kill()
    process.join()


@pytest.mark.parametrize(
    ("command", "arguments"),
    [
        (train, ["name=run", "hydra.run.dir=run"]),
        (evaluate, ["output=run"]),
        (attention, ["output=run", "checkpoints=[x]"]),
        (prepare, ["data=avatars", "data.root=run"]),
        (prepare, ["cache=run"]),
        (prepare, ["shards=run"]),
    ],
)
def test_a_second_run_is_refused(
    command: ModuleType,
    arguments: list[str],
    holder: BaseProcess,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["fastcomposer", *arguments])
    with pytest.raises(SystemExit) as end:
        command.main()
    assert end.value.code == 1
    message = capsys.readouterr().err
    assert f"run is in use by process {holder.pid} on " in message and message.startswith("error: ")
    assert "Traceback" not in message
    left = {entry.name for entry in (tmp_path / "run").iterdir()} - {".hydra", "train.log"}
    assert left == {LOCK_NAME}


def test_a_dead_owner_blocks_nobody(holder: BaseProcess, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    for _ in range(2):  # a refusal leaves the lock to its owner
        with pytest.raises(FaultError, match="in use"), sole_run(folder):
            pass
    holder.kill()
    holder.join()
    assert (folder / LOCK_NAME).exists()
    with sole_run(folder):
        assert str(os.getpid()) in (folder / LOCK_NAME).read_text()
    assert not (folder / LOCK_NAME).exists()


def test_the_first_process_of_a_run_holds_it_for_all(
    holder: BaseProcess, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LOCAL_RANK", "1")
    with sole_run(tmp_path / "run"):
        assert str(holder.pid) in (tmp_path / "run" / LOCK_NAME).read_text()
    assert (tmp_path / "run" / LOCK_NAME).exists()


@pytest.mark.parametrize("kind", ["link", "FIFO"])
def test_a_lock_overwrites_nothing(tmp_path: Path, kind: str) -> None:
    (tmp_path / "precious").write_text("kept")
    if kind == "link":
        (tmp_path / LOCK_NAME).symlink_to(tmp_path / "precious")
    else:
        os.mkfifo(tmp_path / LOCK_NAME)
    with pytest.raises(FaultError, match=r"\.lock"), sole_run(tmp_path):
        pass
    assert (tmp_path / "precious").read_text() == "kept"
    assert os.path.lexists(tmp_path / LOCK_NAME)


def test_nothing_stays_of_a_run_that_made_nothing(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="bad setting"), sole_run(tmp_path / "new"):
        raise ValueError("bad setting")
    assert not (tmp_path / "new").exists()


def many_holders(folder: Path, file: Path) -> None:
    """Count up in a file, whenever nobody else does."""
    done = 0
    while done < 50:
        try:
            with sole_run(folder):
                file.write_text(str(int(file.read_text()) + 1))
                done += 1
        except FaultError:
            pass


def test_one_at_a_time(tmp_path: Path) -> None:
    (tmp_path / "count").write_text("0")
    (tmp_path / "run").mkdir()
    arguments = (tmp_path / "run", tmp_path / "count")
    processes = [_CONTEXT.Process(target=many_holders, args=arguments) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert (tmp_path / "count").read_text() == "150"
