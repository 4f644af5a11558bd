"""Work in processes that end with the one that started them."""

from __future__ import annotations

import multiprocessing
import os
import re
import signal
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import TypeVar

from fastcomposer.utils.errors import FaultError

Job = TypeVar("Job")
Result = TypeVar("Result")

_CAUGHT = re.compile(r"Caught (\w+) in DataLoader worker process \d+\.\n")
_DATA_LOADER = "torch.utils.data.dataloader"


def in_processes(
    function: Callable[[Job], Result], jobs: Iterable[Job], num_workers: int
) -> Iterator[Result]:
    """Call a function for every job, several at a time.

    Args:
        function: What is called; to be found by its name in a new interpreter.
        jobs: Its arguments.
        num_workers: Processes; 0 calls it in this one.

    Yields:
        Results, in the order in which they come.

    Raises:
        FaultError: If one of the processes dies.
    """
    if num_workers == 0:
        yield from map(function, jobs)
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(num_workers, context, initializer=_end_with_parent) as pool:
        try:
            for done in as_completed([pool.submit(function, job) for job in jobs]):
                yield done.result()
        except BrokenProcessPool as error:
            raise FaultError(
                "one of the worker processes has died, of too little memory for instance (fewer num_workers "
                "take less); what is done is kept, and the same call goes on"
            ) from error
        finally:
            pool.shutdown(cancel_futures=True)


def _end_with_parent() -> None:
    """End this process when the one that started it is killed; it would wait for jobs for ever."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


@contextmanager
def data_worker_faults() -> Iterator[None]:
    """Say in words that a process that reads data for torch has died.

    torch tells of it by a signal, whose handler raises a ``RuntimeError`` wherever this process is, again and
    again, and maybe after a connection to the worker has failed.

    Raises:
        FaultError: If one has died inside the block.
    """
    try:
        yield
    except (RuntimeError, ConnectionError, EOFError) as error:
        told = _told_of_death(error)
        if told is None:
            raise
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        raise FaultError(
            f"{told.partition('. ')[0]}: a process that reads data has died, of too little memory for "
            "instance (fewer data.module.num_workers take less); resume=auto goes on from the last checkpoint"
        ) from error


def said_in_worker(message: str) -> str:
    """What an error said in the process that reads data for torch, without the trace that torch adds to it.

    Args:
        message: Of the error where it arrived, or of any other, which is left as it is.
    """
    caught = _CAUGHT.match(message)
    if caught is None:
        return message
    *_, last = re.split(rf"^(?:[\w.]+\.)?{caught[1]}: ", message, flags=re.MULTILINE)
    return last.strip()


def _told_of_death(error: BaseException) -> str | None:
    """What torch says of a dead worker; ``None`` if the error is of something else."""
    chain: list[BaseException] = []
    one: BaseException | None = error
    while one is not None:  # what is raised while things are put away hides it
        if isinstance(one, RuntimeError) and str(one).startswith("DataLoader worker"):
            return str(one)
        chain.append(one)
        one = one.__cause__ or one.__context__
    lost = [one for one in chain if isinstance(one, ConnectionError | EOFError)]
    if not lost:
        return None
    try:
        time.sleep(1)  # the signal is on its way
    except RuntimeError as told:
        return _told_of_death(told)
    # Or it came where an error is not passed on.
    frames = [frame for one in lost for frame, _ in traceback.walk_tb(one.__traceback__)]
    through_torch = any(frame.f_globals.get("__name__") == _DATA_LOADER for frame in frames)
    return "DataLoader worker exited unexpectedly" if through_torch else None
