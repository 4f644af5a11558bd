"""Figures of speed: taken in turns, so that whatever else the machine does affects all of them."""

from __future__ import annotations

import os
import platform
import re
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.utils.benchmark import timer
from torch.utils.flop_counter import FlopCounterMode

from fastcomposer.utils.markdown import markdown_table


@dataclass(frozen=True)
class Speed:
    """One figure."""

    suite: str
    what: str
    value: float  # median over repetitions
    spread: float  # half the interquartile range
    unit: str  # …/s or s
    share_of_peak: float | None = None  # FLOP/s over those of a large matrix product of the same data type
    peak_memory_bytes: int | None = None  # of a process of its own
    unet_calls: float | None = None  # of images, each with or without its partner for guidance


@dataclass(frozen=True)
class TimedCase:
    """Something to time."""

    function: Callable[[], Any]
    number: int = 1  # of the unit in one call
    prepare: Callable[[], Any] = lambda: None  # called before it, untimed
    dtype: torch.dtype | None = None  # of the matrix products that its FLOP/s are compared with
    peak_memory_bytes: int | None = None
    unet_calls: float | None = None


class Stopwatch:
    """Times cases in turns, each for some seconds and rounds at least, and keeps the figures."""

    def __init__(self, min_seconds: float, min_rounds: int = 3) -> None:
        self.min_seconds, self.min_rounds = min_seconds, min_rounds
        self.rows: list[Speed] = []
        self._peaks: dict[torch.dtype, float] = {}

    def interleave(self, suite: str, unit: str, cases: Mapping[str, TimedCase]) -> None:
        """Time cases by name in turns; with the unit ``s`` the seconds of one call count."""
        print(f"timing {suite}: {', '.join(cases)}", file=sys.stderr, flush=True)
        flops = {what: self._first(case) for what, case in cases.items()}
        seconds: dict[str, list[float]] = {what: [] for what in cases}
        while any(len(s) < self.min_rounds or sum(s) < self.min_seconds for s in seconds.values()):
            for what, case in cases.items():
                case.prepare()
                seconds[what].append(_seconds(case.function))
        for what, case in cases.items():
            values = [s if unit == "s" else case.number / s for s in seconds[what]]
            low, median, high = statistics.quantiles(values, n=4, method="inclusive")
            per_second = flops[what] / statistics.median(seconds[what])
            share = None if case.dtype is None else per_second / self._peak(case.dtype)
            more = share, case.peak_memory_bytes, case.unet_calls
            self.rows.append(Speed(suite, what, median, (high - low) / 2, unit, *more))

    def _first(self, case: TimedCase) -> int:
        """Call a case untimed, for lazy imports and caches; returns its FLOPs."""
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


def _seconds(function: Callable[[], Any]) -> float:
    # torch's clock waits for the accelerator. Its Timer would call the function twice more to warm up.
    start = timer()
    function()
    return timer() - start


def environment() -> dict[str, Any]:
    """Machine, versions and how busy the machine is."""
    file = Path("/proc/cpuinfo")
    found = re.search(r"^model name\s*:\s*(.+)$", file.read_text(), re.M) if file.exists() else None
    return {
        "processor": found[1] if found else platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "load_average": round(os.getloadavg()[0], 1),
    }


def table(rows: Sequence[Speed], machine: Mapping[str, Any]) -> str:
    """The figures as Markdown, with the machine they were taken on."""
    head = ("suite", "what", "median", "±", "unit", "fraction of peak", "peak memory", "U-Net calls")
    lines = []
    for row in rows:
        share = "" if row.share_of_peak is None else f"{row.share_of_peak:.0%}"
        memory = "" if row.peak_memory_bytes is None else f"{row.peak_memory_bytes / 2**30:.2f} GiB"
        calls = "" if row.unet_calls is None else f"{row.unet_calls:g}"
        figures = f"{row.value:.3g}", f"{row.spread:.2g}", row.unit
        lines.append((row.suite, row.what, *figures, share, memory, calls))
    where = "{processor}, {cores} cores, {threads} threads, torch {torch}; load {load_average} at the start."
    rules = [*["---"] * 2, *["---:"] * 2, "---", *["---:"] * 3]
    return "\n".join([where.format(**machine), "", markdown_table(head, lines, rules)])
