"""Figures of the report as SVG that takes its colours from the page around it."""

from __future__ import annotations

import math
import re
import textwrap
from collections.abc import Callable, Mapping, Sequence
from io import StringIO
from typing import TYPE_CHECKING, Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from fastcomposer.evaluation.report.tables import AlphaPoint, knee, written
from fastcomposer.evaluation.statistics import Estimate

if TYPE_CHECKING:
    from fastcomposer.evaluation.identity_diagnosis import CurvePoint

# Roles of colours on light paper. Each hue is one of Okabe and Ito's, which colour-blind readers tell apart;
# markers differ as well, for print in grey. The page may set others by the name of the role.
COLOURS = {
    "ink": "#1c2024",
    "muted": "#5c6369",
    "rule": "#dfe2e5",
    "paper": "#fefefe",
    "series-1": "#0072b2",
    "series-2": "#d55e00",
    "series-3": "#009e73",
    "series-4": "#b8860b",
    "series-5": "#aa4499",
    "series-6": "#5d6f7d",
}
MARKERS = ("o", "s", "^", "D", "v", "P")
_WIDTH = 5.0  # inches; the page scales the figure
_FONT = 9.5  # points
_NAME = 26  # letters in a line of a name beside an axis
_LEGEND = 62  # letters in a line of a legend
_ROW = 0.16  # inches of a line of text


def alpha_curve(points: Sequence[AlphaPoint], name: str) -> str:
    """Draw identity against prompt consistency by rising alpha, with the knee marked; ``name`` is the id."""

    def draw(axes: Axes) -> None:
        xs = [point.consistency.mean for point in points]
        ys = [point.identity.mean for point in points]
        blue = COLOURS["series-1"]
        xerr, yerr = bars([point.consistency for point in points]), bars([point.identity for point in points])
        axes.errorbar(xs, ys, yerr, xerr, fmt="none", ecolor=COLOURS["muted"], elinewidth=0.6, zorder=2)
        axes.plot(xs, ys, color=blue, marker="o", markersize=4.5, linewidth=1.3, zorder=3)
        best = knee(points)
        for position, point in enumerate(points):
            text = f"α = {point.alpha:g}" if position in (0, len(points) - 1, best) else f"{point.alpha:g}"
            axes.annotate(
                text + ("  knee" if position == best else ""),
                (xs[position], ys[position]),
                xytext=(6, 5),
                textcoords="offset points",
                color=COLOURS["ink"],
                fontweight="bold" if position == best else "normal",
                zorder=4,
            )
        if best is not None:
            (ring,) = axes.plot(xs[best], ys[best], marker="o", markersize=10, zorder=3)
            ring.set_markerfacecolor("none")
            ring.set_markeredgecolor(COLOURS["ink"])
        axes.set_xlabel("prompt consistency")
        axes.set_ylabel("identity preservation")
        axes.grid(color=COLOURS["rule"], linewidth=0.6)
        axes.margins(x=0.14, y=0.12)

    return figure(name, 3.4, draw)


def category_dots(
    series: Mapping[str, Mapping[str, Estimate]], name: str, methods: Sequence[str] | None = None
) -> str:
    """Draw scores by method and prompt category, one marker with its interval each.

    ``methods`` are all methods of the page in the order of their colours; by default those of the series.
    """
    categories = list(dict.fromkeys(category for scores in series.values() for category in scores))
    step = 0.8 / max(len(series), 1)
    order = list(methods or series)
    labels = {method: textwrap.fill(method, _LEGEND - 10) for method in series}
    columns = _legend_columns(list(series))

    def draw(axes: Axes) -> None:
        for row, (method, scores) in enumerate(series.items()):
            number = order.index(method)
            colour = COLOURS[f"series-{number % 6 + 1}"]
            places = [categories.index(category) - 0.4 + (row + 0.5) * step for category in scores]
            axes.errorbar(
                [score.mean for score in scores.values()],
                places,
                xerr=bars(list(scores.values())),
                fmt=MARKERS[number % 6],
                color=colour,
                markersize=5,
                markerfacecolor=colour if number == 0 else COLOURS["paper"],
                elinewidth=1.0,
                label=labels[method],
            )
        for border in range(1, len(categories)):
            axes.axhline(border - 0.5, color=COLOURS["rule"], linewidth=0.8)
        axes.set_yticks(range(len(categories)), categories)
        axes.set_ylim(len(categories) - 0.5, -0.5)
        axes.set_xlim(left=min(0.0, axes.get_xlim()[0]))
        axes.tick_params(axis="y", length=0)
        axes.set_xlabel("identity preservation")
        axes.grid(axis="x", color=COLOURS["rule"], linewidth=0.6)
        legend: Any = {"frameon": False, "handletextpad": 0.3, "columnspacing": 1.2, "borderaxespad": 0.2}
        axes.legend(ncols=columns, loc="lower left", bbox_to_anchor=(0.0, 1.0), **legend)

    rows = len(categories) * max(len(series), 2)
    lines = sum(1 + label.count("\n") for label in labels.values())
    return figure(name, 1.1 + _ROW * (rows + max(math.ceil(lines / columns) - 2, 0)), draw)


