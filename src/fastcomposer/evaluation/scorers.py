"""What scored images: extractors with their settings and weights. Figures of different ones do not mix."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

from torch import nn

from fastcomposer.evaluation.results import ResultRow
from fastcomposer.evaluation.store import DISTANCES_NAME, SCORES_NAME, read_scorer, run_folder
from fastcomposer.utils.settings import differences, digest, weights_digest


def describe_scorer(
    faces: Any, image_text: Any, reference_size: int | None, measures: Mapping[str, Any]
) -> dict[str, Any]:
    """Describe what scores images, by the configuration keys that choose it; plain values."""
    return {
        "metrics": {
            "faces": extractor_metadata(faces),
            "image_text": extractor_metadata(image_text),
            "reference_size": reference_size,
            "measures": {name: extractor_metadata(measure) for name, measure in measures.items()},
        }
    }


def extractor_metadata(extractor: Any) -> dict[str, Any]:
    """What determines the scores of an extractor: its class, its plain settings and its weights."""
    plain = {k: v for k, v in vars(extractor).items() if isinstance(v, int | float | str) and k != "training"}
    weights = weights_digest(extractor) if isinstance(extractor, nn.Module) else None
    return {"class": type(extractor).__qualname__, **plain, "weights_digest": weights}


def scored_by(file: Path) -> str | None:
    """Digest of what made a run's ``scores.parquet`` or ``distances.json``; ``None`` where it is unknown."""
    scorer = read_scorer(file)
    return digest(scorer) if scorer else None


def check_others(output: Path, name: str, scorer: Mapping[str, Any], redone: Collection[Path]) -> None:
    """Refuse to write figures to ``output`` beside those of another scorer in files of some name.

    Folders in ``redone`` are left out: their figures are made anew.
    """
    for file in sorted(output.glob(f"*/*/{name}")):
        stored = None if file.parent in redone else read_scorer(file)
        if stored is not None and (changed := differences(stored, scorer)):
            raise ValueError(
                f"{file.parent} was scored under other settings ({'; '.join(changed)}), and a results.json "
                "holds figures of one scorer: give the same settings, or output=<other>, or all methods, "
                "alphas and labels of it at once, which scores the images that are there anew; to forget "
                f"these figures, remove {file}"
            )


def check_same(rows: Iterable[tuple[Path, ResultRow]]) -> None:
    """Refuse rows, each with the folder of its evaluation, of different scorers, with what differs."""
    scored: list[tuple[Path, str | None]] = []
    measured: list[tuple[Path, str | None]] = []
    for evaluation, row in rows:
        folder = run_folder(evaluation, row.benchmark, row.method, row.settings)
        scored.append((folder / SCORES_NAME, row.scored_by))
        if row.distances is not None:
            measured.append((folder / DISTANCES_NAME, row.distances.scored_by))
    for found in (scored, measured):
        for file, scorer in found[1:]:
            if scorer != found[0][1]:
                first, known = found[0][0], (read_scorer(found[0][0]), read_scorer(file))
                digests = found[0][1], scorer
                changed = differences(*known) if all(known) else differences(*digests, "scored_by")
                raise ValueError(
                    f"{first.parent} and {file.parent} were scored under different settings "
                    f"({'; '.join(changed)}), so their figures cannot be compared: evaluate what is to stand "
                    "in one table with the same metrics"
                )
