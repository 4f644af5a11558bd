"""Figures of speed: taken in turns, so that whatever else the machine does touches all alike."""

from __future__ import annotations

import os
import platform
import re
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch.utils.benchmark import timer
from torch.utils.flop_counter import FlopCounterMode


@dataclass(frozen=True)
class Speed:
    """One figure.

    Attributes:
        suite: Name of the suite.
        what: What was done.
        value: Median over repetitions.
        spread: Half the interquartile range.
        unit: What is counted, ``…/s`` or ``s``.
        share_of_peak: Achieved FLOP/s over those of a large matrix product of the same data type.
        peak_memory_bytes: Most memory that a process of its own held.
        unet_calls: Times that images went through the U-Net, each with or without its partner for guidance.
    """

    suite: str
    what: str
    value: float
    spread: float
    unit: str
    share_of_peak: float | None = None
    peak_memory_bytes: int | None = None
    unet_calls: float | None = None

    def as_dict(self) -> dict[str, Any]:
        """Plain values by name."""
        return asdict(self)


@dataclass(frozen=True)
class Case:
    """Something to time.

    Attributes:
        function: Does it once.
        number: How many of the unit it does.
        prepare: Called before it, outside the time.
        dtype: Data type whose matrix products its FLOP/s are compared with; ``None`` leaves them uncounted.
        peak_memory_bytes: See :class:`Speed`.
        unet_calls: See :class:`Speed`.
    """

    function: Callable[[], Any]
    number: int = 1
    prepare: Callable[[], Any] = lambda: None
    dtype: torch.dtype | None = None
    peak_memory_bytes: int | None = None
    unet_calls: float | None = None


class Stopwatch:
    """Times cases in turns and keeps the figures.

    Args:
        min_seconds: How long each is repeated in all.
        min_rounds: How often at least.
    """

    def __init__(self, min_seconds: float, min_rounds: int = 3) -> None:
        self.min_seconds, self.min_rounds = min_seconds, min_rounds
        self.rows: list[Speed] = []
        self._peaks: dict[torch.dtype, float] = {}

    def interleave(self, suite: str, unit: str, cases: Mapping[str, Case]) -> None:
        """Time some cases, one after the other in every round.

        A line on standard error says what is timed; a bar would take time from it.

        Args:
            suite: Name of the suite.
            unit: What each does ``number`` of; ``s`` for the seconds of one call.
            cases: By what they do.
        """
        print(f"timing {suite}: {', '.join(cases)}", file=sys.stderr, flush=True)
        flops = {what: self._first(case) for what, case in cases.items()}
        seconds: dict[str, list[float]] = {what: [] for what in cases}
        while not all(map(self._enough, seconds.values())):
            for what, case in cases.items():
                case.prepare()
                seconds[what].append(_seconds(case.function))
        for what, case in cases.items():
            self.rows.append(self._row(suite, what, unit, case, seconds[what], flops[what]))

    def _enough(self, seconds: Sequence[float]) -> bool:
        return len(seconds) >= self.min_rounds and sum(seconds) >= self.min_seconds

    def _first(self, case: Case) -> int:
        """Call a case once, uncounted in time, for lazy imports and caches; returns its FLOPs."""
        case.prepare()
        if case.dtype is None:
            case.function()
            return 0
        self._peak(case.dtype)
        with FlopCounterMode(display=False) as counter:
            case.function()
        case.function()  # nothing is compiled under the counter
        return counter.get_total_flops()

    def _peak(self, dtype: torch.dtype) -> float:
        """FLOP/s of a large matrix product."""
        if dtype not in self._peaks:
            side = 2048
            square = torch.ones(side, side, dtype=dtype)
            fastest = min(_seconds(lambda: square @ square) for _ in range(7))
            self._peaks[dtype] = 2 * side**3 / fastest
        return self._peaks[dtype]

    def _row(
        self, suite: str, what: str, unit: str, case: Case, seconds: Sequence[float], flops: int
    ) -> Speed:
        values = [s if unit == "s" else case.number / s for s in seconds]
        low, _, high = statistics.quantiles(values, n=4, method="inclusive")
        share = None
        if case.dtype is not None:
            share = flops / statistics.median(seconds) / self._peak(case.dtype)
        return Speed(
            suite,
            what,
            statistics.median(values),
            (high - low) / 2,
            unit,
            share,
            case.peak_memory_bytes,
            case.unet_calls,
        )


def _seconds(function: Callable[[], Any]) -> float:
    # torch's clock waits for the accelerator. Its Timer would call the function twice more to warm up.
    start = timer()
    function()
    return timer() - start


def environment() -> dict[str, Any]:
    """Machine, versions and how busy the machine is."""
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "load_average": round(os.getloadavg()[0], 1),
    }


def _processor() -> str:
    file = Path("/proc/cpuinfo")
    found = re.search(r"^model name\s*:\s*(.+)$", file.read_text(), re.M) if file.exists() else None
    return found.group(1) if found else platform.processor() or platform.machine()


def table(rows: Sequence[Speed], facts: Mapping[str, Any]) -> str:
    """The figures as Markdown, with the machine they were taken on."""
    lines = [
        "| suite | what | median | ± | unit | share of peak | peak memory | U-Net calls |",
        "|---|---|---:|---:|---|---:|---:|---:|",
    ]
    for row in rows:
        cells = [row.suite, row.what, f"{row.value:.3g}", f"{row.spread:.2g}", row.unit]
        cells.append("" if row.share_of_peak is None else f"{row.share_of_peak:.0%}")
        cells.append("" if row.peak_memory_bytes is None else f"{row.peak_memory_bytes / 2**30:.2f} GiB")
        cells.append("" if row.unet_calls is None else f"{row.unet_calls:g}")
        lines.append(f"| {' | '.join(cells)} |")
    machine = (
        f"{facts['processor']}, {facts['cores']} cores, {facts['threads']} threads, torch {facts['torch']}"
    )
    return "\n".join([f"{machine}; load {facts['load_average']} at the start.", "", *lines])
