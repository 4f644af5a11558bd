"""How far long work is: a bar on a terminal, and in a log a line now and then."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sized
from datetime import timedelta
from typing import Self, TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

INTERVAL = 30.0
"""Seconds between lines of a log."""
_Item = TypeVar("_Item")


class LongWork:
    """Shows on standard error how far work is, from its start to its end or inside ``with``.

    A bar would come to a file or a scheduler's log only when it is full: where standard error is no terminal
    there are lines instead, the last one at the end.

    Args:
        title: What is counted.
        total: How many there are.
        done: How many of them were done before.
        transient: Whether nothing shall remain of work that was soon done.
        clock: Tells seconds.
    """

    def __init__(
        self,
        title: str,
        total: int,
        done: int = 0,
        transient: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.title, self.total, self.done, self.before = title, total, done, done
        self.transient, self._clock = transient, clock
        self._bar: Progress | None = None
        self._started = self._said = 0.0
        self._lines = 0

    def __enter__(self) -> Self:
        """See :meth:`start`."""
        return self.start()

    def __exit__(self, *exception: object) -> None:
        """See :meth:`stop`."""
        self.stop()

    def start(self) -> Self:
        """Begin."""
        self._started = self._said = self._clock()
        console = Console(stderr=True)
        if console.is_terminal:
            columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn()
            self._bar = Progress(*columns, TimeRemainingColumn(), console=console, transient=self.transient)
            self._bar.add_task(self.title, total=self.total, completed=self.done)
            self._bar.start()
        return self

    def advance(self, count: int = 1) -> None:
        """So many more are done."""
        self.done += count
        if self._bar is not None:
            self._bar.advance(self._bar.task_ids[0], count)
        elif self._clock() - self._said >= INTERVAL and self.done < self.total:
            self._say()

    def stop(self) -> None:
        """Leave the full bar or the last line standing, and give the terminal back."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None
        elif self._lines or not self.transient:
            self._say(at_end=True)

    def _say(self, at_end: bool = False) -> None:
        self._said = self._clock()
        self._lines += 1
        passed, made = self._said - self._started, self.done - self.before
        line = f"{self.title}: {self.done}/{self.total} after {_duration(passed)}"
        if made and not at_end:
            line += f", about {_duration(passed / made * (self.total - self.done))} left"
        print(line, file=sys.stderr, flush=True)


def tracked(
    items: Iterable[_Item], title: str, total: int | None = None, transient: bool = False
) -> Iterator[_Item]:
    """Go through items and show how far it is.

    Args:
        items: What to go through.
        title: See :class:`LongWork`.
        total: How many there are; their length by default.
        transient: See :class:`LongWork`.
    """
    if total is None:
        assert isinstance(items, Sized)
        total = len(items)
    with LongWork(title, total, transient=transient) as work:
        for item in items:
            yield item
            work.advance()


def _duration(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds)))
