"""The report as one HTML file that needs nothing besides itself."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from PIL import Image

from fastcomposer.evaluation.load_results import (
    BENCHMARKS,
    Collected,
    Run,
    attention_files,
    by_category,
    chosen_cases,
    distinguishing,
    on_common_cases,
    spread,
)
from fastcomposer.evaluation.report.paper_claims import Expectation, tally
from fastcomposer.evaluation.report.plots import alpha_curve, category_dots, speed_bars
from fastcomposer.evaluation.report.tables import (
    MISSING,
    Table,
    alpha_points,
    cell_parts,
    first_image,
    written,
)
from fastcomposer.evaluation.statistics import Estimate
from fastcomposer.prompt import strip_markers
from fastcomposer.utils.provenance import read_metadata

SHOWN = 256
"""Side in pixels that larger images are reduced to."""
_SMALL = 128  # up to this side every pixel is kept, and the browser enlarges without smoothing
_BACKING = (238, 238, 238)  # behind transparent references
SECTIONS = (
    ("images", "Images"),
    ("measured", "Measured"),
    ("expected", "Expected"),
    ("tables", "Tables"),
    ("alpha", "Alpha"),
    ("localization", "Localization"),
    ("categories", "Categories"),
    ("attention", "Attention"),
    ("speed", "Speed"),
    ("settings", "Settings"),
)
"""Anchors and names in the navigation."""


@dataclass(frozen=True)
class Shown:
    """An image in the page: data URI, alternative text, and whether the browser enlarges it unsmoothed."""

    source: str
    alt: str
    pixelated: bool


@dataclass(frozen=True)
class Strip:
    """A line of images: its label, the images of each column, and whether these are the references."""

    label: str
    cells: tuple[tuple[Shown, ...], ...]
    references: bool = False


@dataclass(frozen=True)
class Gallery:
    """Images in lines and columns: the benchmark's name, the caption of each column, and the lines."""

    benchmark: str
    columns: tuple[str, ...]
    strips: tuple[Strip, ...]


@dataclass(frozen=True)
class Plot:
    """A figure in the page: the ``<svg>`` element, its alternative text, and what to see in it."""

    svg: Markup
    alt: str
    caption: str


def image_grid(collected: Collected, benchmark: str, per_category: int = 2) -> Gallery | None:
    """The same cases of all methods below each other, with the references above; ``None`` without images."""
    runs = [run for run in collected.main(benchmark) if run.images.file.map(Path.is_file).any()]
    if not runs:
        return None
    named = list(zip(distinguishing(runs), runs, strict=True))
    return named_grid(benchmark, named, collected.references, per_category)


def named_grid(
    benchmark: str, runs: Sequence[tuple[str, Run]], references: Mapping[str, Path], per_category: int
) -> Gallery | None:
    """The same cases of named runs below each other; ``None`` where no case is common to all."""
    cases = chosen_cases([run for _, run in runs], per_category)
    return _gallery(references, benchmark, runs, cases) if cases else None


def attention_grid(collected: Collected, benchmark: str, columns: int = 3) -> Gallery | None:
    """Attention of each subject's word, with and without localization, each case's image first."""
    pair = collected.ablation(benchmark)
    ours = collected.fastcomposer(benchmark)
    runs = list(pair) if pair else [ours] if ours else []
    having = [
        (run, [image for image in run.images.itertuples(index=False) if attention_files(run, image)])
        for run in runs
    ]
    having = [(run, images) for run, images in having if images]
    if not having:
        return None
    common = set.intersection(*({image.case for image in images} for _, images in having))
    cases = [image for image in having[0][1] if image.case in common]
    named = [("With localization" if run.localized else "Without localization", run) for run, _ in having]
    return _gallery(collected.references, benchmark, named, spread(cases, columns), maps=True)


def caption_of(image: Any) -> str:
    """The prompt that an image was sampled from, as its file states; the case where it does not."""
    metadata = read_metadata(image.file) or {}
    return strip_markers(str(metadata["prompt"])) if "prompt" in metadata else image.case


