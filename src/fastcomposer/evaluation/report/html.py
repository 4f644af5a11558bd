"""The report as one HTML file that needs nothing besides itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from fastcomposer.evaluation.load_results import BENCHMARKS, Collected, by_category, distinguishing
from fastcomposer.evaluation.report.gallery import attention_grid, image_grid
from fastcomposer.evaluation.report.paper_claims import Expectation, tally
from fastcomposer.evaluation.report.plots import alpha_curve, category_dots, speed_bars
from fastcomposer.evaluation.report.table import MISSING, Table, cell_parts, written
from fastcomposer.evaluation.report.tables import alpha_points, first_image
from fastcomposer.evaluation.statistics import Estimate

SECTIONS = (
    ("measured", "Measured"),
    ("expected", "Expected"),
    ("tables", "Tables"),
    ("alpha", "Alpha"),
    ("localization", "Localization"),
    ("categories", "Categories"),
    ("images", "Images"),
    ("attention", "Attention"),
    ("speed", "Speed"),
    ("settings", "Settings"),
)
"""Anchors and names in the navigation."""


@dataclass(frozen=True)
class Plot:
    """A figure in the page: the ``<svg>`` element, its alternative text, and what to see in it."""

    svg: Markup
    alt: str
    caption: str


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
    runs = collected.main(benchmark)[::-1]  # FastComposer first
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
    return {
        "name": BENCHMARKS[benchmark],
        "methods": len({run.row.method for run in runs}),
        "runs": len(runs),
        "images": sum(run.row.images for run in runs),
        "subjects": len({name for run in runs for names in run.images.subjects for name in names}),
    }
