"""Results: rows of figures made from the scores of single images, and the file ``results.json``.

The file's format is a contract: tables, plots and reports are made from it, and so are other people's.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa

from fastcomposer.evaluation.benchmark import PLACEHOLDERS

# What makes and surrounds the rows is reached through this module too.
from fastcomposer.evaluation.published import PublishedFigure as PublishedFigure
from fastcomposer.evaluation.published import read_published as read_published
from fastcomposer.evaluation.statistics import Estimate, bootstrap
from fastcomposer.evaluation.statistics import paired_difference as paired_difference
from fastcomposer.metrics.image_scores import COLUMN
from fastcomposer.utils.files import write_atomically

METHODS = ("fastcomposer", "text_only", "textual_inversion", "dreambooth", "custom_diffusion")
LEAST_CONSISTENCY = 0.85
"""Share of the text-only prompt consistency that the best settings keep."""


@dataclass(frozen=True)
class Costs:
    """What a method takes to know a subject.

    Attributes:
        reference_images: Images of each subject.
        personalization_seconds_per_subject: Fine-tuning; 0 where there is none.
        stored_bytes_per_subject: What is kept of a subject besides its images.
        peak_memory_bytes: Most memory in use while personalising or drawing.
    """

    reference_images: int
    personalization_seconds_per_subject: float = 0.0
    stored_bytes_per_subject: int = 0
    peak_memory_bytes: int = 0


@dataclass(frozen=True)
class Distances:
    """How far a run's images are from real ones.

    Attributes:
        fid: Too large for few images: to be compared between runs of as many.
        kid: Without such a bias.
        kid_std: Standard deviation of KID over subsets of the images.
        real_images: Number of real images.
        features: What describes the images, such as ``InceptionFeatures``.
        scored_by: Digest of features and real images: those of one digest can be compared.
    """

    fid: float
    kid: float
    kid_std: float
    real_images: int
    features: str
    scored_by: str | None = None


@dataclass(frozen=True)
class ResultRow:
    """One method with one choice of settings on one benchmark.

    Attributes:
        benchmark: ``single_subject`` or ``multi_subject``.
        method: One of :data:`METHODS`.
        settings: What was chosen, such as ``alpha``; plain values.
        reference_images: Images of each subject that the method gets.
        images: How many were scored.
        identity_preservation: Under the corrected protocol.
        prompt_consistency: Raw cosine.
        seconds_per_image: Drawing alone, without personalisation.
        personalization_seconds_per_subject: See :class:`Costs`, as the next two.
        stored_bytes_per_subject: See there.
        peak_memory_bytes: See there.
        unet_calls: Of all images together; calls that images share count once.
        detection_rate: Share of the images with at least as many faces as subjects.
        copy_paste: Over the images for which it is defined.
        identity_published: Under the published protocol: what stands beside published figures.
        by_category: ``identity_preservation`` and ``prompt_consistency`` by category of prompts.
        distances: From real images, where they were asked for.
        measures: Further measures of the images, by name.
        scored_by: Digest of extractors, their settings and weights: rows of one digest can be compared.
    """

    benchmark: str
    method: str
    settings: Mapping[str, Any]
    reference_images: int
    images: int
    identity_preservation: Estimate
    prompt_consistency: Estimate
    seconds_per_image: float
    personalization_seconds_per_subject: float
    stored_bytes_per_subject: int
    peak_memory_bytes: int
    unet_calls: int
    detection_rate: Estimate | None = None
    copy_paste: Estimate | None = None
    identity_published: Estimate = field(kw_only=True)
    by_category: Mapping[str, Mapping[str, Estimate]] = field(default_factory=dict)
    distances: Distances | None = None
    measures: Mapping[str, Estimate] = field(default_factory=dict)
    scored_by: str | None = None

    def as_dict(self) -> dict[str, Any]:
        """The row as it stands in ``results.json``; what is not known is left out."""
        nested = ("by_category", "measures")
        row = {name: value for name, value in vars(self).items() if value is not None and name not in nested}
        row |= {name: value.as_dict() for name, value in row.items() if isinstance(value, Estimate)}
        row["settings"] = dict(self.settings)
        if self.distances is not None:
            row["distances"] = asdict(self.distances)
        if self.measures:
            row["measures"] = {name: estimate.as_dict() for name, estimate in self.measures.items()}
        if self.by_category:
            row["by_category"] = {
                category: {name: estimate.as_dict() for name, estimate in scores.items()}
                for category, scores in self.by_category.items()
            }
        return row


def most_alike(rows: Sequence[ResultRow], text_only: ResultRow) -> ResultRow:
    """Choose the highest identity among rows that stay true to the prompt.

    Args:
        rows: To choose from, at least one.
        text_only: Text alone on the same cases; :data:`LEAST_CONSISTENCY` of its prompt consistency is to be
            kept. Where no row does, all are chosen from.
    """
    least = LEAST_CONSISTENCY * text_only.prompt_consistency.mean
    faithful = [row for row in rows if row.prompt_consistency.mean >= least]
    return max(faithful or rows, key=lambda row: row.identity_preservation.mean)


SCHEMA_VERSION = 1
SCORES = pa.schema(
    [
        pa.field("case", pa.string(), nullable=False),
        pa.field("benchmark", pa.string(), nullable=False),
        pa.field("method", pa.string(), nullable=False),
        pa.field("settings", pa.string(), nullable=False),  # JSON
        pa.field("category", pa.string(), nullable=False),
        pa.field("subjects", pa.list_(pa.string()), nullable=False),
        pa.field("seed", pa.int64(), nullable=False),
        pa.field("identity", pa.float64(), nullable=False),
        pa.field("identity_published", pa.float64(), nullable=False),
        pa.field("detected", pa.int64(), nullable=False),  # number of faces
        pa.field("prompt_consistency", pa.float64(), nullable=False),
        pa.field("copy_paste", pa.float64()),  # null where it is not defined
        pa.field("seconds", pa.float64(), nullable=False),
        pa.field("unet_calls", pa.float64(), nullable=False),  # fractions where images share calls
        pa.field("image", pa.string(), nullable=False),  # relative to the folder of the run
    ]
)
"""Columns of ``scores.parquet``: one row for each image of one method with one choice of settings."""
_MEASURES = ("identity_preservation", "prompt_consistency")
_NUMBERS = ("seconds_per_image", "personalization_seconds_per_subject")
_COUNTS = ("reference_images", "images", "stored_bytes_per_subject", "peak_memory_bytes", "unet_calls")
_OPTIONAL = ("detection_rate", "copy_paste")
_REQUIRED = ("benchmark", "method", "settings", *_COUNTS, *_MEASURES, "identity_published", *_NUMBERS)


class ResultsError(ValueError):
    """A results file or table of scores that is not as it must be; the message names it and the field."""


class Results(NamedTuple):
    """What a results file holds.

    Attributes:
        rows: One for each method, settings and benchmark.
        environment: Machine and versions; plain values.
    """

    rows: tuple[ResultRow, ...]
    environment: Mapping[str, Any]


def row_from_scores(table: pa.Table, costs: Costs, seed: int = 0, draws: int = 2000) -> ResultRow:
    """Summarize the scores of one method on one benchmark.

    Args:
        table: With the columns of :data:`SCORES`, in any order.
        costs: What they do not tell.
        seed: Of the intervals; see :func:`~fastcomposer.evaluation.statistics.bootstrap`.
        draws: See there.

    Raises:
        ResultsError: If columns are missing or of another type, a value is missing, there are no rows, or the
            rows are of several methods, settings or benchmarks.
    """
    further = {name: table[name].to_pylist() for name in table.column_names if name.startswith(COLUMN)}
    table = _checked_scores(table)
    columns: dict[str, list[Any]] = table.to_pydict()
    groups = [tuple(subjects) for subjects in columns["subjects"]]

    def estimate(column: Sequence[float | None], rows: Sequence[int] | None = None) -> Estimate:
        kept = [i for i in (range(len(groups)) if rows is None else rows) if column[i] is not None]
        return bootstrap([column[i] or 0.0 for i in kept], [groups[i] for i in kept], seed, draws)

    detected = [float(n >= len(group)) for n, group in zip(columns["detected"], groups, strict=True)]
    by_category: dict[str, list[int]] = {}
    for i, category in enumerate(columns["category"]):
        by_category.setdefault(category, []).append(i)
    return ResultRow(
        benchmark=columns["benchmark"][0],
        method=columns["method"][0],
        settings=_settings(columns["settings"][0]),
        reference_images=costs.reference_images,
        images=len(groups),
        identity_preservation=estimate(columns["identity"]),
        prompt_consistency=estimate(columns["prompt_consistency"]),
        seconds_per_image=math.fsum(columns["seconds"]) / len(groups),
        personalization_seconds_per_subject=costs.personalization_seconds_per_subject,
        stored_bytes_per_subject=costs.stored_bytes_per_subject,
        peak_memory_bytes=costs.peak_memory_bytes,
        unet_calls=round(math.fsum(columns["unet_calls"])),
        detection_rate=estimate(detected),
        copy_paste=estimate(columns["copy_paste"]) if table["copy_paste"].null_count < len(groups) else None,
        identity_published=estimate(columns["identity_published"]),
        by_category={
            category: {
                "identity_preservation": estimate(columns["identity"], rows),
                "prompt_consistency": estimate(columns["prompt_consistency"], rows),
            }
            for category, rows in by_category.items()
        },
        measures={name.removeprefix(COLUMN): estimate(values) for name, values in further.items()},
    )


def write_results(path: str | Path, rows: Sequence[ResultRow], environment: Mapping[str, Any]) -> None:
    """Write ``results.json``, whole or not at all.

    Args:
        path: Where to.
        rows: See :class:`Results`.
        environment: See there.

    Raises:
        ResultsError: If a row does not fit the contract; nothing is written then.
    """
    content = {
        "schema": SCHEMA_VERSION,
        "environment": dict(environment),
        "rows": [r.as_dict() for r in rows],
    }
    _results(path, content)
    try:
        text = json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ResultsError(f"{path}: environment or settings: not plain values: {error}") from error
    write_atomically(Path(path), lambda file: file.write(f"{text}\n".encode()))


def read_results(path: str | Path) -> Results:
    """Read ``results.json``.

    Raises:
        FileNotFoundError: If there is no such file.
        ResultsError: If it does not fit the contract, with file and field.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"results {path}: no such file")
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except ValueError as error:
        raise ResultsError(f"{path}: not valid JSON: {error}") from error
    return _results(path, content)


