"""Evaluations read from their folders: rows, scores of the images, and the images; and published figures."""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import pandas as pd
import pyarrow as pa
from pydantic import BaseModel, Field

from fastcomposer.evaluation.benchmark import OTHERS, PLACEHOLDERS, Benchmark
from fastcomposer.evaluation.results import SCORES, Costs, ResultRow, read_results, row_from_scores
from fastcomposer.evaluation.statistics import PLAIN, Estimate, bootstrap, paired_difference
from fastcomposer.evaluation.store import SCORES_NAME, check_same, read_table, scored_by
from fastcomposer.utils.assets import packaged
from fastcomposer.utils.json_files import read_json_as

PUBLISHED = packaged("data/benchmarks/paper/published.json")
OURS = "fastcomposer"
FASTCOMPOSER_ID = "fastcomposer_id"
TEXT_ONLY = "text_only"
NAMES = {
    TEXT_ONLY: "Text only",
    "textual_inversion": "Textual Inversion",
    "dreambooth": "DreamBooth",
    "custom_diffusion": "Custom Diffusion",
    OURS: "FastComposer",
    FASTCOMPOSER_ID: "FastComposer-ID",
    "portrait_booth": "PortraitBooth",
    "subject_diffusion": "Subject-Diffusion",
    "ip_adapter": "IP-Adapter",
    "uniportrait": "UniPortrait",
}
"""Methods in the order of the paper's tables, then later work."""
BENCHMARKS = {"single_subject": "Single subject", "multi_subject": "Multi subject", **OTHERS}
_ROUNDING = 1e-3
_GOLDEN = 0.618  # steps of this fraction of a list keep far from what was taken before
Score = Literal["identity", "identity_published", "prompt_consistency", "copy_paste", "coverage"]
"""Scores of images that runs are compared by; the last two are not defined for every image."""


@dataclass(frozen=True)
class Run:
    """A method with one choice of settings on one benchmark.

    ``images`` has a row for each scored image, by case: those of ``scores.parquet``, subjects as a tuple, and
    the image's ``file``.
    """

    row: ResultRow
    folder: Path | None = None  # of its images; None where only the row is left
    images: pd.DataFrame = field(
        default_factory=lambda: pd.DataFrame(columns=[*SCORES.names, "file"]), compare=False
    )

    @property
    def name(self) -> str:
        """Name of the method for readers."""
        return method_name(self.row.method)

    @property
    def is_own_method(self) -> bool:
        """Whether the method is FastComposer, or FastComposer-ID."""
        return self.row.method in (OURS, FASTCOMPOSER_ID)

    @property
    def alpha(self) -> float | None:
        """Fraction of the steps that see the subjects, where the method has one."""
        value = self.row.settings.get("alpha")
        return None if value is None else float(value)

    @property
    def localized(self) -> bool:
        """Whether the model was trained with localization; assumed where the settings do not hold it."""
        return self.row.settings.get("localization", True) not in (None, False, 0, "none", "off")

    @property
    def people(self) -> int | None:
        """Number of people in the images; ``None`` where only the row is left."""
        return len({name for names in self.images.subjects for name in names}) or None

    def on(self, cases: Collection[str]) -> Run:
        """The run on some of its cases, at least one; its costs and distances stay."""
        images = self.images[self.images.case.isin(cases)]
        row = self.row
        costs = Costs(
            row.reference_images,
            row.personalization_seconds_per_subject,
            row.stored_bytes_per_subject,
            row.peak_memory_bytes,
        )
        further = [pa.field(name, pa.float64()) for name in images if name not in (*SCORES.names, "file")]
        scores = pa.Table.from_pandas(images, pa.schema([*SCORES, *further]), preserve_index=False)
        part = row_from_scores(scores, costs)
        return replace(
            self, row=replace(part, distances=row.distances, scored_by=row.scored_by), images=images
        )

    def of_case(self, case: str) -> Any:
        """Row of a case's image; ``None`` without one."""
        return next(self.images[self.images.case == case].itertuples(index=False), None)