def shown(file: Path, alt: str) -> Shown:
    """Embed an image into the page: small ones as they are, larger ones reduced."""
    with Image.open(file) as opened:
        rgba = opened.convert("RGBA")
    image = Image.new("RGB", rgba.size, _BACKING)
    image.paste(rgba, (0, 0), rgba)
    small = max(image.size) <= _SMALL
    data = BytesIO()
    if small:
        image.save(data, "PNG", optimize=True)
    else:
        image.thumbnail((SHOWN, SHOWN), Image.Resampling.LANCZOS)
        image.save(data, "JPEG", quality=88)
    kind = "png" if small else "jpeg"
    return Shown(f"data:image/{kind};base64,{base64.b64encode(data.getvalue()).decode()}", alt, small)


def _gallery(
    references: Mapping[str, Path],
    benchmark: str,
    runs: Sequence[tuple[str, Run]],
    cases: Sequence[Any],
    maps: bool = False,
) -> Gallery:
    """Lay out cases as columns and named runs as lines, below the references."""
    captions = tuple(caption_of(case) for case in cases)
    strips = _references(references, cases)
    for name, run in runs:
        named = zip(cases, captions, strict=True)
        cells = tuple(_cell(run.of_case(case.case), run, name, caption, maps) for case, caption in named)
        strips.append(Strip(name, cells))
    return Gallery(benchmark, captions, tuple(strips))


def _cell(image: Any, run: Run, name: str, caption: str, maps: bool) -> tuple[Shown, ...]:
    """An image, and the attention maps of its subjects; nothing where there is no image."""
    if image is None or not image.file.is_file():
        return ()
    files = zip(attention_files(run, image) if maps else (), image.subjects, strict=False)
    return (
        shown(image.file, f"{name}: {caption}"),
        *(shown(file, f"{name}: attention on {subject} in {caption}") for file, subject in files),
    )


def _references(references: Mapping[str, Path], cases: Sequence[Any]) -> list[Strip]:
    names = {name for case in cases for name in case.subjects}
    known = {name: references[name] for name in names if name in references and references[name].is_file()}
    if not known:
        return []
    images = {name: shown(file, f"Reference of {name}") for name, file in known.items()}
    cells = [tuple(images[name] for name in case.subjects if name in images) for case in cases]
    return [Strip("Reference", tuple(cells), references=True)]


def render_html(
    collected: Collected,
    tables: Sequence[Table],
    expectations: Sequence[Expectation],
    deviations: Sequence[str],
) -> str:
    """Write the report: an HTML document with all images and styles inside."""
    environment = page_environment()
    benchmarks = collected.benchmarks()
    named = {table.key: table for table in tables}
    galleries = [image_grid(collected, name) for name in benchmarks]
    attention = [attention_grid(collected, name) for name in benchmarks]
    return environment.get_template("report.html.j2").render(
        main_tables=[named[name] for name in (*benchmarks, "distances") if name in named],
        alpha=[
            (named[f"alpha_{name}"], _alpha_plot(collected, name))
            for name in benchmarks
            if f"alpha_{name}" in named
        ],
        localization=named.get("localization"),
        speed=named.get("speed"),
        speed_plot=_speed_plot(collected),
        category_plots=_category_plots(collected),
        galleries=[gallery for gallery in galleries if gallery],
        attention=[gallery for gallery in attention if gallery],
        expectations=expectations,
        deviations=deviations,
        tally=tally(expectations),
        scope=[_scope(collected, name) for name in benchmarks],
        environment=flat(collected.environment),
        runs=collected.runs,
        sections=SECTIONS,
    )


