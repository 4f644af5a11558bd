"""The reports of an evaluation, and of a base with some of its parts."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from fastcomposer.cli import card, report
from fastcomposer.evaluation.results import ResultRow, write_results
from fastcomposer.evaluation.statistics import Estimate
from fastcomposer.miniworld.detector import HeadDetector
from fastcomposer.miniworld.embedder import IdentityEmbedder

Run = Callable[..., tuple[int, str, str]]


def test_the_card_measures_the_parts_that_exist(run: Run) -> None:
    HeadDetector(channels=(8, 8, 8, 8), head_channels=8).save_pretrained("base/detector")
    IdentityEmbedder(16, 16, 1.1, (8, 8, 8)).save_pretrained("base/embedder")
    status, out, _ = run(card, "model.base=base", "num_scenes=20", "card=base/README.md")
    assert status == 0 and "missing" in out
    written = json.loads(Path("outputs/card/card.json").read_text())
    missing = ["tokenizer", "vae", "text_encoder", "image_encoder", "clip", "unet", "scheduler"]
    assert written["missing"] == missing
    rows = {(row["part"], row["measure"]): row for row in written["rows"]}
    assert rows["detector", "recall at IoU 0.5, 1 subject"]["at_least"] == 0.97
    assert rows["embedder", "verification AUC, 30 % of both heads hidden"]["at_least"] == 0.95
    assert 0 <= rows["embedder", "verification AUC, other clothing and expression"]["value"] <= 1
    written_card = Path("base/README.md").read_text()
    assert "This file is generated" in written_card
    assert json.loads(Path("base/training.json").read_text()) == []


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("sweep=nowhere", "sweep=nowhere: no such folder"),
        ("results=nowhere", "results=nowhere: no results.json there"),
    ],
)
def test_what_is_missing_is_named(override: str, message: str, run: Run) -> None:
    assert message in run(report, override)[2]


def test_results_are_reported_and_go_into_the_readme_and_the_page(run: Run) -> None:
    score = Estimate(0.4, (0.3, 0.5))
    row = ResultRow(
        "single_subject", "text_only", {}, 0, 48, score, score, 2.0, 0.0, 0, 0, 900, identity_published=score
    )
    write_results("results/results.json", [row], {"device": "abacus", "cpus": 2})
    status, out, _ = run(report, "results=results", "formats=[md,html]", "~benchmark")
    assert (status, out.split()) == (0, ["results/tables.md", "results/report.html"])
    assert "0.400 [0.300, 0.500]" in Path("results/tables.md").read_text()
    assert "abacus" in Path("results/report.html").read_text()
    Path("results/tables.md").unlink()
    call = ["results=results", "~benchmark", "readme=README.md", "document=page.md"]
    section = "a\n<!-- results: written by make results -->\n<!-- results: end -->\nb\n"
    Path("page.md").write_text(section)
    Path("README.md").write_text("nothing\n")
    assert "readme=README.md: no section results" in run(report, *call)[2]
    assert not Path("results/tables.md").exists()
    Path("README.md").write_text(section)
    assert run(report, *call)[0] == 0
    for name, line in (
        ("README.md", "| Text only | – | 0 | 0 | 0.400 [0.300, 0.500] | 0.400 [0.300, 0.500] |"),
        ("page.md", "| Text only | 0 | 0.400 [0.300, 0.500] | 0.400 [0.300, 0.500] | 2.0 | 0 | 0.039 [R] |"),
    ):
        written = Path(name).read_text()
        assert written.startswith("a\n") and written.endswith("b\n")
        assert line in written and "Measured on abacus, 2 cores" in written
