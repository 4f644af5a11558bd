"""Figures hold their points, and leave matplotlib's state alone."""

from __future__ import annotations

import re

import matplotlib
import pytest

from fastcomposer.evaluation.report.plots import AlphaPoint, alpha_curve, category_dots, knee, speed_bars
from fastcomposer.evaluation.statistics import Estimate


def estimate(mean: float) -> Estimate:
    return Estimate(mean, (mean - 0.01, mean + 0.01))


def points(*values: tuple[float, float, float]) -> list[AlphaPoint]:
    return [AlphaPoint(alpha, estimate(identity), estimate(prompt)) for alpha, identity, prompt in values]


CURVE = points((0, 0.05, 0.27), (0.4, 0.2, 0.265), (0.6, 0.45, 0.255), (0.8, 0.5, 0.235), (1, 0.52, 0.2))


def texts(svg: str) -> list[str]:
    return re.findall(r"<text[^>]*>([^<]*)</text>", svg)


def test_knee_is_farthest_from_the_chord() -> None:
    assert knee(CURVE) == 2
    # With ends at (0, 1) and (1, 0) after scaling, the distance grows with the sum of both scores.
    assert knee(points((0, 0, 1), (0.5, 0.7, 0.7), (0.7, 0.9, 0.4), (1, 1, 0))) == 1


def test_no_knee_without_a_bend_outwards() -> None:
    assert knee(CURVE[:2]) is None
    assert knee(points((0, 0, 1), (0.5, 0.5, 0.5), (1, 1, 0))) is None
    assert knee(points((0, 0, 1), (0.5, 0.2, 0.2), (1, 1, 0))) is None
    assert knee(points((0, 0.3, 0.2), (0.5, 0.3, 0.2), (1, 0.3, 0.2))) is None


def test_a_method_keeps_its_colour_where_others_are_missing() -> None:
    alone = {"Other": {"style": estimate(0.2)}}
    first, second = (f"var(--series-{number}," for number in (1, 2))
    assert first in category_dots(alone, "category")
    svg = category_dots(alone, "category", methods=["FastComposer", "Other"])
    assert second in svg
    assert first not in svg


def test_long_names_leave_room_for_what_is_drawn(recwarn: pytest.WarningsRecorder) -> None:
    long = [f"FastComposer (localization a_setting_with_a_name_of_many_letters_{i})" for i in range(6)]
    bars = texts(speed_bars({name: 2.0 + i for i, name in enumerate(long)}, "speed", long[0]))
    assert max(map(len, bars)) < len("seconds to the first image of a new person") + 1
    scores = {"style": Estimate(0.3, (0.2, 0.4)), "context": Estimate(0.4, (0.3, 0.5))}
    svg = category_dots(dict.fromkeys(long, scores), "dots")
    placed = re.findall(r"translate\(([\d.]+) [^>]*>([^<]*)</text>", svg)
    ends = [float(x) + 5 * len(text) for x, text in placed]
    assert max(ends) < 5 * 72
    assert not recwarn.list  # matplotlib warns where it finds no room


def test_a_dollar_is_a_letter() -> None:
    assert "the $x^$" in texts(speed_bars({"the $x^$": 2.0, "other": 1.0}, "speed"))


@pytest.mark.parametrize("name", ["one", "two"])
def test_figures_fit_into_a_page(name: str) -> None:
    svg = alpha_curve(CURVE, name)
    assert svg.startswith("<svg viewBox=")
    assert "http" not in svg  # nothing to load
    assert "var(--series-1, #0072b2)" in svg  # the page's colours
    identifiers = re.findall(r'\bid="([^"]*)"', svg)
    assert identifiers
    assert all(identifier.startswith(f"{name}-") for identifier in identifiers)
    links = re.findall(r'(?:href="|url\()#([^")]*)', svg)
    assert set(links) <= set(identifiers)
    assert svg == alpha_curve(CURVE, name)


def test_matplotlib_is_left_as_it_was() -> None:
    with matplotlib.rc_context({"font.size": 23.0}):
        before = dict(matplotlib.rcParams)
        alpha_curve(CURVE, "curve")
        assert dict(matplotlib.rcParams) == before
