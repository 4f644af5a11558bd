"""Results: rows of figures made from the scores of single images, and the file ``results.json``."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import pandas as pd
import pyarrow as pa
from pydantic import AfterValidator, Field, TypeAdapter, ValidationError
from typing_extensions import TypedDict

from fastcomposer.evaluation.benchmark import OTHERS, PLACEHOLDERS
from fastcomposer.evaluation.statistics import PLAIN, Estimate, bootstrap
from fastcomposer.metrics.image_scores import COLUMN
from fastcomposer.utils.errors import invalid_fields
from fastcomposer.utils.files import existing_file, write_atomically
from fastcomposer.utils.ranges import MethodName

METHODS = (
    "fastcomposer",
    "fastcomposer_id",
    "text_only",
    "textual_inversion",
    "dreambooth",
    "custom_diffusion",
)
"""Methods that this package samples with."""
LEAST_CONSISTENCY = 0.85
"""Fraction of the text-only prompt consistency that the best settings keep."""
_Count = Annotated[int, Field(ge=0)]
_Amount = Annotated[float, Field(ge=0)]


@dataclass(frozen=True)
class Costs:
    """Costs of learning a subject."""

    reference_images: int  # of each subject
    personalization_seconds_per_subject: float = 0.0  # fine-tuning
    stored_bytes_per_subject: int = 0  # besides its images
    peak_memory_bytes: int = 0  # while personalising or sampling


@dataclass(frozen=True)
class Distances:
    """How far a run's images are from real ones."""

    __pydantic_config__ = PLAIN
    fid: float  # too large for few images: to be compared between runs of as many
    kid: float  # without such a bias
    kid_std: float  # standard deviation over subsets of the images
    real_images: int  # how many
    features: str  # class of the extractor, such as InceptionFeatures
    scored_by: str | None = None  # digest of features and real images: those of one digest can be compared


@dataclass(frozen=True)
class Origin:
    """Where images of another system come from, as stated when they are scored."""

    __pydantic_config__ = PLAIN
    note: str = ""
    missing: _Count = 0  # cases without an image, which are not scored


class CategoryScores(TypedDict):
    """Scores of one category of prompts."""

    identity_preservation: Estimate
    prompt_consistency: Estimate


@dataclass(frozen=True)
class ResultRow:
    """One method with one choice of settings on one benchmark.

    Attributes:
        benchmark: ``single_subject``, ``multi_subject`` or one of others', such as ``multiid_2``.
        method: One of :data:`METHODS`, or the name of another system.
        settings: What was chosen, such as ``alpha`` or another system's ``version``; plain values.
        reference_images: Images of each subject that the method gets.
        images: How many were scored.
        identity_preservation: Under the corrected protocol.
        prompt_consistency: Raw cosine.
        seconds_per_image: Sampling alone, without personalisation.
        personalization_seconds_per_subject: See :class:`Costs`, also for the next two.
        stored_bytes_per_subject: See :class:`Costs`.
        peak_memory_bytes: See :class:`Costs`.
        unet_calls: Of all images together; calls that images share count once.
        detection_rate: Fraction of the images with at least as many faces as subjects.
        copy_paste: Over the images for which it is defined.
        confusion: ID-Conf, over the images with two faces or more; high is good. This and the next four are
            those of ``metrics/multi_subject.py``, ``None`` where nothing defines them or older scores lack
            them.
        coverage: Fraction of the images in which each subject has its own face and nobody appears twice.
        duplicates: Fraction of the images in which a subject appears twice.
        head_count: Fraction of the images with as many faces as subjects.
        copy_paste_ratio: MultiID-Bench's, over the images for which it is defined.
        identity_published: Under the published protocol: what stands beside published figures.
        distances: From real images, where they were asked for.
        scored_by: Digest of extractors, their settings and weights: rows of one digest can be compared.
        measures: Further measures of the images, by name.
        by_category: ``identity_preservation`` and ``prompt_consistency`` by category of prompts.
        origin: Of another system's images, whose seconds, bytes and backbone calls are not measured and 0.
    """

    __pydantic_config__ = PLAIN
    benchmark: Annotated[str, Field(pattern=f"^({'|'.join((*PLACEHOLDERS, *OTHERS))})$")]
    method: MethodName
    settings: Mapping[str, Any]
    reference_images: _Count
    images: _Count
    identity_preservation: Estimate
    prompt_consistency: Estimate
    seconds_per_image: _Amount
    personalization_seconds_per_subject: _Amount
    stored_bytes_per_subject: _Count
    peak_memory_bytes: _Count
    unet_calls: _Count
    detection_rate: Estimate | None = None
    copy_paste: Estimate | None = None
    confusion: Estimate | None = None
    coverage: Estimate | None = None
    duplicates: Estimate | None = None
    head_count: Estimate | None = None
    copy_paste_ratio: Estimate | None = None
    identity_published: Estimate = field(kw_only=True)
    distances: Distances | None = None
    scored_by: str | None = None
    measures: Mapping[str, Estimate] = field(default_factory=dict)
    by_category: Mapping[str, CategoryScores] = field(default_factory=dict)
    origin: Origin | None = None

    def as_dict(self) -> dict[str, Any]:
        """The row as it stands in ``results.json``; what is not known is left out."""
        row = {name: value for name, value in asdict(self).items() if value is not None}
        empty = [name for name in ("measures", "by_category") if not row[name]]
        return {name: value for name, value in row.items() if name not in empty}


