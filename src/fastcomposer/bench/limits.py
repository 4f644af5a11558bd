"""What must hold of the figures of speed."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from fastcomposer.bench.reading import CACHED_STEP, workers_name
from fastcomposer.bench.timing import Speed
from fastcomposer.bench.training_step import PLAIN, TUNED, WITHOUT_LOCALIZATION

_NUM_WORKERS = 4
_STARTUP_SECONDS = {"help": 2, "cfg": 2, "first training step": 12, "first sampling step": 12}


def limits(rows: Sequence[Speed]) -> list[str]:
    """Say what was measured of each limit; those whose figures were not taken are left out.

    Args:
        rows: All figures.
    """
    by_name = {row.what: row for row in rows}

    def ratio(above: str, below: str, value: Callable[[Speed], float | None]) -> float | None:
        found = [value(by_name[name]) if name in by_name else None for name in (above, below)]
        return found[0] / found[1] if found[0] and found[1] else None

    def speed(row: Speed) -> float:
        return row.value

    loader, twin = (
        next((name for name in by_name if name.startswith(start)), "")
        for start in ("loader, ", "plain order, ")
    )
    figures = [
        (ratio(TUNED, PLAIN, speed), "tuned over plain step: {:.2f} times as fast", "at least 1.6"),
        (
            ratio(TUNED, PLAIN, lambda row: row.peak_memory_bytes),
            "tuned over plain memory: {:.2f}",
            "at most 0.75",
        ),
        (
            ratio(WITHOUT_LOCALIZATION, TUNED, speed),
            "step with localization over without: {:.3f} times as long",
            "at most 1.05",
        ),
        (ratio(loader, twin, speed), "loader over plain order: {:.2f} times as fast", "at least 4"),
        (
            ratio(workers_name(_NUM_WORKERS), CACHED_STEP, speed),
            f"reading with {_NUM_WORKERS} workers over training from a cache: {{:.2f}} times as fast",
            "at least 1",
        ),
    ]
    lines = [f"{text.format(value)} ({limit})" for value, text, limit in figures if value is not None]
    for name, seconds in _STARTUP_SECONDS.items():
        if name in by_name:
            lines.append(f"start-up, {name}: {by_name[name].value:.1f} s (less than {seconds})")
    return lines
