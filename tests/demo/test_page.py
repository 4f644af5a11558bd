"""Handlers of the page, without a browser."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import gradio as gr
import pytest
from PIL import Image

from fastcomposer.demo import parts
from fastcomposer.demo.examples import Example
from fastcomposer.demo.page import NUM_SHOWN, STRIP, Page
from fastcomposer.demo.studio import Order, Studio
from fastcomposer.demo.uploads import PageLimits, Person, Reference, read_reference
from fastcomposer.utils.provenance import read_metadata

SETTINGS: dict[str, Any] = {"seed": 3, "steps": 2, "guidance": 3.0, "negative": ""}


@pytest.fixture
def page(studio: Studio, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Page:
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "files"))
    return Page(studio, PageLimits(steps=10, images=2))


@pytest.fixture
def two(examples: list[Example]) -> list[Person]:
    return [(read_reference(file, PageLimits()),) for file in examples[0].references]


def event(**data: Any) -> gr.EventData:
    return gr.EventData(None, data)


def test_images_are_added_in_order_or_refused(page: Page, two: list[Person], tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("x")
    (man,), (woman,) = two
    files = [str(man.file), str(tmp_path / "notes.txt"), str(woman.file)]
    tray, refused, people, chips, notice, cards = page.add(files, "", [])
    assert tray is None
    assert [[image.name for image in person] for person in people] == [[man.name], [woman.name]]
    assert "notes.txt cannot be read as an image" in refused
    assert chips == ""
    assert "Write a prompt" in notice
    assert cards.count("<li>") == 2
    assert page.take_photo(None, "", people)[2] == people


def test_images_of_the_same_person_are_one_card(page: Page, two: list[Person]) -> None:
    together, _, notice, cards = page.arrange("a man <|image|>", two, event(act="join", index=1))
    assert together == [(two[0][0], two[1][0])]
    assert (cards.count("<li>"), cards.count("<img")) == (1, 2)
    assert "<p" not in notice
    apart, _, notice, cards = page.arrange("a man <|image|>", together, event(act="divide", index=0))
    assert apart == two
    assert cards.count("<li>") == 2
    assert "If images show the same person, click" in notice


def test_what_people_type_is_escaped() -> None:
    assert "<script" not in parts.chips("a <script>alert(1)</script> man <|image|>")
    evil = Reference(Path("x"), '"><img src=x onerror=alert(1)>', "", "data:,")
    assert "<img src=x" not in parts.cards([(evil,)])


def test_progress_comes_before_images(page: Page, two: list[Person], examples: list[Example]) -> None:
    *on_the_way, last = page.generate(examples[0].prompt, two, *SETTINGS.values(), 0.5, 2)
    assert all(answer[1:] == on_the_way[0][1:] and len(answer) == 2 + NUM_SHOWN for answer in on_the_way)
    assert all(" of 2 steps" in answer[0] for answer in on_the_way)
    line, stop, placeholder, verdict, column, images, gallery, looking, looks, save = last
    assert (line, stop["visible"]) == ("", False)
    assert (placeholder["visible"], column["visible"], looking["visible"]) == (False, True, True)
    assert "<p" not in verdict
    assert [one.seed for one in images] == [3, 4]
    assert [caption for _, caption in gallery["value"]] == ["seed 3 · α 0.5", "seed 4 · α 0.5"]
    assert [caption for _, caption in looks["value"]] == ["1 · man", "2 · woman"]
    metadata: Any = read_metadata(Path(save["value"]))
    assert (metadata["seed"], metadata["alpha"]) == (3, 0.5)
    other: Any = read_metadata(
        Path(page.choose(images, gr.SelectData(None, {"index": 1, "value": None}))[2]["value"])
    )
    assert other["seed"] == 4


def test_a_comparison_gives_its_alpha(page: Page, two: list[Person], examples: list[Example]) -> None:
    *_, last = page.compare(examples[0].prompt, two, *SETTINGS.values())
    strip = last[4]
    assert [one.alpha for one in strip] == [*STRIP]
    alpha, *shown = page.choose_alpha(strip, gr.SelectData(None, {"index": 2, "value": None}))
    assert alpha == STRIP[2]
    assert len(shown) == NUM_SHOWN
    assert shown[3] == [strip[2]]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"prompt": "a man"}, "There are images of 2 people, but no word is marked"),
        ({"seed": None}, "The seed must be an integer from 0"),
        ({"seed": -1}, "The seed must be an integer from 0"),
        ({"steps": 11}, "The number of steps must lie between 1 and 10"),
    ],
)
def test_invalid_requests_are_refused_before_the_queue(
    page: Page, two: list[Person], examples: list[Example], changes: dict[str, Any], words: str
) -> None:
    wanted = {"prompt": examples[0].prompt, "people": two, **SETTINGS}
    assert "Waiting in the queue" in page.begin(*wanted.values())
    with pytest.raises(gr.Error, match=words):
        page.begin(*{**wanted, **changes}.values())


def test_expired_images_are_refused(page: Page, two: list[Person], examples: list[Example]) -> None:
    gone = [(replace(two[0][0], file=Path("gone.png")),), two[1]]
    with pytest.raises(ValueError, match="An uploaded image has expired"):
        page.order(examples[0].prompt, gone, **SETTINGS)


def test_blocked_images_are_not_saved(page: Page, order: Callable[..., Order]) -> None:
    from fastcomposer.demo.studio import GeneratedImage

    black = GeneratedImage(order(), Image.new("RGB", (64, 64)), 0.5, 1, withheld=True)
    _, verdict, _, _, _, looking, _, save = page.shown([black, replace(black, withheld=False)])
    assert "The safety checker blocked 1 of 2" in verdict
    assert (looking["visible"], save["visible"]) == (False, False)


def test_closing_the_page_cancels_the_request(page: Page, two: list[Person], examples: list[Example]) -> None:
    answers: Any = page.generate(examples[0].prompt, two, *{**SETTINGS, "steps": 10}.values(), 0.5, 2)
    next(answers)
    answers.close()  # as Gradio does
    assert page.studio.generate(
        page.order(examples[0].prompt, two, **SETTINGS), [1.0], 1, lambda done, total: None
    )