def most_similar(rows: Sequence[ResultRow], text_only: ResultRow) -> ResultRow:
    """Choose the highest identity among rows that keep :data:`LEAST_CONSISTENCY` of text's consistency.

    Where none of the rows, at least one, keeps as much, all are chosen from.
    """
    least = LEAST_CONSISTENCY * text_only.prompt_consistency.mean
    faithful = [row for row in rows if row.prompt_consistency.mean >= least]
    return max(faithful or rows, key=lambda row: row.identity_preservation.mean)


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


class ResultsError(ValueError):
    """A results file or table of scores that is not as it must be; the message names it and the field."""


def _with_origin(row: ResultRow) -> ResultRow:
    if (row.method in METHODS) == (row.origin is not None):
        raise ValueError(f"method: {row.method}: one of {', '.join(METHODS)}, or another with an origin")
    return row


@dataclass(frozen=True)
class Results:
    """Content of a results file: machine and versions, and a row for each method, settings and benchmark."""

    __pydantic_config__ = PLAIN
    schema: Literal[1]
    environment: Mapping[str, Any]
    rows: tuple[Annotated[ResultRow, AfterValidator(_with_origin)], ...]


_RESULTS = TypeAdapter(Results)
_SETTINGS = TypeAdapter(dict[str, Any])


def row_from_scores(table: pa.Table, costs: Costs) -> ResultRow:
    """Summarize the scores of one method on one benchmark, with the columns of :data:`SCORES` in any order.

    Raises:
        ResultsError: If the columns are not those, or rows are of several methods, settings or benchmarks.
    """
    further = [name for name in table.column_names if name.startswith(COLUMN)]
    scores = table.to_pandas()
    row = _checked_scores(table).slice(0, 1).to_pylist()[0]
    groups = scores.subjects.map(tuple)
    try:
        settings = _SETTINGS.validate_json(row["settings"])
    except ValidationError as error:
        raise ResultsError(f"scores: column settings: {invalid_fields(error)}") from error

    def estimate(column: pd.Series) -> Estimate:
        return bootstrap(column, list(groups[column.index]))

    def where_defined(name: str) -> Estimate | None:
        known = scores[name].dropna() if name in scores else scores.identity[:0]
        return None if known.empty else estimate(known)

    return ResultRow(
        benchmark=row["benchmark"],
        method=row["method"],
        settings=settings,
        reference_images=costs.reference_images,
        images=len(scores),
        identity_preservation=estimate(scores.identity),
        prompt_consistency=estimate(scores.prompt_consistency),
        seconds_per_image=math.fsum(scores.seconds) / len(scores),
        personalization_seconds_per_subject=costs.personalization_seconds_per_subject,
        stored_bytes_per_subject=costs.stored_bytes_per_subject,
        peak_memory_bytes=costs.peak_memory_bytes,
        unet_calls=round(math.fsum(scores.unet_calls)),
        detection_rate=estimate((scores.detected >= groups.map(len)).astype(float)),
        copy_paste=where_defined("copy_paste"),
        confusion=where_defined("confusion"),
        coverage=where_defined("coverage"),
        duplicates=where_defined("duplicates"),
        head_count=where_defined("head_count"),
        copy_paste_ratio=where_defined("copy_paste_ratio"),
        identity_published=estimate(scores.identity_published),
        by_category={
            category: {
                "identity_preservation": estimate(some.identity),
                "prompt_consistency": estimate(some.prompt_consistency),
            }
            for category, some in scores.groupby("category", sort=False)
        },
        measures={name.removeprefix(COLUMN): estimate(scores[name]) for name in further},
    )


def write_results(path: str | Path, rows: Sequence[ResultRow], environment: Mapping[str, Any]) -> None:
    """Write ``results.json``, atomically.

    Raises:
        ResultsError: If a row does not fit the contract; nothing is written then.
    """
    content = {"schema": 1, "environment": dict(environment), "rows": [row.as_dict() for row in rows]}
    try:
        text = json.dumps(content, indent=2, ensure_ascii=False)
    except TypeError as error:
        raise ResultsError(f"{path}: environment or settings: not plain values: {error}") from error
    _results(path, text)
    write_atomically(Path(path), lambda file: file.write(f"{text}\n".encode()))


def read_results(path: str | Path) -> Results:
    """Read ``results.json``.

    Raises:
        FileNotFoundError: If there is no such file.
        ResultsError: If it does not fit the contract, with file and field.
    """
    return _results(path, existing_file(path, "results").read_bytes())


def _results(path: str | Path, text: str | bytes) -> Results:
    try:
        return _RESULTS.validate_json(text)
    except ValidationError as error:
        raise ResultsError(f"{path}: {invalid_fields(error)}") from error


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