def speed_bars(seconds: Mapping[str, float], name: str, first: str | None = None) -> str:
    """Draw durations above 0 as bars on a logarithmic axis, with their ratios to the method ``first``."""
    names = [textwrap.fill(method, _NAME) for method in seconds]
    lines = sum(name.count("\n") for name in names)

    def draw(axes: Axes) -> None:
        methods, values = list(seconds), list(seconds.values())
        colours = [COLOURS["series-1" if method == first else "series-6"] for method in methods]
        axes.barh(range(len(methods)), values, color=colours, height=0.62)
        for row, (method, value) in enumerate(seconds.items()):
            text = f"{_seconds(value)} s"
            if first is not None and method != first:
                text += f"  ({written(value / seconds[first], 'ratio')})"
            axes.annotate(text, (value, row), xytext=(4, 0), textcoords="offset points", va="center")
        axes.set_xscale("log")
        low, high = min(values), max(values)
        axes.set_xlim(low / 5, high * (high / low * 5) ** 0.45)  # room for the figures behind the bars
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: _seconds(value)))
        axes.xaxis.minorticks_off()
        axes.set_yticks(range(len(methods)), names)
        axes.invert_yaxis()
        axes.tick_params(axis="y", length=0)
        axes.set_xlabel("seconds to the first image of a new person")
        axes.grid(axis="x", color=COLOURS["rule"], linewidth=0.6)

    return figure(name, 0.75 + 0.32 * len(seconds) + _ROW * lines, draw)


def _legend_columns(names: Sequence[str]) -> int:
    """How many columns, three at most, a legend of these names has room for; they are filled one by one."""
    for columns in (3, 2):
        rows = math.ceil(len(names) / columns)
        widest = [max(map(len, names[at : at + rows])) + 4 for at in range(0, len(names), rows)]
        if sum(widest) <= _LEGEND:
            return columns
    return 1


def _seconds(value: float) -> str:
    return f"{value:,.0f}" if value >= 10 else f"{value:.2g}"


def bars(estimates: Sequence[Estimate]) -> list[list[float]]:
    """Distances from the means to the ends of their intervals, as matplotlib takes them."""
    lower = [max(estimate.mean - estimate.ci95[0], 0.0) for estimate in estimates]
    upper = [max(estimate.ci95[1] - estimate.mean, 0.0) for estimate in estimates]
    return [lower, upper]


def plot_curves(curves: Mapping[str, Sequence[CurvePoint]]) -> str:
    """Plot the curves of several checkpoints, and of the text alone, as an ``<svg>`` element."""

    def draw(axes: Axes) -> None:
        for number, (name, points) in enumerate(curves.items()):
            some = [point for point in points if point.timestep >= 0]
            colour, marker = COLOURS[f"series-{number % 6 + 1}"], MARKERS[number % 6]
            x = [point.timestep for point in some]
            axes.plot(x, [point.subjects for point in some], color=colour, marker=marker, label=name)
            axes.plot(x, [point.text for point in some], color=colour, linestyle=":", label=f"{name}, text")
        axes.set_xlabel("timestep")
        axes.set_ylabel("identity of x̂₀")
        axes.legend(frameon=False)

    return figure("identity_curve", 3.2, draw)


def plot_read_out(scores: Mapping[str, Mapping[str, float]]) -> str:
    """Plot the read-outs of several checkpoints by stage as an ``<svg>`` element."""
    stages = list(dict.fromkeys(stage for found in scores.values() for stage in found))

    def draw(axes: Axes) -> None:
        for number, (name, found) in enumerate(scores.items()):
            heights = [stages.index(stage) + 0.15 * number for stage in found]
            colour, marker = COLOURS[f"series-{number % 6 + 1}"], MARKERS[number % 6]
            axes.plot(list(found.values()), heights, marker, color=colour, label=name)
        axes.set_yticks(range(len(stages)), stages)
        axes.invert_yaxis()
        axes.set_xlabel("identity by a linear read-out")
        axes.legend(frameon=False)

    return figure("identity_read_out", 0.8 + 0.4 * len(stages), draw)


def figure(name: str, height: float, draw: Callable[[Axes], None]) -> str:
    """Draw an ``<svg>`` element of an id and a height in inches, in the page's style."""
    style: Any = {
        "svg.fonttype": "none",
        "text.parse_math": False,  # a $ in a setting is a letter
        "svg.hashsalt": name,
        "font.family": "sans-serif",
        "font.size": _FONT,
        "text.color": COLOURS["ink"],
        "axes.edgecolor": COLOURS["muted"],
        "axes.labelcolor": COLOURS["ink"],
        "axes.linewidth": 0.7,
        "axes.axisbelow": True,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.spines.left": True,
        "xtick.color": COLOURS["muted"],
        "ytick.color": COLOURS["muted"],
        "xtick.labelcolor": COLOURS["ink"],
        "ytick.labelcolor": COLOURS["ink"],
    }
    # Within the block only: what a caller has set in matplotlib neither shows here nor is lost.
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(style)
        drawing = Figure(figsize=(_WIDTH, height), layout="constrained")
        FigureCanvasSVG(drawing)
        draw(drawing.add_subplot())
        text = StringIO()
        drawing.savefig(text, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    return _inline(text.getvalue(), name)


def _inline(svg: str, name: str) -> str:
    """Make a stand-alone SVG part of a page: no prologue, own names, colours and fonts of the page."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'\bid="', f'id="{name}-', svg)
    svg = re.sub(r'(href="|url\()#', rf"\g<1>#{name}-", svg)
    for role, colour in COLOURS.items():
        svg = svg.replace(colour, f"var(--{role}, {colour})")
    # The font's family is the page's; its size stays.
    svg = re.sub(r"(font: [^;\"]*?px) [^;\"]*", r"\g<1> sans-serif", svg)
    head = re.match(r"<svg[^>]*>", svg)
    view = re.search(r'viewBox="[^"]*"', head.group(0)) if head else None
    if head is None or view is None:
        raise ValueError("matplotlib wrote no viewBox")
    # Inside HTML neither the namespaces nor the prefix of links is needed.
    body = svg[head.end() :].strip().replace("xlink:href", "href")
    return f'<svg {view.group(0)} aria-hidden="true" focusable="false">{body}'
