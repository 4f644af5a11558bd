"""What evaluation runs left behind, ready to be shown: rows, scores of the images, and the images."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pyarrow.parquet as pq

from fastcomposer.evaluation.benchmark import Benchmark
from fastcomposer.evaluation.results import ResultRow, read_results
from fastcomposer.evaluation.scorers import check_same, scored_by
from fastcomposer.evaluation.statistics import Estimate, bootstrap, paired_difference

OURS = "fastcomposer"
TEXT_ONLY = "text_only"
NAMES = {
    TEXT_ONLY: "Text only",
    "textual_inversion": "Textual Inversion",
    "dreambooth": "DreamBooth",
    "custom_diffusion": "Custom Diffusion",
    OURS: "FastComposer",
    "portrait_booth": "PortraitBooth",
    "subject_diffusion": "Subject-Diffusion",
    "ip_adapter": "IP-Adapter",
    "uniportrait": "UniPortrait",
}
"""Methods in the order of the paper's tables, then later work."""
BENCHMARKS = {"single_subject": "Single subject", "multi_subject": "Multi subject"}
SCORES = "scores.parquet"
_ROUNDING = 1e-3
Score = Literal["identity", "identity_published", "prompt_consistency"]


@dataclass(frozen=True)
class ScoredImage:
    """A scored image.

    Attributes:
        case: Id of the case, the same for all methods.
        category: What the prompt asks to change.
        subjects: Ids of who is to be seen.
        seed: Of the initial noise.
        identity: Identity preservation, corrected protocol.
        identity_published: The same by the published protocol.
        prompt_consistency: Cosine of image and prompt.
        file: The image.
    """

    case: str
    category: str
    subjects: tuple[str, ...]
    seed: int
    identity: float
    identity_published: float
    prompt_consistency: float
    file: Path

    @property
    def drawn_as(self) -> tuple[str, int]:
        """What it has in common with the images it may be compared with."""
        return self.case, self.seed


@dataclass(frozen=True)
class Run:
    """A method with one choice of settings on one benchmark.

    Attributes:
        row: Its figures.
        folder: Where its images are; ``None`` where only the row is left.
        images: Its images in the order in which they were scored.
    """

    row: ResultRow
    folder: Path | None = None
    images: tuple[ScoredImage, ...] = ()

    @property
    def name(self) -> str:
        """Name of the method for readers."""
        return method_name(self.row.method)

    @property
    def alpha(self) -> float | None:
        """Share of the steps that see the subjects, where the method has one."""
        value = self.row.settings.get("alpha")
        return None if value is None else float(value)

    @property
    def localized(self) -> bool:
        """Whether the model was trained with localization; assumed where the settings do not say."""
        return self.row.settings.get("localization", True) not in (None, False, 0, "none", "off")

    def of_case(self, case: str) -> ScoredImage | None:
        """The image of a case."""
        return next((image for image in self.images if image.case == case), None)


