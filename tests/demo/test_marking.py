"""Words of a prompt, their marks, and the advice."""

from __future__ import annotations

import pytest

from fastcomposer.demo.marking import advice, toggle_marker, words_of
from fastcomposer.prompt import MARKER

TWO = f"a man {MARKER} and a woman {MARKER} on the beach"


def test_words_have_offsets_and_subjects() -> None:
    words = words_of(f"Ann's man {MARKER}, a well-known woman{MARKER}!")
    assert [word.text for word in words] == ["Ann's", "man", "a", "well-known", "woman"]
    assert [word.subject for word in words] == [None, 1, None, None, 2]
    text = "Ann's man, a well-known woman!"
    assert [text[word.start : word.end] for word in words] == [word.text for word in words]


def test_a_click_marks_and_another_unmarks() -> None:
    plain = "a man and a woman on the beach"
    one = toggle_marker(plain, 4)
    assert one == f"a man and a woman {MARKER} on the beach"
    assert toggle_marker(one, 1) == TWO
    assert toggle_marker(toggle_marker(TWO, 1), 4) == plain
    assert toggle_marker(plain, 99) == plain
    assert toggle_marker("", 0) == ""


def test_marking_keeps_what_stands_around() -> None:
    assert toggle_marker("the old man, smiling.", 2) == f"the old man {MARKER}, smiling."
    assert toggle_marker("Zoë 和 a man", 0) == f"Zoë {MARKER} 和 a man"
    # Marking a word removes a marker that follows no word.
    assert toggle_marker(f"{MARKER} a man, {MARKER} smiling", 1) == f" a man {MARKER}, smiling"


@pytest.mark.parametrize(
    ("prompt", "depicted", "start"),
    [
        (TWO, 2, None),
        ("a beach", 0, None),
        (" ", 0, "Write a prompt."),
        (TWO, 1, "2 words are marked, but there are images of one person. Add the second person"),
        (TWO, 0, "2 words are marked, but there is no image. Add the first and the second person"),
        ("a man", 1, "There are images of one person, but no word is marked."),
        (TWO, 3, "There are images of 3 people, but 2 words are marked."),
        (f"{MARKER} a man", 1, f"A marker {MARKER} follows no word."),
        (f"{TWO}, a man {MARKER}, a boy {MARKER}", 2, "This model takes at most 3 people. Unmark a word."),
        (TWO, 4, "This model takes at most 3 people. Remove a person."),
    ],
)
def test_advice_names_what_is_missing(prompt: str, depicted: int, start: str | None) -> None:
    found = advice(prompt, depicted, most=3)
    assert found is None if start is None else str(found).startswith(start)
