"""Progress of long work: a bar on a terminal, occasional lines in a log."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator
from datetime import timedelta
from typing import Self, TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

INTERVAL = 30.0
"""Seconds between lines of a log."""
_Item = TypeVar("_Item")


class LongWork:
    """Shows progress on standard error, between start and stop or inside ``with``.

    Where standard error is no terminal there are lines instead of a bar, the last one at the end.
    ``done`` items were done before; short ``transient`` work leaves nothing behind.
    """

    def __init__(self, title: str, total: int, done: int = 0, transient: bool = False) -> None:
        self.title, self.total, self.done, self.before = title, total, done, done
        self.transient = transient
        self._bar: Progress | None = None
        self._started = self._printed = 0.0
        self._lines = 0

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *exception: object) -> None:
        self.stop()

    def start(self) -> Self:
        """Begin."""
        self._started = self._printed = time.monotonic()
        console = Console(stderr=True)
        if console.is_terminal:
            columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn()
            self._bar = Progress(*columns, TimeRemainingColumn(), console=console, transient=self.transient)
            self._bar.add_task(self.title, total=self.total, completed=self.done)
            self._bar.start()
        return self

    def advance(self, count: int = 1) -> None:
        """Count further items as done."""
        self.done += count
        if self._bar is not None:
            self._bar.advance(self._bar.task_ids[0], count)
        elif time.monotonic() - self._printed >= INTERVAL and self.done < self.total:
            self._print()

    def stop(self) -> None:
        """Leave the full bar or the last line, and release the terminal."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None
        elif self._lines or not self.transient:
            self._print(at_end=True)

    def _print(self, at_end: bool = False) -> None:
        self._printed = time.monotonic()
        self._lines += 1
        passed, made = self._printed - self._started, self.done - self.before
        line = f"{self.title}: {self.done}/{self.total} after {_duration(passed)}"
        if made and not at_end:
            line += f", about {_duration(passed / made * (self.total - self.done))} left"
        print(line, file=sys.stderr, flush=True)


def tracked(
    items: Iterable[_Item], title: str, total: int | None = None, transient: bool = False
) -> Iterator[_Item]:
    """Iterate and show progress; ``total`` is the number of items by default. See :class:`LongWork`."""
    count = len(items) if total is None else total  # type: ignore[arg-type]
    with LongWork(title, count, transient=transient) as work:
        for item in items:
            yield item
            work.advance()


def _duration(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds)))
