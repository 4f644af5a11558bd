"""What a preparation made and what it left out: as numbers, as a list, and as a page with samples."""

from __future__ import annotations

import csv
import io
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined

from fastcomposer.preparation.photos import PhotoFile
from fastcomposer.preparation.record_images import Sample, draw_sample
from fastcomposer.preparation.record_store import Outcome, PreparedFolder
from fastcomposer.utils.files import write_atomically
from fastcomposer.utils.settings import digest

REPORT = "report.html"
_SIDES = (256, 384, 512, 768, 1024, 1536, 2048)  # pixels
_AREAS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.4)  # shares of the image
_EXAMPLES = 3


@dataclass(frozen=True)
class Statistics:
    """Counts over a source of photos.

    Attributes:
        photos: Photos found.
        records: Those that became records.
        subjects: Subjects in them.
        subjects_per_record: Records by number of subjects.
        words: Subjects by the word that names them.
        sides: Records by shorter side in pixels.
        areas: Subjects by share of the image.
        similarities: Subjects by similarity with their phrase.
        dropped: Photos that are no records, by reason.
        left_out: Segments and phrases that are no subjects, by kind and reason.
    """

    photos: int
    records: int
    subjects: int
    subjects_per_record: Mapping[str, int]
    words: Mapping[str, int]
    sides: Mapping[str, int]
    areas: Mapping[str, int]
    similarities: Mapping[str, int]
    dropped: Mapping[str, int]
    left_out: Mapping[str, int]


def summarize(outcomes: Sequence[Outcome]) -> Statistics:
    """Count what became of photos."""
    made = [outcome for outcome in outcomes if outcome.reason is None]
    counts = sorted(Counter(len(outcome.words) for outcome in made).items())
    areas = [100 * area for outcome in made for area in outcome.areas]
    return Statistics(
        photos=len(outcomes),
        records=len(made),
        subjects=sum(len(outcome.words) for outcome in made),
        subjects_per_record={str(number): count for number, count in counts},
        words=_frequent(word for outcome in made for word in outcome.words),
        sides=_binned((min(outcome.size) for outcome in made), _SIDES, "px"),
        areas=_binned(areas, [100 * edge for edge in _AREAS], "%"),
        similarities=_binned(
            (value for outcome in made for value in outcome.similarities), _tenths(made), "", "{:.2f}"
        ),
        dropped=_frequent(outcome.reason for outcome in outcomes if outcome.reason is not None),
        left_out=_frequent(
            f"{entry.what}: {entry.reason}" for outcome in outcomes for entry in outcome.left_out
        ),
    )


def write_report(
    folder: PreparedFolder, photos: Sequence[PhotoFile], outcomes: Sequence[Outcome], samples: int
) -> Statistics:
    """Write ``statistics.json``, ``left_out.csv`` and ``report.html`` into ``preparation/``.

    Args:
        folder: The folder.
        photos: All photos.
        outcomes: What became of each.
        samples: Records to show, chosen by their names alone.
    """
    statistics = summarize(outcomes)
    _write(
        folder.folder / "statistics.json", json.dumps(asdict(statistics), indent=2, ensure_ascii=False) + "\n"
    )
    dropped = [outcome for outcome in outcomes if outcome.reason is not None]
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow(("file", "reason", "detail"))
    writer.writerows((outcome.file, outcome.reason, outcome.detail) for outcome in dropped)
    _write(folder.folder / "left_out.csv", table.getvalue())

    names = [p.photo_id for p, outcome in zip(photos, outcomes, strict=True) if outcome.reason is None]
    chosen = sorted(sorted(names, key=lambda name: digest([name]))[:samples])
    shown = [draw_sample(folder.root, name) for name in chosen]
    _write(folder.folder / REPORT, render_page(statistics, dropped, shown))
    return statistics


def render_page(statistics: Statistics, dropped: Sequence[Outcome], samples: Sequence[Sample]) -> str:
    """Render the page: one HTML file that needs nothing besides itself."""
    examples: dict[str, list[str]] = {}
    for outcome in dropped:
        shown = examples.setdefault(str(outcome.reason), [])
        if len(shown) < _EXAMPLES:
            shown.append(f"{outcome.file}: {outcome.detail}" if outcome.detail else outcome.file)
    environment = Environment(
        loader=PackageLoader("fastcomposer", "preparation/templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    charts = (
        ("Subjects per photo", statistics.subjects_per_record),
        ("Words", statistics.words),
        ("Shorter side of the records", statistics.sides),
        ("Share of the image that a subject covers", statistics.areas),
        ("Similarity of a subject with its phrase", statistics.similarities),
    )
    page = environment.get_template("preparation.html.j2")
    return page.render(statistics=statistics, charts=charts, examples=examples, samples=samples)


def _frequent(names: Iterable[str]) -> dict[str, int]:
    """Count names, the most frequent first."""
    return dict(sorted(Counter(names).items(), key=lambda item: (-item[1], item[0])))


def _binned(values: Iterable[float], edges: Sequence[float], unit: str, form: str = "{:g}") -> dict[str, int]:
    """Count values between edges; the first edge belongs to the bin above it. Empty ends are left away."""
    names = [f"< {form.format(edges[0])} {unit}"] if edges else []
    names += [f"{form.format(a)} – {form.format(b)} {unit}" for a, b in pairwise(edges)]
    names += [f"≥ {form.format(edges[-1])} {unit}"] if edges else []
    counts = [0] * len(names)
    for value in values:
        counts[sum(value >= edge for edge in edges)] += 1
    filled = [place for place, count in enumerate(counts) if count]
    kept = range(filled[0], filled[-1] + 1) if filled else range(0)
    return {names[place].strip(): counts[place] for place in kept}


def _tenths(made: Sequence[Outcome]) -> list[float]:
    """Edges that divide the range of similarities into ten."""
    values = [value for outcome in made for value in outcome.similarities]
    if not values:
        return []
    low, high = min(values), max(values)
    step = max((high - low) / 10, 0.01)
    return [low + step * number for number in range(1, 10)]


def _write(file: Path, text: str) -> None:
    write_atomically(file, lambda stream: stream.write(text.encode()))