def _checked_scores(table: pa.Table) -> pa.Table:
    for column in SCORES:
        if column.name not in table.column_names:
            raise ResultsError(
                f"scores: column {column.name}: missing; there are {', '.join(table.column_names)}"
            )
    table = table.select(SCORES.names)
    for column in SCORES:
        found = table[column.name]
        if found.type != column.type and found.type != pa.null():
            raise ResultsError(f"scores: column {column.name}: of type {found.type}, not {column.type}")
        if found.null_count and not column.nullable:
            raise ResultsError(f"scores: column {column.name}: {found.null_count} values are missing")
    if not len(table):
        raise ResultsError("scores: no rows")
    for name in ("benchmark", "method", "settings"):
        values = table[name].unique().to_pylist()
        if len(values) > 1:
            raise ResultsError(f"scores: column {name}: one value for all rows, not {', '.join(values)}")
    return table


def _settings(text: str) -> dict[str, Any]:
    try:
        settings = json.loads(text)
    except ValueError as error:
        raise ResultsError(f"scores: column settings: not JSON: {text!r}") from error
    if not isinstance(settings, dict):
        raise ResultsError(f"scores: column settings: a JSON object, not {text!r}")
    return settings


def _results(path: str | Path, content: Any) -> Results:
    _require(isinstance(content, dict), path, "file", "a JSON object")
    _keys(path, "file", content, {"schema", "environment", "rows"})
    version = content["schema"]
    _require(version == SCHEMA_VERSION, path, "schema", f"{SCHEMA_VERSION}, not {version!r}")
    _require(isinstance(content["environment"], dict), path, "environment", "an object")
    _require(isinstance(content["rows"], list), path, "rows", "a list")
    rows = tuple(_row(path, f"rows[{number}]", row) for number, row in enumerate(content["rows"]))
    return Results(rows, content["environment"])