@dataclass(frozen=True)
class Collected:
    """An evaluation: all its runs, and how the machine was.

    Attributes:
        runs: In the order of the result file.
        environment: Machine and versions.
        alpha: Which setting of FastComposer stands for it in the main tables; the nearest one measured does.
        references: Reference image of each subject, as far as known.
    """

    runs: tuple[Run, ...]
    environment: Mapping[str, Any]
    alpha: float
    references: Mapping[str, Path] = field(default_factory=dict)

    def benchmarks(self) -> list[str]:
        """Benchmarks with at least one run, single subjects first."""
        present = {run.row.benchmark for run in self.runs}
        return [name for name in BENCHMARKS if name in present]

    def main(self, benchmark: str) -> list[Run]:
        """What the main table of a benchmark shows, in the paper's order.

        All runs of the other methods, and those of FastComposer that were trained with localization, at the
        alpha chosen.
        """
        runs = [run for run in self.runs if run.row.benchmark == benchmark]
        ours = [run for run in runs if run.row.method == OURS and run.localized]
        chosen = _nearest(ours, self.alpha)
        kept = [run for run in runs if run.row.method != OURS or (run in ours and run.alpha == chosen)]
        return sorted(kept, key=lambda run: _place(run.row.method))

    def ours(self, benchmark: str) -> Run | None:
        """FastComposer as the main table shows it; where there are several, the one with least to say."""
        runs = [run for run in self.main(benchmark) if run.row.method == OURS]
        return min(runs, key=lambda run: len(run.row.settings), default=None)

    def baselines(self, benchmark: str) -> list[Run]:
        """The other methods."""
        return [run for run in self.main(benchmark) if run.row.method != OURS]

    def sweep(self, benchmark: str) -> list[Run]:
        """FastComposer at several alphas, all else equal, by rising alpha; empty with fewer than two."""
        main = self.ours(benchmark)
        if main is None:
            return []
        same = [
            run
            for run in self.runs
            if run.row.benchmark == benchmark
            and run.row.method == OURS
            and run.alpha is not None
            and _without(run, "alpha") == _without(main, "alpha")
        ]
        return sorted(same, key=lambda run: run.alpha or 0.0) if len(same) > 1 else []

    def ablation(self, benchmark: str) -> tuple[Run, Run] | None:
        """FastComposer with and without localization at the same alpha, else as alike as can be."""
        runs = [r for r in self.runs if r.row.benchmark == benchmark and r.row.method == OURS]
        pairs = [
            (one, other)
            for other in runs
            for one in runs
            if one.localized and not other.localized and one.alpha == other.alpha
        ]
        if not pairs:
            return None
        main = self.ours(benchmark)
        keys = ("localization", "checkpoint")
        return min(pairs, key=lambda p: (p[0] != main, _without(p[0], *keys) != _without(p[1], *keys)))


def collect(folder: str | Path, alpha: float, benchmarks: Sequence[Benchmark] = ()) -> Collected:
    """Read an evaluation's folder.

    Args:
        folder: Holds ``results.json`` and of each run ``<benchmark>/<run>/scores.parquet`` and its images;
            or the jobs of ``evaluate -m``, each of which does.
        alpha: See :class:`Collected`.
        benchmarks: Where references are looked up.

    Raises:
        FileNotFoundError: If there is no ``results.json``.
        ValueError: If it has no rows, jobs have drawn the same otherwise, or rows have different scorers.
    """
    root = Path(folder)
    files = [root / "results.json"] if (root / "results.json").is_file() else root.glob("*/results.json")
    parts = sorted((file.parent for file in files), key=lambda part: (len(part.name), part.name))
    if not parts:
        raise FileNotFoundError(f"results={root}: no results.json there; evaluate writes it")
    found: dict[tuple[str, str, str], Run] = {}
    by_part = {part: _runs(part) for part in parts}
    check_same((part, run.row) for part, runs in by_part.items() for run in runs)
    for part, its_runs in by_part.items():
        for run in its_runs:
            known = found.setdefault(_key(run.row.benchmark, run.row.method, run.row.settings), run)
            if not _alike(known.row, run.row):
                raise ValueError(
                    f"{part} has drawn {run.name} otherwise than another job: these are no tables of one "
                    f"evaluation; report sweep={root} compares them"
                )
    runs = list(found.values())
    if not runs:
        raise ValueError(f"{parts[0] / 'results.json'}: rows: empty, so there is nothing to report")
    references = {subject.id: subject.reference for benchmark in benchmarks for subject in benchmark.subjects}
    environment = read_results(parts[0] / "results.json").environment
    return Collected(tuple(runs), environment, alpha, references)


def _runs(folder: Path) -> list[Run]:
    """The runs of an evaluation."""
    scored = {_key(*_settings_of(scores)): scores.parent for scores in sorted(folder.glob(f"*/*/{SCORES}"))}
    runs = []
    for row in read_results(folder / "results.json").rows:
        place = scored.get(_key(row.benchmark, row.method, row.settings))
        if place is not None and scored_by(place / SCORES) != row.scored_by:
            raise ValueError(
                f"{folder / 'results.json'}: {place} was scored anew since, with other metrics; evaluate "
                "again, which writes it from today's scores"
            )
        runs.append(Run(row, place, () if place is None else read_images(place)))
    return runs


