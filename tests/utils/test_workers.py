"""Processes that die, and processes whose starter dies."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from torch.utils.data import DataLoader, Dataset

from fastcomposer.utils.errors import FaultError
from fastcomposer.utils.workers import data_worker_faults, in_processes, message_in_worker

_SLEEPER = """
import os, time
from fastcomposer.utils.workers import in_processes
if __name__ == "__main__":
    list(in_processes(time.sleep, [600], 1))
"""


@pytest.mark.parametrize("num_workers", [0, 2])
def test_every_job_is_done_once(num_workers: int) -> None:
    assert sorted(in_processes(abs, range(-5, 0), num_workers)) == [1, 2, 3, 4, 5]


def test_a_dead_worker_is_named_and_not_waited_for() -> None:
    with pytest.raises(FaultError, match=r"one of the worker processes has died.*the same call resumes"):
        list(in_processes(os._exit, [1, 1, 1], 1))


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_workers_end_with_the_process_that_started_them(tmp_path: Path) -> None:
    script = tmp_path / "sleeper.py"
    script.write_text(_SLEEPER)
    process = subprocess.Popen([sys.executable, str(script)])
    deadline = time.monotonic() + 120
    workers: list[int] = []
    while time.monotonic() < deadline and not any("spawn_main" in command(pid) for pid in workers):
        time.sleep(0.1)
        workers = children(process.pid)
    time.sleep(1)  # until it is at work
    process.send_signal(signal.SIGKILL)
    process.wait()
    while time.monotonic() < deadline and any(alive(pid) for pid in workers):
        time.sleep(0.1)
    assert workers and not any(alive(pid) for pid in workers)


def command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text()
    except OSError:
        return ""


class _Sample(Dataset[int]):
    """One sample, which a function makes."""

    def __init__(self, made: Callable[[], int]) -> None:
        self.made = made

    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> int:
        return self.made()


def test_a_dead_worker_of_a_training_is_named() -> None:
    message = r"DataLoader worker .*exited unexpectedly.*num_workers take less\); resume=auto continues"
    with pytest.raises(FaultError, match=message), data_worker_faults():
        list(DataLoader(_Sample(partial(os._exit, 1)), num_workers=1))
    with pytest.raises(RuntimeError, match=r"^something else$"), data_worker_faults():
        raise RuntimeError("something else")


def _unconnected() -> int:
    """Fails as the connection to a worker does that has just died."""
    raise ConnectionResetError("of a worker")


def test_a_connection_to_a_dead_worker_is_recognized_below_other_errors() -> None:
    with pytest.raises(FaultError, match="DataLoader worker exited unexpectedly"), data_worker_faults():
        try:
            list(DataLoader(_Sample(_unconnected)))
        finally:
            raise RuntimeError("nothing to put away")
    with pytest.raises(RuntimeError, match="nothing to put away"), data_worker_faults():
        try:
            raise ConnectionResetError("of something else")
        finally:
            raise RuntimeError("nothing to put away")


def _bad() -> int:
    try:
        raise ValueError("the inner one")
    except ValueError as error:
        raise FaultError("record 1: two\nlines") from error


def test_a_message_of_a_worker_comes_without_its_trace() -> None:
    with pytest.raises(FaultError) as caught:
        list(DataLoader(_Sample(_bad), num_workers=1))
    assert "Traceback" in str(caught.value)
    assert message_in_worker(str(caught.value)) == "record 1: two\nlines"
    assert message_in_worker("record 1: two\nlines") == "record 1: two\nlines"