def _row(path: str | Path, place: str, content: Any) -> ResultRow:
    _require(isinstance(content, dict), path, place, "an object")
    nested = {"by_category", "distances", "measures"}
    _keys(path, place, content, set(_REQUIRED), {*_OPTIONAL, *nested, "scored_by"})
    row = dict(content)
    for name, known in (("benchmark", tuple(PLACEHOLDERS)), ("method", METHODS)):
        _require(row[name] in known, path, f"{place}.{name}", f"one of {', '.join(known)}, not {row[name]!r}")
    _require(isinstance(row["settings"], dict), path, f"{place}.settings", "an object")
    _require(isinstance(row.get("scored_by", ""), str), path, f"{place}.scored_by", "a text")
    for name in _COUNTS:
        whole = isinstance(row[name], int) and not isinstance(row[name], bool) and row[name] >= 0
        _require(whole, path, f"{place}.{name}", f"a whole number from 0, not {row[name]!r}")
    for name in _NUMBERS:
        fits = _is_number(row[name]) and row[name] >= 0
        _require(fits, path, f"{place}.{name}", f"a number from 0, not {row[name]!r}")
    for name in (*_MEASURES, "identity_published", *_OPTIONAL):
        if name in row:
            row[name] = _estimate(path, f"{place}.{name}", row[name])
    measures = row.get("measures", {})
    _require(isinstance(measures, dict), path, f"{place}.measures", "an object")
    row["measures"] = {n: _estimate(path, f"{place}.measures.{n}", found) for n, found in measures.items()}
    categories = row.get("by_category", {})
    _require(isinstance(categories, dict), path, f"{place}.by_category", "an object")
    row["by_category"] = {}
    for category, scores in categories.items():
        where = f"{place}.by_category.{category}"
        _require(isinstance(scores, dict), path, where, "an object")
        _keys(path, where, scores, set(_MEASURES))
        row["by_category"][category] = {n: _estimate(path, f"{where}.{n}", scores[n]) for n in _MEASURES}
    if "distances" in row:
        row["distances"] = _distances(path, f"{place}.distances", row["distances"])
    return ResultRow(**row)


