"""Words of a prompt that are marked as people, and advice where marks and images do not match."""

from __future__ import annotations

import re
from dataclasses import dataclass

from fastcomposer.prompt import MARKER, place_markers, split_markers

_WORD = re.compile(r"\w+(?:['’-]\w+)*")
_QUOTED = 4  # words
_ORDINALS = ("first", "second", "third", "fourth", "fifth", "sixth")


@dataclass(frozen=True)
class Word:
    """A word of a prompt, with its offsets in the prompt without markers."""

    text: str
    start: int
    end: int
    subject: int | None  # number of the person that it names, from 1; None where it is not marked


def words_of(prompt: str) -> list[Word]:
    """Divide a prompt into words; markers that follow no word are ignored."""
    text, offsets = split_markers(prompt)
    ends, found, number = set(offsets), [], 0
    for match in _WORD.finditer(text):
        marked = match.end() in ends
        number += marked
        found.append(Word(match.group(), match.start(), match.end(), number if marked else None))
    return found


def toggle_marker(prompt: str, index: int) -> str:
    """Mark or unmark the word at ``index`` of :func:`words_of`; removes markers that follow no word."""
    words = words_of(prompt)
    if not 0 <= index < len(words):
        return prompt
    marked = {word.end for word in words if word.subject is not None} ^ {words[index].end}
    return place_markers(split_markers(prompt)[0], sorted(marked))


def subject_words(prompt: str) -> list[str]:
    """Words that name people, in the order of their markers."""
    return [word.text for word in words_of(prompt) if word.subject is not None]


def advice(prompt: str, depicted: int, most: int | None = None) -> str | None:
    """State what a prompt and images of ``depicted`` people lack; ``None`` where nothing is missing.

    ``most`` is the maximum number of people in one image; ``None`` for no limit.
    """
    text = split_markers(prompt)[0].strip()
    marked, markers = len(subject_words(prompt)), prompt.count(MARKER)
    if not text:
        return "Write a prompt."
    if markers > marked:
        return f"A marker {MARKER} follows no word. Put it directly after a word that names a person."
    merge = " If images show the same person, click “Same as” below them."
    if most is not None and max(marked, depicted) > most:
        excess = "Remove a person." if depicted > most else "Unmark a word."
        return f"This model takes at most {_people(most)}. {excess}{merge if depicted > most else ''}"
    images = f"there are images of {_people(depicted)}" if depicted else "there is no image"
    words = f"{marked or 'no'} word{' is' if marked < 2 else 's are'} marked"
    if marked > depicted:
        return f"{words.capitalize()}, but {images}. Add the {_missing(depicted, marked)}, or unmark a word."
    if depicted > marked:
        click = f"Click the word that names the {_missing(marked, depicted)}, or remove an image."
        return f"{images.capitalize()}, but {words}. {click}{merge if marked else ''}"
    return None


def too_long(unread: str) -> str | None:
    """State which end of a prompt the text encoder does not read; ``None`` where it is empty."""
    if not unread:
        return None
    start = " ".join(unread.split()[:_QUOTED])
    return f"The prompt is too long. The model ignores everything from “{start}” on."


def _people(count: int) -> str:
    return "one person" if count == 1 else f"{count} people"


def _missing(start: int, end: int) -> str:
    names = [_ORDINALS[i] if i < len(_ORDINALS) else f"{i + 1}th" for i in range(start, end)]
    return f"{' and the '.join(names)} person"
