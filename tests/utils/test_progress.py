"""Long work says how far it is, on terminals and in logs."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from fastcomposer.utils.progress import LongWork, tracked


class Clock:
    """Seconds as a test wants them."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr("fastcomposer.utils.progress.time", SimpleNamespace(monotonic=clock))
    return clock


def test_a_log_gets_a_line_now_and_then(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    with LongWork("photos", 1000) as work:
        for _ in range(10):
            clock.now += 20
            work.advance(100)
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines() == [
        "photos: 200/1000 after 0:00:40, about 0:02:40 left",
        "photos: 400/1000 after 0:01:20, about 0:02:00 left",
        "photos: 600/1000 after 0:02:00, about 0:01:20 left",
        "photos: 800/1000 after 0:02:40, about 0:00:40 left",
        "photos: 1000/1000 after 0:03:20",
    ]


def test_what_was_done_before_took_no_time(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    with LongWork("photos", 1000, done=900) as work:
        clock.now = 60
        work.advance(50)
    assert capsys.readouterr().err.splitlines()[0] == "photos: 950/1000 after 0:01:00, about 0:01:00 left"


def test_an_end_before_its_time_is_told(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(KeyError), LongWork("photos", 8) as work:
        work.advance(3)
        raise KeyError
    assert capsys.readouterr().err == "photos: 3/8 after 0:00:00\n"


def test_what_is_soon_done_need_not_be_told(capsys: pytest.CaptureFixture[str]) -> None:
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
