"""The result of a preparation: statistics, the list of photos left out, and a page with samples."""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from fastcomposer.preparation.photos import PhotoFile
from fastcomposer.preparation.record_images import Sample, draw_sample
from fastcomposer.preparation.record_store import Outcome, PreparedFolder, write_json, write_text
from fastcomposer.utils.settings import digest

REPORT = "report.html"
_SIDES = (256, 384, 512, 768, 1024, 1536, 2048)  # pixels
_AREAS = (1, 2, 5, 10, 20, 40)  # percent of the image
_EXAMPLES = 3
_CHARTS = {
    "subjects_per_record": "Subjects per photo",
    "words": "Words",
    "sides": "Shorter side of the records",
    "areas": "Area of a subject in the image",
    "similarities": "Similarity of a subject with its phrase",
}


def summarize(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """Count photos, records and subjects, and the reasons why anything is left out."""
    made = [outcome for outcome in outcomes if outcome.reason is None]
    subjects = sorted(Counter(len(outcome.words) for outcome in made).items())
    similarities = [value for outcome in made for value in outcome.similarities]
    return {
        "photos": len(outcomes),
        "records": len(made),
        "subjects": sum(len(outcome.words) for outcome in made),
        "subjects_per_record": {str(number): count for number, count in subjects},
        "words": _frequent(word for outcome in made for word in outcome.words),
        "sides": _binned((min(outcome.size) for outcome in made), _SIDES, "px"),
        "areas": _binned((100 * area for outcome in made for area in outcome.areas), _AREAS, "%"),
        "similarities": _binned(similarities, _tenths(similarities), "", "{:.2f}"),
        "dropped": _frequent(outcome.reason for outcome in outcomes if outcome.reason is not None),
        "left_out": _frequent(
            f"{entry.what}: {entry.reason}" for outcome in outcomes for entry in outcome.left_out
        ),
    }


def write_report(
    folder: PreparedFolder, photos: Sequence[PhotoFile], outcomes: Sequence[Outcome], samples: int
) -> None:
    """Write ``statistics.json``, ``left_out.csv`` and ``report.html`` into ``preparation/``.

    The page shows a number of ``samples``, selected by a digest of their ids.
    """
    statistics = summarize(outcomes)
    write_json(folder.folder / "statistics.json", statistics)
    dropped = [outcome for outcome in outcomes if outcome.reason is not None]
    table = io.StringIO()
    rows = [(outcome.file, outcome.reason, outcome.detail) for outcome in dropped]
    csv.writer(table, lineterminator="\n").writerows([("file", "reason", "detail"), *rows])
    names = [p.photo_id for p, outcome in zip(photos, outcomes, strict=True) if outcome.reason is None]
    chosen = sorted(sorted(names, key=lambda name: digest([name]))[:samples])
    page = render_page(statistics, dropped, [draw_sample(folder.root, name) for name in chosen])
    write_text(folder.folder / "left_out.csv", table.getvalue())
    write_text(folder.folder / REPORT, page)


def render_page(statistics: dict[str, Any], dropped: Sequence[Outcome], samples: Sequence[Sample]) -> str:
    """Render the page as one HTML file without external resources."""
    examples: dict[str, list[str]] = {}
    for outcome in dropped:
        shown = f"{outcome.file}: {outcome.detail}" if outcome.detail else outcome.file
        examples.setdefault(str(outcome.reason), []).append(shown)
    examples = {reason: files[:_EXAMPLES] for reason, files in examples.items()}
    environment = Environment(
        loader=PackageLoader("fastcomposer", "preparation/templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    charts = [(title, statistics[name]) for name, title in _CHARTS.items()]
    page = environment.get_template("preparation.html.j2")
    return page.render(statistics=statistics, charts=charts, examples=examples, samples=samples)


def _frequent(names: Iterable[str]) -> dict[str, int]:
    """Count names, the most frequent first."""
    return dict(sorted(Counter(names).items(), key=lambda item: (-item[1], item[0])))


def _binned(values: Iterable[float], edges: Sequence[float], unit: str, form: str = "{:g}") -> dict[str, int]:
    """Count values between edges, without empty bins at the ends; an edge belongs to the bin above it."""
    counts = Counter(sum(value >= edge for edge in edges) for value in values)
    if not counts:
        return {}
    shown = [form.format(edge) for edge in edges]
    names = [f"< {shown[0]}", *(f"{low} – {high}" for low, high in pairwise(shown)), f"≥ {shown[-1]}"]
    return {f"{names[i]} {unit}".strip(): counts[i] for i in range(min(counts), max(counts) + 1)}


def _tenths(values: Sequence[float]) -> list[float]:
    """Edges that divide the range of values into ten."""
    low, high = min(values, default=0), max(values, default=0)
    step = max((high - low) / 10, 0.01)
    return [low + step * number for number in range(1, 10)]
