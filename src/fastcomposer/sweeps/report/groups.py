"""Figures of a sweep that can be compared, and how its jobs are called for readers."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from fastcomposer.evaluation.load_results import Run
from fastcomposer.evaluation.report.table import Style
from fastcomposer.evaluation.statistics import Estimate
from fastcomposer.sweeps.jobs import Job

DIFFERENCE = "_difference"
"""Ends the names of figures that are differences from the baseline."""
UNCHANGED = "as in the experiment"
_PLOTTED = (
    "identity_preservation",
    "prompt_consistency",
    "copy_paste",
    "inside",
    "val/",
    "samples/",
    "train/denoise_loss",
    "train/images",
)
_WRITTEN = 10  # letters of a number that somebody may have written
_NUMBER = r"[-+]?\d+(\.\d*)?([eE][-+]?\d+)?"
_TOLD = frozenset({"methods", "alphas"})  # keys of which the series tell already
_SPOKEN = {"null": "none", "true": "on", "false": "off"}


@dataclass(frozen=True)
class Entry:
    """What a job has measured under one choice of settings of its own.

    Attributes:
        job: The job.
        series: What tells it from other entries of the job, such as method and alpha; may be empty.
        values: Figures by name.
        run: What it has drawn.
    """

    job: Job
    series: str
    values: Mapping[str, Estimate]
    run: Run | None = None

    def label(self, keys: Sequence[str]) -> str:
        """What tells it from all others."""
        chosen = "" if self._is_told(keys) else chosen_label(self.job, keys)
        return ": ".join(filter(None, (chosen, self.series)))

    def place(self, keys: Sequence[str]) -> tuple[str, tuple[str, ...]]:
        """Its series in a plot, and what was chosen for it of each key."""
        if self._is_told(keys):
            return "", (self.series,)
        return self.series, tuple(spoken(self.job.chosen.get(key, "")) for key in keys)

    def _is_told(self, keys: Sequence[str]) -> bool:
        return bool(self.series) and _TOLD.issuperset(keys)


@dataclass(frozen=True)
class Group:
    """Figures that can be compared.

    Attributes:
        key: Short name.
        title: Heading.
        entries: By job.
        columns: Title and style of each figure, by name.
        note: How the intervals were made.
        baseline: Number of the job from which differences are; ``None`` without any.
    """

    key: str
    title: str
    entries: tuple[Entry, ...]
    columns: Mapping[str, tuple[str, Style]]
    note: str
    baseline: int | None = None

    @property
    def plotted(self) -> list[str]:
        """Names of the figures that are worth a plot."""
        return [name for name in self.columns if name.startswith(_PLOTTED)]


def chosen_label(job: Job, keys: Sequence[str]) -> str:
    """The swept values of a job in a line."""
    values = {key: spoken(value) for key, value in job.chosen.items()}
    if len(keys) == 1:
        return values.get(keys[0], f"job {job.number}")
    said = ", ".join(f"{short(key)} {values[key]}" for key in keys if key in values)
    return said or f"job {job.number}"


def full_label(job: Job, keys: Sequence[str]) -> str:
    """The same where no heading says what was swept."""
    label = chosen_label(job, keys)
    plain = len(keys) == 1 and job.chosen.get(keys[0]) == label
    return f"{keys[0].rpartition('.')[2]} {label}" if plain else label


def spoken(value: str) -> str:
    """A swept value for readers: ``{jitter:0,grey:0}`` is jitter 0, grey 0, and ``{}`` changes nothing."""
    if value == "{}":
        return UNCHANGED
    if value[:1] + value[-1:] == "{}":
        pairs = re.sub(r"[{}]", "", value).replace(":", ": ").split(",")
        return ", ".join(" ".join(_word(word.rstrip(":")) for word in pair.split()) for pair in pairs)
    if value[:1] + value[-1:] == "[]":
        return ", ".join(word.strip() for word in value[1:-1].split(","))
    if len(value) > _WRITTEN and re.fullmatch(_NUMBER, value):
        return f"{float(value):.4g}"
    return value


def short(key: str) -> str:
    """The last words of a key, which say what it is about."""
    return ".".join(key.split(".")[-2:])


def _word(text: str) -> str:
    return _SPOKEN.get(text.lower(), text)