def _distances(path: str | Path, place: str, content: Any) -> Distances:
    _require(isinstance(content, dict), path, place, "an object")
    _keys(path, place, content, {field.name for field in fields(Distances)} - {"scored_by"}, {"scored_by"})
    for name in ("fid", "kid", "kid_std", "real_images"):
        _require(_is_number(content[name]), path, f"{place}.{name}", f"a number, not {content[name]!r}")
    return Distances(**content)


def _estimate(path: str | Path, place: str, content: Any) -> Estimate:
    _require(isinstance(content, dict), path, place, "an object with mean and ci95")
    _keys(path, place, content, {"mean", "ci95"})
    mean, interval = content["mean"], content["ci95"]
    _require(_is_number(mean), path, f"{place}.mean", f"a number, not {mean!r}")
    pair = isinstance(interval, list) and len(interval) == 2 and all(map(_is_number, interval))
    ordered = pair and interval[0] <= interval[1]
    _require(ordered, path, f"{place}.ci95", f"two numbers, the lower first, not {interval!r}")
    return Estimate(float(mean), (float(interval[0]), float(interval[1])))


def _keys(
    path: str | Path,
    place: str,
    content: Mapping[str, Any],
    required: set[str],
    optional: set[str] | None = None,
) -> None:
    for name in sorted(required - content.keys()):
        raise ResultsError(f"{path}: {place}: {name} is missing")
    for name in sorted(content.keys() - required - (optional or set())):
        raise ResultsError(f"{path}: {place}: {name} is unknown")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _require(condition: bool, path: str | Path, field_name: str, what: str) -> None:
    if not condition:
        raise ResultsError(f"{path}: {field_name}: must be {what}")
