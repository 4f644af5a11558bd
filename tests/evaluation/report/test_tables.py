"""Runs are found and chosen, and tables say what their rows say."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from fastcomposer.evaluation.load_results import Collected, collect, difference
from fastcomposer.evaluation.report.paper_claims import deviations, expectations
from fastcomposer.evaluation.report.tables import (
    MINUS,
    Table,
    distance_table,
    make_tables,
    to_csv,
    to_latex,
    written,
)
from fastcomposer.evaluation.report.write_report import results_section, summary_section
from fastcomposer.evaluation.results import Distances, Origin, read_results, write_results
from fastcomposer.evaluation.statistics import Estimate
from fastcomposer.evaluation.store import write_table

Evaluation = tuple[Path, list[Any]]


@pytest.fixture(scope="module")
def collected(whole_evaluation: Evaluation) -> Collected:
    return collect(whole_evaluation[0], alpha=0.6, benchmarks=whole_evaluation[1])


@pytest.fixture(scope="module")
def tables(collected: Collected) -> dict[str, Table]:
    return {table.key: table for table in make_tables(collected)}


def row(table: Table, label: str) -> dict[str, str]:
    """A line as text by heading; published columns under ``paper``."""
    texts = table.texts().loc[label]
    return {("paper " if column.group else "") + column.title: text for column, text in texts.items()}


def test_a_benchmark_of_others_has_a_table_without_published_figures(collected: Collected) -> None:
    coverage = Estimate(0.5, (0.4, 0.6))
    runs = [run for run in collected.runs if run.row.benchmark == "multi_subject"]
    renamed = [replace(run.row, benchmark="multihuman_5", coverage=coverage) for run in runs]
    others = tuple(replace(run, row=row) for run, row in zip(runs, renamed, strict=True))
    table = make_tables(replace(collected, runs=others))[0]
    assert (table.key, table.heading) == ("multihuman_5", "MultiHuman-Testbench, 5 people")
    assert "coverage" in {column.title for column in table.frame}
    assert not any(column.group for column in table.frame)


def test_what_stands_for_a_method_is_chosen_by_settings_alone(collected: Collected) -> None:
    order = ["text_only", "textual_inversion", "dreambooth", "custom_diffusion", "fastcomposer"]
    assert [run.row.method for run in collected.main("multi_subject")] == order
    ours = collected.fastcomposer("multi_subject")
    assert ours is not None
    assert dict(ours.row.settings) == {"alpha": 0.6, "localization": "mini"}
    assert [run.alpha for run in collected.sweep("single_subject")] == [0, 0.4, 0.6, 0.8, 1]
    pair = collected.ablation("multi_subject")
    assert pair is not None
    assert [run.localized for run in pair] == [True, False]
    assert collected.ablation("single_subject") is None


def test_distances_from_real_images_have_a_table_where_there_are_any(
    collected: Collected, tables: dict[str, Table]
) -> None:
    assert "distances" not in tables
    runs = [
        replace(run, row=replace(run.row, distances=Distances(31.25, -0.002, 0.01, 1000, "ClipFeatures")))
        if run.row.method == "fastcomposer"
        else run
        for run in collected.runs
    ]
    table = distance_table(replace(collected, runs=tuple(runs)))
    assert table is not None
    assert [*table.frame.index] == ["Single subject, FastComposer", "Multi subject, FastComposer"]
    line = row(table, "Single subject, FastComposer")
    assert (line["FID"], line["KID"], line["images"]) == ("31.250", f"{MINUS}0.002", "32")
    assert "1,000 held-out images of the data, as ClipFeatures describes them" in table.notes[0]


def test_another_system_is_a_line_that_says_where_it_comes_from_and_changes_no_claim(
    collected: Collected, tables: dict[str, Table]
) -> None:
    best = Estimate(0.9, (0.8, 1.0))
    foreign = [
        replace(
            run,
            row=replace(
                run.row,
                method="ip_adapter",
                settings={"version": "1.10"},
                origin=Origin("commit abc", missing=3),
                scored_by="0a1b",
                identity_preservation=best,
                identity_published=best,
            ),
        )
        for run in collected.runs
        if run.row.method == "text_only"
    ]
    joined = replace(collected, runs=(*collected.runs, *foreign))
    made = {table.key: table for table in make_tables(joined)}
    line = row(made["single_subject"], "IP-Adapter")
    assert line["identity, published protocol"].startswith("0.900")
    assert {line[cost] for cost in ("s / image", "s to personalise", "stored / subject", "peak memory")} == {
        "–"
    }
    for text in (made["single_subject"].notes[-1], results_section(joined), summary_section(joined)):
        assert all(
            stated in text for stated in ("IP-Adapter", "version 1.10", "commit abc", "0a1b", "3 cases")
        )
    assert made["speed"].frame.equals(tables["speed"].frame)
    assert expectations(joined) == expectations(collected)
    assert deviations(joined) == deviations(collected)


@pytest.mark.parametrize(("off", "localized"), [("none", False), (0.0, False), (False, False), (0.1, True)])
def test_localization_may_be_named_or_weighed(
    off: object,
    localized: bool,
    tmp_path: Path,
    write_evaluation: Callable[..., Evaluation],
    made_up: Callable[..., Any],
) -> None:
    settings = {"alpha": 0.6, "localization": off}
    method = made_up("fastcomposer", 0.4, 0.25, settings, benchmarks=("single_subject",))
    folder, _ = write_evaluation(tmp_path, [method])
    assert collect(folder, 0.6).runs[0].localized is localized


def test_main_table_sets_measured_beside_published(tables: dict[str, Table]) -> None:
    single = row(tables["single_subject"], "DreamBooth")
    assert single["references"] == "5"
    assert single["identity, published protocol"] == "0.570 [0.550, 0.590]"
    assert single["identity, corrected"] == "0.470 [0.450, 0.490]"
    assert single["detected"] == "100.0 %"
    assert single["stored / subject"] == "44 MB"
    assert single["paper identity"] == "0.273 [R]"
    assert single["paper s / subject"] == "1,084 [M]"
    assert row(tables["single_subject"], "PortraitBooth")["identity, published protocol"] == "–"
    multi = row(tables["multi_subject"], "FastComposer")
    assert multi["paper identity"] == "0.431 [M]; 0.380 re-run [R]"
    assert [*tables["multi_subject"].strong] == ["FastComposer"]
    assert any("values cannot" in note for note in tables["single_subject"].notes)


def test_scores_of_several_people_are_columns_of_their_table(collected: Collected) -> None:
    share, ratio = Estimate(0.25, (0.1, 0.4)), Estimate(-0.125, (-0.2, 0.0))
    scored = {"coverage": share, "duplicates": share, "head_count": share, "copy_paste_ratio": ratio}
    runs = [
        replace(run, row=replace(run.row, **scored)) if run.row.method == "fastcomposer" else run
        for run in collected.runs
    ]
    single, multi = make_tables(replace(collected, runs=tuple(runs)))[:2]
    line = row(multi, "FastComposer")
    assert (line["coverage"], line["head count"]) == ("25.0 %", "25.0 %")
    assert line["copy-paste ratio"] == f"{MINUS}0.125"
    assert row(multi, "DreamBooth")["coverage"] == "–"
    assert "ID-Conf" not in line  # no run has it
    assert not {"coverage", "copy-paste ratio"} & set(row(single, "FastComposer"))
    assert "Coverage is" in multi.notes[-1]


def test_methods_of_fewer_people_are_compared_on_the_cases_that_both_have(collected: Collected) -> None:
    ours = collected.fastcomposer("multi_subject")
    assert ours is not None and ours.people == 4
    pair = ours.images.subjects.iloc[0]
    few = {*ours.images.case[ours.images.subjects == pair]}
    runs = [
        run if run.row.method == "fastcomposer" else run.on(few & {*run.images.case})
        for run in collected.runs
        if run.row.benchmark == "multi_subject"
    ]
    fewer = replace(collected, runs=tuple(runs))
    table = make_tables(fewer)[0]
    assert (row(table, "DreamBooth")["people"], row(table, "FastComposer")["people"]) == ("2", "4")
    assert any("different numbers of people" in note for note in table.notes)
    assert "people" not in row(make_tables(collected)[1], "FastComposer")
    (same,) = (line for line in summary_section(fewer).splitlines() if "cases of all methods" in line)
    assert same.startswith("| **FastComposer, cases of all methods** | 2 | 1 |")
    assert "cases of all methods" not in summary_section(collected)
    claim = next(
        claim for claim in expectations(fewer) if claim.claim.startswith("Multi subject: FastComposer's")
    )
    own = written(ours.on(few).row.identity_published.mean, "score")
    assert own != written(ours.row.identity_published.mean, "score")
    assert f"Text only: {own} against " in claim.evidence[0]
    alone = replace(collected, runs=tuple(run.on(few) if run.alpha == 1 else run for run in runs))
    assert {len(run.images) for run in alone.sweep("multi_subject")} == {len(few)}


def test_fastcomposer_id_is_a_row_beside_fastcomposer(
    tmp_path: Path, write_evaluation: Callable[..., Evaluation], made_up: Callable[..., Any]
) -> None:
    methods = [
        made_up(name, 0.3, 0.2, {"alpha": alpha}, by_subject=by_subject)
        for name, by_subject in (("fastcomposer", 0.02), ("fastcomposer_id", 0.05))
        for alpha in (0.6, 1.0)
    ]
    evaluation = collect(
        write_evaluation(tmp_path, [*methods, made_up("dreambooth", 0.3, 0.2)])[0], alpha=0.6
    )
    tables = {table.key: table for table in make_tables(evaluation)}
    assert [*tables["single_subject"].frame.index[:3]] == ["DreamBooth", "FastComposer", "FastComposer-ID"]
    assert tables["single_subject"].strong == ["FastComposer", "FastComposer-ID"]
    assert [run.row.method for run in evaluation.sweep("single_subject")] == ["fastcomposer"] * 2
    assert all("FastComposer-ID" not in claim.claim for claim in expectations(evaluation))


@pytest.mark.parametrize(("alpha", "other"), [(0.6, ""), (0.8, " and FastComposer-ID at α = 0.8")])
def test_both_alphas_are_stated_where_they_differ(
    alpha: float,
    other: str,
    tmp_path: Path,
    write_evaluation: Callable[..., Evaluation],
    made_up: Callable[..., Any],
) -> None:
    methods = [
        made_up("fastcomposer", 0.3, 0.2, {"alpha": 0.6}),
        made_up("fastcomposer_id", 0.3, 0.2, {"alpha": alpha}),
    ]
    found = collect(write_evaluation(tmp_path, methods)[0], alpha=0.6)
    stated = f"FastComposer at α = 0.6{other}."
    table = make_tables(found)[0]
    assert f"The table shows {stated}" in table.notes
    assert any("nearest to the α = 0.6" in note for note in table.notes) == bool(other)
    assert stated in summary_section(found) and stated in results_section(found)


def test_settings_tell_runs_of_one_method_apart(
    tmp_path: Path, write_evaluation: Callable[..., Evaluation], made_up: Callable[..., Any]
) -> None:
    methods = [made_up("dreambooth", 0.3, 0.2, {"steps": n, "lr": 1}) for n in (100, 400)]
    folder, _ = write_evaluation(tmp_path, [*methods, made_up("fastcomposer", 0.4, 0.25, {"alpha": 0.7})])
    table = make_tables(collect(folder, alpha=0.5))[0]
    measured = [*table.frame.index][:3]
    assert measured == ["DreamBooth (steps 100)", "DreamBooth (steps 400)", "FastComposer"]
    assert "The table shows FastComposer at α = 0.7." in table.notes
    assert any("nearest to the α = 0.5" in note for note in table.notes)


def test_localization_is_judged_case_by_case(collected: Collected, tables: dict[str, Table]) -> None:
    pair = collected.ablation("multi_subject")
    assert pair is not None
    raised = difference(*pair, "identity")
    assert raised is not None
    assert raised.mean == pytest.approx(0.07)
    # Each run's own interval is wider than that of the difference: the same people are in both.
    assert raised.ci95[1] - raised.ci95[0] < 0.9 * (
        pair[0].row.identity_preservation.ci95[1] - pair[0].row.identity_preservation.ci95[0]
    )
    shown = row(tables["localization"], "Multi subject, difference")["identity, corrected"]
    assert shown.startswith("0.070 [0.0")


def test_speed_is_set_in_proportion_to_ours(tables: dict[str, Table]) -> None:
    inversion = row(tables["speed"], "Textual Inversion")
    assert inversion["s in all"] == "702"
    assert inversion["× FastComposer"] == "351×"
    assert inversion["paper × FastComposer"] == "1,250× [M]"
    assert row(tables["speed"], "FastComposer")["× FastComposer"] == "1×"


def test_csv_keeps_every_digit_interval_and_tag(collected: Collected, tables: dict[str, Table]) -> None:
    lines = list(csv.DictReader(StringIO(to_csv(list(tables.values())))))
    found = [
        line
        for line in lines
        if (line["table"], line["line"]) == ("multi_subject", "FastComposer")
        and line["measure"].startswith("identity")
    ]
    ours = collected.fastcomposer("multi_subject")
    assert ours is not None
    assert [line["source"] for line in found] == ["measured"] * 2 + ["published [M]", "published re-run [R]"]
    assert [line["measure"] for line in found[:2]] == ["identity, published protocol", "identity, corrected"]
    assert float(found[0]["value"]) == ours.row.identity_published.mean
    assert float(found[0]["ci95_low"]) == ours.row.identity_published.ci95[0]
    assert float(found[1]["value"]) == ours.row.identity_preservation.mean


def test_latex_escapes_and_groups(tables: dict[str, Table]) -> None:
    text = to_latex(list(tables.values()))
    assert r"100.0 \%" in text
    assert r"\multicolumn{4}{c}{published: Stable Diffusion 1.5, photos}" in text
    assert r"\label{tab:single-subject}" in text
    assert "351$\\times$" in text
    assert text.count(r"\begin{tabular}") == text.count(r"\end{tabular}") == len(tables)
    assert text.isascii()


@pytest.mark.parametrize(
    ("value", "style", "text"),
    [
        (-0.0004, "score", "0.000"),
        (0.0312, "seconds", "0.031"),
        (1084, "seconds", "1,084"),
        (0, "seconds", "0"),
        (512, "bytes", "512 B"),
        (3_200_000, "bytes", "3.2 MB"),
        (1.4, "ratio", "1.4×"),
    ],
)
def test_figures_are_written_for_readers(value: float, style: Any, text: str) -> None:
    assert written(value, style) == text


def test_rows_of_different_scorers_make_no_table(
    tmp_path: Path, write_evaluation: Callable[..., Evaluation], made_up: Callable[..., Any]
) -> None:
    methods = [made_up("text_only", 0.1, 0.2), made_up("fastcomposer", 0.4, 0.25, {"alpha": 0.7})]
    folder, _ = write_evaluation(tmp_path, methods)
    found = read_results(folder / "results.json")
    rows = [replace(one, scored_by="abc" if one.method == "text_only" else "def") for one in found.rows]
    for file in folder.glob("*/*/scores.parquet"):
        file.unlink()
    write_results(folder / "results.json", rows, {})
    with pytest.raises(ValueError, match=r"text_only and .*alpha_0\.7 .*scored_by: 'abc', not 'def'"):
        collect(folder, alpha=0.6)


def test_rows_that_are_older_than_the_scores_are_refused(
    tmp_path: Path, write_evaluation: Callable[..., Evaluation], made_up: Callable[..., Any]
) -> None:
    folder, _ = write_evaluation(tmp_path, [made_up("text_only", 0.1, 0.2)])
    file = next(folder.glob("single_subject/*/scores.parquet"))
    write_table(file, pq.read_table(file), "key", {"metrics": {"reference_size": 64}})
    with pytest.raises(ValueError, match=r"results\.json: .*text_only-0 was scored anew since"):
        collect(folder, alpha=0.6)


def test_missing_or_empty_results_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no results\.json there; evaluate writes it"):
        collect(tmp_path, alpha=0.6)
    (tmp_path / "results.json").write_text(json.dumps({"schema": 1, "environment": {}, "rows": []}))
    with pytest.raises(ValueError, match="rows: empty"):
        collect(tmp_path, alpha=0.6)


def test_the_readme_has_one_table_of_all_methods(
    whole_evaluation: tuple[Path, list[Any]], tmp_path: Path
) -> None:
    folder = shutil.copytree(whole_evaluation[0], tmp_path / "results")
    results = json.loads((folder / "results.json").read_text())
    results["rows"] = [
        row for row in results["rows"] if (row["method"], row["benchmark"]) != ("dreambooth", "multi_subject")
    ]
    (folder / "results.json").write_text(json.dumps(results))
    lines = summary_section(collect(folder, alpha=0.6)).splitlines()
    assert lines[0] == (
        "| method | people | references | s to personalise | identity, single subject | "
        "prompt, single subject | identity, multi subject | prompt, multi subject |"
    )
    table = [line for line in lines if line.startswith("|")]
    (ours,) = (line for line in table if "**FastComposer**" in line)
    assert ours.startswith("| **FastComposer** | 4 | 1 | 0 | 0.450 [")
    (dreambooth,) = (line for line in table if line.startswith("| DreamBooth "))
    assert dreambooth.endswith("| – | – |")
    assert not any(tag in line for line in table for tag in ("[R]", "[M]", "#"))
