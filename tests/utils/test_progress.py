"""Progress of long work, on terminals and in logs."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from fastcomposer.utils.progress import LongWork, tracked


def test_a_log_gets_a_line_now_and_then(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = 0.0
    clock = SimpleNamespace(monotonic=lambda: now)
    monkeypatch.setattr("fastcomposer.utils.progress.time", clock)
    with pytest.raises(KeyError), LongWork("photos", 1000, done=600) as work:  # those took no time
        for _ in range(3):
            now += 20
            work.advance(100)
        now += 1
        work.advance(50)
        raise KeyError
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines() == [
        "photos: 800/1000 after 0:00:40, about 0:00:40 left",
        "photos: 950/1000 after 0:01:01",
    ]


def test_short_work_prints_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    assert list(tracked(range(3), "images", transient=True)) == [0, 1, 2]
    assert capsys.readouterr() == ("", "")
    assert list(tracked(iter("ab"), "letters", total=2)) == ["a", "b"]
    assert capsys.readouterr() == ("", "letters: 2/2 after 0:00:00\n")


def test_a_terminal_gets_a_bar(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")  # as rich is told that there is a terminal
    assert list(tracked(range(3), "images")) == [0, 1, 2]
    out, err = capsys.readouterr()
    assert out == ""
    assert "━" in err and "3/3" in err and "after" not in err
