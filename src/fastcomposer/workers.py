"""Work in processes that end with the one that started them."""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from typing import TypeVar

from fastcomposer.faults import FaultError

Job = TypeVar("Job")
Result = TypeVar("Result")


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