@dataclass(frozen=True)
class Collected:
    """An evaluation, with its runs in the order of the result file."""

    runs: tuple[Run, ...]
    environment: Mapping[str, Any]  # machine and versions
    alpha: float  # setting of FastComposer in the main tables; the nearest one measured is taken
    references: Mapping[str, Path] = field(default_factory=dict)  # of each subject, as far as known

    def benchmarks(self) -> list[str]:
        """Benchmarks with at least one run, single subjects first."""
        present = {run.row.benchmark for run in self.runs}
        return [name for name in BENCHMARKS if name in present]

    def main(self, benchmark: str) -> list[Run]:
        """Runs of the main table, in the paper's order; ours with localization, each at the nearest alpha."""
        runs = [run for run in self.runs if run.row.benchmark == benchmark]
        kept = [run for run in runs if not run.is_own_method]
        for method in (OURS, FASTCOMPOSER_ID):
            ours = [run for run in runs if run.row.method == method and run.localized]
            chosen = _nearest(ours, self.alpha)
            kept += [run for run in ours if run.alpha == chosen]
        return sorted(kept, key=lambda run: _rank(run.row.method))

    def fastcomposer(self, benchmark: str) -> Run | None:
        """FastComposer as the main table shows it; where there are several, the one with fewest settings."""
        runs = [run for run in self.main(benchmark) if run.row.method == OURS]
        return min(runs, key=lambda run: len(run.row.settings), default=None)

    def first_ours(self) -> Run | None:
        """:meth:`fastcomposer` of the first benchmark that has it."""
        return next(filter(None, map(self.fastcomposer, self.benchmarks())), None)

    def baselines(self, benchmark: str) -> list[Run]:
        """The methods that the paper compares FastComposer with."""
        others = [run for run in self.main(benchmark) if not run.is_own_method]
        return [run for run in others if run.row.origin is None]

    def sweep(self, benchmark: str) -> list[Run]:
        """FastComposer at several alphas, all else equal, by rising alpha and on the cases that all have.

        Empty with fewer than two.
        """
        main = self.fastcomposer(benchmark)
        if main is None:
            return []
        runs = [run for run in self.runs if run.row.benchmark == benchmark and run.row.method == OURS]
        others = _without(main, "alpha")
        same = [run for run in runs if run.alpha is not None and _without(run, "alpha") == others]
        return on_common_cases(sorted(same, key=lambda run: run.alpha or 0.0)) if len(same) > 1 else []

    def ablation(self, benchmark: str) -> tuple[Run, Run] | None:
        """FastComposer with and without localization, on the cases that both have.

        Alpha is the same, and other settings as equal as can be.
        """
        runs = [r for r in self.runs if r.row.benchmark == benchmark and r.row.method == OURS]
        pairs = [
            (one, other)
            for other in runs
            for one in runs
            if one.localized and not other.localized and one.alpha == other.alpha
        ]
        if not pairs:
            return None
        main = self.fastcomposer(benchmark)
        keys = ("localization", "checkpoint")
        one, other = min(pairs, key=lambda p: (p[0] != main, _without(p[0], *keys) != _without(p[1], *keys)))
        one, other = on_common_cases([one, other])
        return one, other


def collect(folder: str | Path, alpha: float, benchmarks: Sequence[Benchmark] = ()) -> Collected:
    """Read an evaluation's folder, or that of the jobs of ``evaluate -m``.

    References of the subjects are those of ``benchmarks``.

    Raises:
        FileNotFoundError: If there is no ``results.json``.
        ValueError: If it has no rows, jobs have sampled the same under other settings, or scorers differ.
    """
    root = Path(folder)
    files = [root / "results.json"] if (root / "results.json").is_file() else root.glob("*/results.json")
    jobs = sorted((file.parent for file in files), key=lambda job: (len(job.name), job.name))
    if not jobs:
        raise FileNotFoundError(f"results={root}: no results.json there; evaluate writes it")
    found = [(job, run) for job in jobs for run in _runs(job)]
    check_same((job, run.row) for job, run in found)
    runs: dict[tuple[str, str, str], Run] = {}
    for job, run in found:
        known = runs.setdefault(_key(run.row.benchmark, run.row.method, run.row.settings), run)
        if not _same_images(known.row, run.row):
            raise ValueError(
                f"{job} has sampled {run.name} under other settings than another job: these are no tables of "
                f"one evaluation; report sweep={root} compares them"
            )
    if not runs:
        raise ValueError(f"{jobs[0] / 'results.json'}: rows: empty, so there is nothing to report")
    references = {subject.id: subject.reference for benchmark in benchmarks for subject in benchmark.subjects}
    environment = read_results(jobs[0] / "results.json").environment
    return Collected(tuple(runs.values()), environment, alpha, references)


