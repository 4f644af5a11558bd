"""Sections of a document that commands write."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from fastcomposer.evaluation.load_results import collect
from fastcomposer.evaluation.report.readme import (
    check_section,
    replace_section,
    results_section,
    summary_section,
    write_section,
)

EMPTY = "# A\n<!-- bench: written by make bench -->\n<!-- bench: end -->\nB\n"


def test_a_section_goes_between_its_markers(tmp_path: Path) -> None:
    once = replace_section(EMPTY, "bench", "figures")
    assert once == EMPTY.replace("bench -->\n<!--", "bench -->\nfigures\n<!--")
    assert replace_section(once, "bench", "others") == once.replace("figures", "others")
    with pytest.raises(ValueError, match="<!-- results: written by make results -->"):
        replace_section(EMPTY, "results", "figures")
    file = tmp_path / "speed.md"
    with pytest.raises(FileNotFoundError, match=r"document=.*speed\.md"):
        check_section("document", file, "bench")
    file.write_text(EMPTY)
    check_section("document", file, "bench")
    with pytest.raises(ValueError, match=r"readme=.*speed\.md"):
        check_section("readme", file, "results")
    write_section(file, "bench", "figures")
    assert file.read_text() == once


def test_results_are_narrow_enough_to_read(whole_evaluation: tuple[Path, list[Any]]) -> None:
    text = results_section(collect(whole_evaluation[0], alpha=0.6))
    lines = text.splitlines()
    headings = [line for line in lines if line.startswith("#")]
    assert headings == [
        "## Single subject, 32 images per method",
        "## Multi subject, 24 images per method",
        "## Cross-attention localization",
    ]
    head = "| method | references | identity, published protocol | prompt | s / image | s to personalise | "
    assert lines.count(head + "published: identity | published: prompt |") == 2
    ours = next(line for line in lines if line.startswith("| **FastComposer** "))
    assert ours.startswith("| **FastComposer** | 1 | 0.550 [")
    assert ours.endswith("| 2.0 | 0 | 0.514 [R] | 0.243 [R] |")
    assert "IP-Adapter" not in text  # only what was measured
    gain = text[text.index("## Cross-attention localization") :]
    assert "| training | identity, corrected |" in gain and "| Multi subject, with | 0.450 [" in gain
    assert "FastComposer at α = 0.6." in text


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
        "| method | references | s to personalise | identity, single subject | prompt, single subject | "
        "identity, multi subject | prompt, multi subject |"
    )
    table = [line for line in lines if line.startswith("|")]
    (ours,) = (line for line in table if "**FastComposer**" in line)
    assert ours.startswith("| **FastComposer** | 1 | 0 | 0.450 [")
    (dreambooth,) = (line for line in table if line.startswith("| DreamBooth "))
    assert dreambooth.endswith("| – | – |")
    assert not any(tag in line for line in table for tag in ("[R]", "[M]", "#"))
