"""Figures that the paper and later work published, to stand beside what is measured."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, Field, ValidationError

from fastcomposer.evaluation.benchmark import PLACEHOLDERS
from fastcomposer.evaluation.statistics import PLAIN
from fastcomposer.utils.assets import packaged
from fastcomposer.utils.errors import invalid_fields

PUBLISHED = packaged("data/benchmarks/paper/published.json")


@dataclass(frozen=True)
class PublishedFigure:
    """One figure (docs/method.md).

    Attributes:
        benchmark: ``single_subject`` or ``multi_subject``.
        method: As in ``results.json``, or the name of later work.
        measure: ``identity``, ``prompt``, ``seconds`` or ``memory``.
        value: The figure; seconds, bytes.
        tag: How sure it is: V read in the published code, R quoted by another paper, M recalled, unconfirmed.
        note: What sets it apart from the paper's own, such as ``re-run``; empty where nothing does.
    """

    __pydantic_config__ = PLAIN
    benchmark: Annotated[str, Field(pattern=f"^({'|'.join(PLACEHOLDERS)})$")]
    method: str
    measure: Literal["identity", "prompt", "seconds", "memory"]
    value: float
    tag: Literal["V", "R", "M"]
    note: str = ""


class _Published(BaseModel):
    figures: tuple[PublishedFigure, ...]


def read_published(file: str | Path = PUBLISHED) -> tuple[PublishedFigure, ...]:
    """Read the published figures in the order of the paper's tables; an invalid one is named in an error."""
    path = Path(file)
    if not path.is_file():
        raise FileNotFoundError(f"published figures {path}: no such file")
    try:
        return _Published.model_validate_json(path.read_text(encoding="utf-8")).figures
    except ValidationError as error:
        raise ValueError(f"{path}: {invalid_fields(error)}") from error