def _alike(one: ResultRow, other: ResultRow) -> bool:
    """Whether two rows may be of the same images, but for rounding."""
    means = [(row.identity_preservation.mean, row.prompt_consistency.mean) for row in (one, other)]
    return one.images == other.images and all(
        math.isclose(a, b, abs_tol=_ROUNDING) for a, b in zip(*means, strict=True)
    )


def read_images(run: Path) -> tuple[ScoredImage, ...]:
    """Read the scores of a run's images."""
    names = ["case", "category", "subjects", "seed", "identity", "identity_published"]
    names += ["prompt_consistency", "image"]
    return tuple(
        ScoredImage(
            line["case"],
            line["category"],
            tuple(line["subjects"]),
            line["seed"],
            line["identity"],
            line["identity_published"],
            line["prompt_consistency"],
            run / line["image"],
        )
        for line in pq.read_table(run / SCORES, columns=names).to_pylist()
    )


def difference(one: Run, other: Run, score: Score) -> Estimate | None:
    """Mean difference of a score over the cases that both runs drew, resampled by who is in the image.

    Returns:
        ``one`` minus ``other``; ``None`` without common cases, or where these started from other noise.
    """
    others = {image.drawn_as: image for image in other.images}
    common = [(image, others[image.drawn_as]) for image in one.images if image.drawn_as in others]
    if not common:
        return None
    return paired_difference(
        [getattr(ours, score) for ours, _ in common],
        [getattr(theirs, score) for _, theirs in common],
        [ours.subjects for ours, _ in common],
    )


def by_category(run: Run) -> dict[str, Estimate]:
    """Identity preservation by prompt category, from the row or else from the images."""
    if run.row.by_category:
        return {name: scores["identity_preservation"] for name, scores in run.row.by_category.items()}
    groups: dict[str, list[ScoredImage]] = {}
    for image in run.images:
        groups.setdefault(image.category, []).append(image)
    return {
        name: bootstrap([p.identity for p in images], [p.subjects for p in images])
        for name, images in groups.items()
    }


def method_name(method: str) -> str:
    """Name of a method for readers."""
    return NAMES.get(method, method.replace("_", " "))


def distinguishing(runs: Sequence[Run]) -> list[str]:
    """Name each run by its method, and by the settings that differ where a method is there twice."""
    names = []
    for run in runs:
        same = [other.row.settings for other in runs if other.row.method == run.row.method]
        keys = [key for key in run.row.settings if any(s.get(key) != run.row.settings[key] for s in same)]
        details = ", ".join(f"{key} {run.row.settings[key]}" for key in keys)
        names.append(f"{run.name} ({details})" if details else run.name)
    return names


def _nearest(runs: Iterable[Run], alpha: float) -> float | None:
    known = [run.alpha for run in runs if run.alpha is not None]
    return min(known, key=lambda value: abs(value - alpha), default=None)


def _place(method: str) -> int:
    order = list(NAMES)
    return order.index(method) if method in order else len(order)


def _without(run: Run, *keys: str) -> dict[str, Any]:
    return {key: value for key, value in run.row.settings.items() if key not in keys}


def _settings_of(scores: Path) -> tuple[str, str, Mapping[str, Any]]:
    table = pq.read_table(scores, columns=["benchmark", "method", "settings"])
    if not table.num_rows:
        raise ValueError(f"{scores}: no rows; delete the folder or evaluate again")
    first = table.slice(0, 1).to_pylist()[0]
    return first["benchmark"], first["method"], json.loads(first["settings"])


def _key(benchmark: str, method: str, settings: Mapping[str, Any]) -> tuple[str, str, str]:
    return benchmark, method, json.dumps(settings, sort_keys=True)
