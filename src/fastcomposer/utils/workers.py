"""Worker processes that end with the one that started them, and errors from them."""

from __future__ import annotations

import multiprocessing
import os
import re
import signal
import threading
import traceback
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import TypeVar

from fastcomposer.utils.errors import FaultError

Task = TypeVar("Task")
Result = TypeVar("Result")

_CAUGHT = re.compile(r"Caught (\w+) in DataLoader worker process \d+\.\n")
_DATA_LOADER = "torch.utils.data.dataloader"


def in_processes(
    function: Callable[[Task], Result], tasks: Iterable[Task], num_workers: int
) -> Iterator[Result]:
    """Call an importable function for every task in processes that end with this one; 0 calls it in this one.

    Yields results, as they are completed.

    Raises:
        FaultError: If one of the processes dies.
    """
    if num_workers == 0:
        yield from map(function, tasks)
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(num_workers, context, initializer=_end_with_parent) as pool:
        try:
            for done in as_completed([pool.submit(function, task) for task in tasks]):
                yield done.result()
        except BrokenProcessPool as error:
            raise FaultError(
                "one of the worker processes has died, of too little memory for instance (fewer num_workers "
                "take less); what is done is kept, and the same call resumes"
            ) from error
        finally:
            pool.shutdown(cancel_futures=True)


def _end_with_parent() -> None:
    """End this process when the one that started it is killed; it would wait for tasks for ever."""
    parent = multiprocessing.parent_process()

    def watch() -> None:
        assert parent is not None
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


@contextmanager
def data_worker_faults() -> Iterator[None]:
    """Raise a clear error when a data worker of torch dies within the block.

    torch reports it by a signal, whose handler raises a ``RuntimeError`` wherever this process is, again and
    again, and possibly after a connection to the worker has failed.

    Raises:
        FaultError: If one has died.
    """
    try:
        yield
    except (RuntimeError, ConnectionError, EOFError) as error:
        message = _message_of_death(error)
        if message is None:
            raise
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        raise FaultError(
            f"{message.partition('. ')[0]}: a data worker has died, of too little memory for instance "
            "(fewer data.module.num_workers take less); resume=auto continues from the last checkpoint"
        ) from error


def message_in_worker(message: str) -> str:
    """Message of an error as raised in a data worker, without the trace that torch adds; others unchanged."""
    caught = _CAUGHT.match(message)
    if caught is None:
        return message
    *_, last = re.split(rf"^(?:[\w.]+\.)?{caught[1]}: ", message, flags=re.MULTILINE)
    return last.strip()


def _message_of_death(error: BaseException) -> str | None:
    """What torch reports of a dead worker; ``None`` if the error has another cause."""
    lost: list[BaseException] = []
    one: BaseException | None = error
    while one is not None:  # errors of cleaning up hide it
        if isinstance(one, RuntimeError) and str(one).startswith("DataLoader worker"):
            return str(one)
        lost += [one] * isinstance(one, ConnectionError | EOFError)
        one = one.__cause__ or one.__context__
    # Its signal is on its way, or came where an error is not passed on.
    frames = [frame for one in lost for frame, _ in traceback.walk_tb(one.__traceback__)]
    through_torch = any(frame.f_globals.get("__name__") == _DATA_LOADER for frame in frames)
    return "DataLoader worker exited unexpectedly" if through_torch else None
