"""Tables and the last lines of a command."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from rich.table import Table

from fastcomposer.cli.common import conclude, show_table

Run = Callable[..., tuple[int, str, str]]


def test_paths_are_short_inside_the_working_directory_and_exist(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("outputs").mkdir()
    conclude({"results": tmp_path / "outputs", "gone": "nowhere", "system": "/tmp", "none": None})
    assert capsys.readouterr().err == "\n  results  outputs\n  system   /tmp\n"


def test_a_log_shows_every_cell(capsys: pytest.CaptureFixture[str]) -> None:
    names = [f"a method with a name of {length} letters, {'x' * length}" for length in (3, 80)]
    table = Table("method", "seconds until the first image of a new person")
    for name in names:
        table.add_row(name, "61,145")
    show_table(table)
    lines = capsys.readouterr().out.splitlines()
    assert [name for name in names if any(name in line for line in lines)] == names
    assert len({len(line) for line in lines}) == 1
