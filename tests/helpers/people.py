"""Made-up people of a benchmark."""

from __future__ import annotations

from pathlib import Path

from fastcomposer.evaluation.benchmark import Subject


def people(words: str) -> list[Subject]:
    """Subjects ``0m``, ``1w``, … of a word like ``mw``."""
    names = {"m": "man", "w": "woman"}
    return [Subject(f"{i}{c}", names[c], (Path(f"{i}.png"),)) for i, c in enumerate(words)]
