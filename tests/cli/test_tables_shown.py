"""Tables of commands in a terminal and in a log."""

from __future__ import annotations

import pytest
from rich.table import Table

from fastcomposer.cli.common import show_table


def test_a_log_shows_every_cell_whole(capsys: pytest.CaptureFixture[str]) -> None:
    table = Table("method", "seconds until the first image of a new person")
    names = [f"a method with a name of {length} letters, {'x' * length}" for length in (3, 80)]
    for name in names:
        table.add_row(name, "61,145")
    show_table(table)
    lines = capsys.readouterr().out.splitlines()
    assert [name for name in names if any(name in line for line in lines)] == names
    assert len({len(line) for line in lines}) == 1


def test_a_narrow_table_stays_narrow(capsys: pytest.CaptureFixture[str]) -> None:
    table = Table("a")
    table.add_row("1")
    show_table(table)
    assert max(map(len, capsys.readouterr().out.splitlines())) == 5
