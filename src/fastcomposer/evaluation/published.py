"""Figures that the paper and later work published, to stand beside what is measured."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastcomposer.evaluation.benchmark import PLACEHOLDERS
from fastcomposer.utils.assets import packaged

PUBLISHED = packaged("data/benchmarks/paper/published.json")
_KEYS = {"benchmark", "method", "measure", "value", "tag"}


@dataclass(frozen=True)
class PublishedFigure:
    """One figure (docs/method.md).

    Attributes:
        benchmark: ``single_subject`` or ``multi_subject``.
        method: As in ``results.json``, or the name of later work.
        measure: ``identity``, ``prompt``, ``seconds`` or ``memory``.
        value: The figure; seconds, bytes.
        tag: How sure it is: V, R or M.
        note: What sets it apart from the paper's own, such as ``re-run``; empty where nothing does.
        confidence: The tag in words.
    """

    benchmark: str
    method: str
    measure: str
    value: float
    tag: str
    note: str = ""
    confidence: str = ""


def read_published(file: str | Path = PUBLISHED) -> tuple[PublishedFigure, ...]:
    """Read the published figures in the order of the paper's tables.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If a figure is not as it must be, with file and place.
    """
    path = Path(file)
    if not path.is_file():
        raise FileNotFoundError(f"published figures {path}: no such file")
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    figures = []
    for number, entry in enumerate(content["figures"]):
        place = f"{path}: figures[{number}]"
        if not _KEYS <= entry.keys() <= _KEYS | {"note"}:
            raise ValueError(
                f"{place}: keys {', '.join(entry)}: must be {', '.join(sorted(_KEYS))}, maybe note"
            )
        known = {"benchmark": PLACEHOLDERS, "measure": content["measures"], "tag": content["tags"]}
        for key, values in known.items():
            if entry[key] not in values:
                raise ValueError(f"{place}: {key}: one of {', '.join(values)}, not {entry[key]!r}")
        figures.append(PublishedFigure(**entry, confidence=content["tags"][entry["tag"]]))
    return tuple(figures)