def page_environment() -> Environment:
    """The templates, and what they write figures with."""
    environment = Environment(
        loader=PackageLoader("fastcomposer.evaluation.report", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals |= {
        "written": written,
        "cell_parts": cell_parts,
        "flat": flat,
        "missing": MISSING,
        "benchmark_names": BENCHMARKS,
    }
    return environment


def flat(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Write nested settings as pairs of a name and a value."""
    pairs: list[tuple[str, str]] = []
    for key, value in values.items():
        name = f"{prefix}{key}".replace("_", " ")
        if isinstance(value, Mapping):
            pairs += flat(value, f"{name}, ")
        elif isinstance(value, str) or not isinstance(value, Sequence):
            pairs.append((name, _plain(value)))
        else:
            pairs.append((name, ", ".join(_plain(item) for item in value)))
    return pairs


def _plain(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return {None: "none", True: "yes", False: "no"}[value]
    return f"{value:g}" if isinstance(value, float) else str(value)


def _alpha_plot(collected: Collected, benchmark: str) -> Plot:
    points = alpha_points(collected.sweep(benchmark))
    figures = "; ".join(
        f"α {point.alpha:g}: identity {point.identity.mean:.3f}, prompt {point.consistency.mean:.3f}"
        for point in points
    )
    return Plot(
        Markup(alpha_curve(points, f"alpha-{benchmark.replace('_', '-')}")),
        f"Identity preservation against prompt consistency. {figures}.",
        f"{BENCHMARKS[benchmark]}. Up and to the right is better; bars are 95 % intervals.",
    )


def _category_plots(collected: Collected) -> list[Plot]:
    """A plot for each benchmark, a method in the same colour in all of them."""
    found = {benchmark: _by_method(collected, benchmark) for benchmark in collected.benchmarks()}
    methods = list(dict.fromkeys(method for series in found.values() for method in series))
    return [_category_plot(series, benchmark, methods) for benchmark, series in found.items() if series]


def _by_method(collected: Collected, benchmark: str) -> dict[str, dict[str, Estimate]]:
    runs = on_common_cases(collected.main(benchmark)[::-1])  # FastComposer first
    named = zip(runs, distinguishing(runs), strict=True)
    return {name: scores for run, name in named if (scores := by_category(run))}


def _category_plot(
    series: Mapping[str, Mapping[str, Estimate]], benchmark: str, methods: Sequence[str]
) -> Plot:
    figures = "; ".join(
        f"{method}: " + ", ".join(f"{category} {score.mean:.3f}" for category, score in scores.items())
        for method, scores in series.items()
    )
    return Plot(
        Markup(category_dots(series, f"category-{benchmark.replace('_', '-')}", methods)),
        f"Identity preservation by prompt category. {figures}.",
        f"{BENCHMARKS[benchmark]}. Bars are 95 % intervals.",
    )


def _speed_plot(collected: Collected) -> Plot | None:
    main = collected.first_ours()
    if main is None:
        return None
    runs = collected.main(main.row.benchmark)
    names = distinguishing(runs)
    timed = zip(names, map(first_image, runs), strict=True)
    seconds = {name: value for name, value in timed if value > 0}
    if len(seconds) < 2:
        return None
    ours = names[runs.index(main)]
    figures = "; ".join(f"{name} {value:.3g} s" for name, value in seconds.items())
    return Plot(
        Markup(speed_bars(seconds, "speed", first=ours)),
        f"Seconds until the first image of a new person. {figures}.",
        "Personalisation and one image, measured here; each gridline is ten times the one before.",
    )


def _scope(collected: Collected, benchmark: str) -> dict[str, Any]:
    runs = [run for run in collected.runs if run.row.benchmark == benchmark]
    counts = {run.name: run.people for run in collected.main(benchmark)}
    most = max(filter(None, counts.values()), default=0)
    return {
        "name": BENCHMARKS[benchmark],
        "methods": len({run.row.method for run in runs}),
        "runs": len(runs),
        "images": sum(run.row.images for run in runs),
        "subjects": len({name for run in runs for names in run.images.subjects for name in names}),
        "fewer": {name: people for name, people in counts.items() if people and people < most},
    }