def _runs(folder: Path) -> Iterator[Run]:
    """The runs of an evaluation."""
    scored = {}
    for file in sorted(folder.glob(f"*/*/{SCORES_NAME}")):
        table = read_table(file)
        if table is None or not set(SCORES.names) <= set(table.column_names):
            raise ValueError(f"{file}: damaged, or of other columns; delete the folder or evaluate again")
        images = table.to_pandas()
        if images.empty:
            raise ValueError(f"{file}: no rows; delete the folder or evaluate again")
        images = images.assign(
            subjects=images.subjects.map(tuple), file=[file.parent / name for name in images.image]
        )
        first = images.iloc[0]
        key = _key(first.benchmark, first.method, json.loads(first.settings))
        scored[key] = file, images
    for row in read_results(folder / "results.json").rows:
        key = _key(row.benchmark, row.method, row.settings)
        if key not in scored:
            yield Run(row)
            continue
        file, images = scored[key]
        if scored_by(file) != row.scored_by:
            raise ValueError(
                f"{folder / 'results.json'}: {file.parent} was scored anew since, with other metrics; "
                "evaluate again, which writes it from today's scores"
            )
        yield Run(row, file.parent, images)


def _same_images(one: ResultRow, other: ResultRow) -> bool:
    """Whether two rows may be of the same images, but for rounding."""
    means = [(row.identity_preservation.mean, row.prompt_consistency.mean) for row in (one, other)]
    return one.images == other.images and all(
        math.isclose(a, b, abs_tol=_ROUNDING) for a, b in zip(*means, strict=True)
    )


def difference(one: Run, other: Run, score: Score) -> Estimate | None:
    """Mean of ``one`` minus ``other`` over their common cases, resampled by subject; ``None`` without any.

    Cases that started from other noise are not common, nor those for which a score is not defined.
    """
    if not (score in one.images and score in other.images):
        return None
    common = one.images.merge(other.images, on=["case", "seed"], suffixes=("", "_other"))
    common = common.dropna(subset=[score, f"{score}_other"])
    if common.empty:
        return None
    return paired_difference(common[score], common[f"{score}_other"], list(common.subjects))


def on_common_cases(runs: Sequence[Run]) -> list[Run]:
    """The runs on the cases, with the same noise, that all of them have; as they are where there are none."""
    common = runs[0].images[["case", "seed"]]
    for run in runs[1:]:
        common = common.merge(run.images[["case", "seed"]])
    if common.empty or all(len(run.images) == len(common) for run in runs):
        return list(runs)
    return [run.on(set(common.case)) for run in runs]


def by_category(run: Run) -> dict[str, Estimate]:
    """Identity preservation by prompt category, from the row or else from the images."""
    if run.row.by_category:
        return {name: scores["identity_preservation"] for name, scores in run.row.by_category.items()}
    groups = run.images.groupby("category", sort=False)
    return {name: bootstrap(images.identity, list(images.subjects)) for name, images in groups}


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


def _rank(method: str) -> int:
    order = list(NAMES)
    return order.index(method) if method in order else len(order)


def _without(run: Run, *keys: str) -> dict[str, Any]:
    return {key: value for key, value in run.row.settings.items() if key not in keys}


def _key(benchmark: str, method: str, settings: Mapping[str, Any]) -> tuple[str, str, str]:
    return benchmark, method, json.dumps(settings, sort_keys=True)


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
    return read_json_as(_Published, file, "published figures").figures


def attention_files(run: Run, image: Any) -> list[Path]:
    """Maps of an image's subjects in their order, ``attention/<case id>/<number>.png`` of the run."""
    if run.folder is None:
        return []
    files = [run.folder / "attention" / image.case / f"{number}.png" for number in range(len(image.subjects))]
    return files if all(file.is_file() for file in files) else []


def chosen_cases(runs: Sequence[Run], per_category: int) -> list[Any]:
    """Choose common cases by their order alone: prompts spread over each category, other people for each."""
    images = runs[-1].images
    for run in runs[:-1]:
        images = images.merge(run.images[["case", "seed"]])
    # Of <benchmark>/<subjects>/<category>_<prompt>/<image>.
    images = images.assign(prompt=[case.split("/")[-2] for case in images.case])
    chosen = []
    for _, group in images.groupby("category", sort=False):
        prompts = [list(cases.itertuples(index=False)) for _, cases in group.groupby("prompt", sort=False)]
        chosen += spread(prompts, per_category)
    return [cases[int(len(cases) * _GOLDEN * number) % len(cases)] for number, cases in enumerate(chosen)]


def spread(items: Sequence[Any], number: int) -> list[Any]:
    """Take up to ``number`` at even distances."""
    number = min(number, len(items))
    return [items[int(len(items) * (index + 0.5) / number)] for index in range(number)]
