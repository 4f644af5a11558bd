"""Figures of a benchmark: intervals, rows, the results file, and what others published."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from fastcomposer.evaluation.load_results import read_published
from fastcomposer.evaluation.results import (
    SCORES,
    Costs,
    Distances,
    Origin,
    ResultRow,
    ResultsError,
    read_results,
    row_from_scores,
    write_results,
)
from fastcomposer.evaluation.statistics import Estimate, bootstrap, paired_difference

# --- intervals ---------------------------------------------------------------------------------------------


def test_an_interval_is_that_of_the_groups() -> None:
    # Five subjects whose images are all alike: 40 images each say no more than one would.
    levels = np.array([0.1, 0.3, 0.4, 0.6, 0.9])
    found = bootstrap(np.repeat(levels, 40), np.repeat(np.arange(5), 40).tolist())
    once = bootstrap(levels, list(range(5)))
    assert found.mean == pytest.approx(levels.mean())
    assert found.ci95 == pytest.approx(once.ci95)
    error = levels.std() / np.sqrt(5)
    assert found.ci95[1] - found.ci95[0] == pytest.approx(2 * 1.96 * error, rel=0.08)
    as_images = bootstrap(np.repeat(levels, 40), list(range(200)))
    assert as_images.ci95[1] - as_images.ci95[0] < 0.2 * (found.ci95[1] - found.ci95[0])


def test_groups_of_unequal_size_count_by_their_images() -> None:
    found = bootstrap([0.0, 0.0, 0.0, 1.0], ["a", "a", "a", "b"])
    assert found.mean == 0.25
    assert found.ci95 == (0.0, 1.0)  # either group alone is a quarter of the draws


@pytest.mark.parametrize(("people", "least"), [(15, 0.87), (6, 0.8)])
def test_the_interval_of_pairs_covers_the_truth_as_often(people: int, least: float) -> None:
    rng = np.random.default_rng(0)
    pairs = list(combinations(range(people), 2))
    covered = 0
    for trial in range(200):
        of_subject = rng.normal(0.5, 0.2, people)
        values = [of_subject[list(pair)].mean() + rng.normal(0, 0.1) for pair in pairs]
        low, high = bootstrap(values, pairs, seed=trial, resamples=400).ci95
        covered += low <= 0.5 <= high
    assert least <= covered / 200 <= 0.99


def test_people_who_are_always_together_count_as_one() -> None:
    values = np.random.default_rng(2).random(8)
    fives = [tuple(f"{group}{person}" for person in "abcde") for group in range(8)]
    assert bootstrap(values, fives) == bootstrap(values, list(range(8)))


def test_one_group_speaks_of_itself() -> None:
    found = bootstrap([0.0, 1.0] * 50, ["a"] * 100)
    assert found.mean == 0.5
    assert found.ci95[0] == pytest.approx(0.4, abs=0.02)
    assert bootstrap([0.3], ["a"]) == Estimate(0.3, (0.3, 0.3))


def test_a_paired_difference_sees_what_two_intervals_hide() -> None:
    rng = np.random.default_rng(1)
    hard = np.repeat(rng.normal(0.5, 0.3, 12), 8)
    groups = np.repeat(np.arange(12), 8).tolist()
    one, other = hard + 0.05 + rng.normal(0, 0.02, 96), hard + rng.normal(0, 0.02, 96)
    first, second = bootstrap(one, groups), bootstrap(other, groups)
    assert first.ci95[0] < second.ci95[1]
    found = paired_difference(one, other, groups)
    assert found.mean == pytest.approx(0.05, abs=0.01)
    assert found.excludes(0.0)
    assert not found.excludes(0.05)
    assert not paired_difference(other, other, groups).excludes(0.0)
    assert paired_difference(one.tolist(), other.tolist(), groups) == found


@pytest.mark.parametrize(
    ("values", "groups", "message"),
    [
        ([], [], "0 values in 0 groups"),
        ([0.1, 0.2], ["a"], "2 values in 1 groups"),
        ([0.1, float("nan")], ["a", "b"], "value 1 of b is nan"),
    ],
)
def test_bad_values_are_refused(values: list[float], groups: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        bootstrap(values, groups)


def test_a_paired_difference_needs_the_same_cases() -> None:
    with pytest.raises(ValueError, match="2 and 1 values: a paired difference needs the same cases"):
        paired_difference([0.1, 0.2], [0.1], ["a", "b"])


# --- rows --------------------------------------------------------------------------------------------------


def scores(**columns: list[Any]) -> pa.Table:
    """Four images: two pairs, two categories."""
    count = 4
    content: dict[str, list[Any]] = {
        "case": [f"multi_subject/{i}" for i in range(count)],
        "benchmark": ["multi_subject"] * count,
        "method": ["fastcomposer"] * count,
        "settings": ['{"alpha": 0.8, "localization": "mini"}'] * count,
        "category": ["style", "context"] * 2,
        "subjects": [["a", "b"], ["a", "b"], ["a", "c"], ["a", "c"]],
        "seed": [42, 46, 42, 46],
        "identity": [0.2, 0.4, -0.1, 0.5],
        "identity_published": [0.3, 0.4, 0.0, 0.5],
        "detected": [2, 3, 1, 0],
        "prompt_consistency": [0.25, 0.35, 0.3, 0.3],
        "copy_paste": [0.1, None, 0.3, None],
        "seconds": [1.0, 2.0, 1.0, 2.0],
        "unet_calls": [22.5, 22.5, 60.0, 60.0],
        "image": [f"images/{i}.png" for i in range(count)],
    } | columns
    return pa.table({name: pa.array(content[name], SCORES.field(name).type) for name in content})


COSTS = Costs(5, 12.5, 4096, 10**9)


def test_a_row_by_hand() -> None:
    row = row_from_scores(scores(), COSTS)
    assert (row.benchmark, row.method) == ("multi_subject", "fastcomposer")
    assert row.settings == {"alpha": 0.8, "localization": "mini"}
    assert (row.images, row.reference_images, row.unet_calls) == (4, 5, 165)
    assert (row.seconds_per_image, row.personalization_seconds_per_subject) == (1.5, 12.5)
    assert (row.stored_bytes_per_subject, row.peak_memory_bytes) == (4096, 10**9)
    assert row.identity_preservation.mean == pytest.approx(0.25)
    assert row.identity_preservation.ci95 == pytest.approx((0.2, 0.3))  # the means of the two pairs
    assert row.prompt_consistency.mean == pytest.approx(0.3)
    assert row.identity_published.mean == pytest.approx(0.3)
    assert row.detection_rate == Estimate(0.5, (0.0, 1.0))
    assert row.copy_paste is not None
    assert row.copy_paste.mean == pytest.approx(0.2)
    assert list(row.by_category) == ["style", "context"]
    assert row.by_category["style"]["identity_preservation"].mean == pytest.approx(0.05)
    assert row.by_category["context"]["prompt_consistency"].mean == pytest.approx(0.325)


def test_scores_of_several_people_are_optional(tmp_path: Path) -> None:
    row = row_from_scores(scores(), COSTS)
    table = scores().append_column("coverage", pa.array([1.0, 0.0, 1.0, 1.0]))
    table = table.append_column("confusion", pa.array([None, None, 0.5, 0.7], pa.float64()))
    found = row_from_scores(table.append_column("duplicates", pa.array([None] * 4, pa.float64())), COSTS)
    assert found.coverage is not None and found.coverage.mean == 0.75
    assert found.confusion is not None and found.confusion.mean == pytest.approx(0.6)
    assert replace(found, coverage=None, confusion=None) == row
    assert "coverage" not in row.as_dict() and "head_count" not in found.as_dict()
    write_results(tmp_path / "results.json", [row, found], {})
    assert read_results(tmp_path / "results.json").rows == (row, found)


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (scores().drop_columns(["identity"]), "column identity: missing; there are case, "),
        (scores(identity=[None, 0, 0, 0]), "column identity: 1 values are missing"),
        (scores(method=["fastcomposer"] * 3 + ["dreambooth"]), "column method: one value .*dreambooth"),
        (scores(settings=["[]"] * 4), "column settings: .*object"),
        (scores(settings=["alpha"] * 4), "column settings: Invalid JSON"),
        (scores().slice(0, 0), "no rows"),
        (scores().set_column(6, "seed", pa.array(["42"] * 4)), "column seed: of type string, not int64"),
    ],
)
def test_defects_of_scores_are_named(table: pa.Table, message: str) -> None:
    with pytest.raises(ResultsError, match=f"scores: {message}"):
        row_from_scores(table, COSTS)


# --- the file ----------------------------------------------------------------------------------------------


def result(**changes: Any) -> ResultRow:
    estimate = Estimate(0.5, (0.4, 0.6))
    row = ResultRow(
        *("single_subject", "text_only", {"alpha": 0}, 0, 48, estimate, estimate, 0.5, 0, 0, 10, 2880),
        identity_published=Estimate(0.6, (0.5, 0.7)),
    )
    return replace(row, **changes)


def test_the_file_is_the_contract(tmp_path: Path) -> None:
    file = tmp_path / "deep" / "results.json"
    write_results(file, [result()], {"torch": "2.14", "threads": 2})
    assert json.loads(file.read_text()) == {
        "schema": 1,
        "environment": {"torch": "2.14", "threads": 2},
        "rows": [
            {
                "benchmark": "single_subject",
                "method": "text_only",
                "settings": {"alpha": 0},
                "reference_images": 0,
                "images": 48,
                "identity_preservation": {"mean": 0.5, "ci95": [0.4, 0.6]},
                "prompt_consistency": {"mean": 0.5, "ci95": [0.4, 0.6]},
                "seconds_per_image": 0.5,
                "personalization_seconds_per_subject": 0,
                "stored_bytes_per_subject": 0,
                "peak_memory_bytes": 10,
                "unet_calls": 2880,
                "identity_published": {"mean": 0.6, "ci95": [0.5, 0.7]},
            }
        ],
    }


def test_what_is_written_reads_back(tmp_path: Path) -> None:
    file = tmp_path / "results.json"
    distances = Distances(12.5, -0.001, 0.01, 1000, "InceptionFeatures")
    measured = result(measures={"colour": Estimate(0.5, (0.4, 0.6))})
    further = result(distances=replace(distances, scored_by="abc"), scored_by="def")
    foreign = result(method="uno", settings={"version": "1.0"}, origin=Origin("commit abc", 3))
    rows = (
        result(),
        foreign,
        row_from_scores(scores(), COSTS),
        result(distances=distances),
        further,
        measured,
    )
    write_results(file, rows, {"device": "cpu"})
    found = read_results(file)
    assert found.rows == rows
    assert found.environment == {"device": "cpu"}
    with pytest.raises(FileNotFoundError, match=r"results .*missing\.json"):
        read_results(tmp_path / "missing.json")


def test_nothing_bad_is_written(tmp_path: Path) -> None:
    file = tmp_path / "results.json"
    write_results(file, [result()], {})
    before = file.read_bytes()
    bad = Estimate(float("nan"), (0.0, 1.0))
    with pytest.raises(ResultsError, match=r"rows\[1\]\.prompt_consistency\.mean: .*nan"):
        write_results(file, [result(), result(prompt_consistency=bad)], {})
    with pytest.raises(ResultsError, match="not plain values"):
        write_results(file, [result(settings={"alpha": Path("x")})], {})
    assert file.read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["results.json"]


def edited(row: dict[str, Any], path: str, value: Any) -> None:
    *parents, last = path.split(".")
    for parent in parents:
        row = row[parent]
    if value is None:
        del row[last]
    else:
        row[last] = value


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("method", "uno", "method: uno: one of fastcomposer"),
        ("method", "../uno", r"method: .*pattern"),
        ("origin", {"note": "x"}, "method: fastcomposer: one of .* another"),
        ("benchmark", "triple", "benchmark: .*single_subject.*, not 'triple'"),
        ("settings", [], "settings: "),
        ("images", None, "images: .*required"),
        ("seconds_per_image", -1, "seconds_per_image: .*, not -1"),
        ("speed", 3, "speed: Unexpected"),
        ("identity_preservation.ci95", [0.4], r"identity_preservation\.ci95\[1\]: .*required"),
        ("distances", {"fid": 1.0}, r"distances\.features: .*required"),
        ("measures", {"colour": {"mean": 1.0}}, r"measures\.colour\.ci95: .*required"),
        ("copy_paste.ci95", [0.6, 0.4], r"copy_paste\.ci95: two numbers, the lower first"),
    ],
)
def test_defects_of_a_file_are_named(tmp_path: Path, path: str, value: Any, message: str) -> None:
    file = tmp_path / "results.json"
    write_results(file, [result(), row_from_scores(scores(), COSTS)], {})
    content = json.loads(file.read_text())
    edited(content["rows"][1], path, value)
    file.write_text(json.dumps(content))
    with pytest.raises(ResultsError, match=rf"{file}: .*rows\[1\](\.|: ){message}"):
        read_results(file)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "Invalid JSON"),
        ("[]", ".*an object"),
        ('{"schema": 2, "environment": {}, "rows": []}', "schema: .* 1, not 2"),
        ('{"schema": 1, "rows": []}', "environment: Field required"),
    ],
)
def test_defects_around_the_rows_are_named(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "results.json"
    file.write_text(text)
    with pytest.raises(ResultsError, match=f"{file}: {message}"):
        read_results(file)


# --- what others published ---------------------------------------------------------------------------------


def test_published_figures_carry_their_tags() -> None:
    figures = read_published()
    known = {(f.benchmark, f.method, f.measure, f.note): (f.value, f.tag) for f in figures}
    assert len(known) == len(figures) == 40
    single = ("single_subject", "fastcomposer")
    assert known[(*single, "identity", "")] == (0.514, "R")
    assert known[(*single, "prompt", "")] == (0.243, "R")
    assert known[(*single, "seconds", "")] == (2, "M")
    assert known["single_subject", "dreambooth", "memory", ""] == (40e9, "M")
    assert known["multi_subject", "fastcomposer", "identity", ""] == (0.431, "M")
    assert known["multi_subject", "fastcomposer", "identity", "re-run"] == (0.38, "R")
    assert known["multi_subject", "uniportrait", "identity", "own protocol, with its router"] == (0.673, "R")
    assert known["single_subject", "portrait_booth", "identity", ""] == (0.657, "R")
    assert Counter(f.tag for f in figures) == {"R": 22, "M": 18}
