"""Tables of Markdown, and sections that commands write."""

from __future__ import annotations

from pathlib import Path

import pytest

from fastcomposer.utils.markdown import check_section, markdown_table, replace_section, write_section

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


def test_cells_of_a_table_are_escaped() -> None:
    rows = [("a|b", 1), (None, 2.5)]
    assert markdown_table(("what", "value"), rows, ("---", "---:")).splitlines() == [
        "| what | value |",
        "| --- | ---: |",
        r"| a\|b | 1 |",
        "|  | 2.5 |",
    ]
    assert markdown_table(("a",), []) == "| a |\n| --- |"
