"""Marking the words that name people, and telling when words and images do not match."""

from __future__ import annotations

import re
from dataclasses import dataclass

from fastcomposer.prompt import MARKER, place_markers, split_markers

_WORD = re.compile(r"\w+(?:['’-]\w+)*")
_QUOTED = 4  # words
_ORDINALS = ("first", "second", "third", "fourth", "fifth", "sixth")


@dataclass(frozen=True)
class Word:
    """A word of a prompt.

    Attributes:
        text: As written.
        start: Offset of its first character in the prompt without markers.
        end: Offset after its last character.
        subject: Number of the person that it names, from 1; ``None`` where it is not marked.
    """

    text: str
    start: int
    end: int
    subject: int | None


def words_of(prompt: str) -> list[Word]:
    """Divide a prompt into words; markers that stand after none are left out.

    Args:
        prompt: Text with markers.
    """
    text, ends = split_markers(prompt)
    found, number = [], 0
    for match in _WORD.finditer(text):
        marked = match.end() in ends
        number += marked
        found.append(Word(match.group(), match.start(), match.end(), number if marked else None))
    return found


def toggle_marker(prompt: str, place: int) -> str:
    """Mark a word of a prompt, or take its mark away.

    Args:
        prompt: Text with markers.
        place: Number of the word in :func:`words_of`, from 0; another number changes nothing.

    Returns:
        The prompt with one marker more or less; those that stand after no word are gone.
    """
    words = words_of(prompt)
    if not 0 <= place < len(words):
        return prompt
    marked = {word.end for word in words if word.subject is not None} ^ {words[place].end}
    return place_markers(split_markers(prompt)[0], sorted(marked))


def subject_words(prompt: str) -> list[str]:
    """Words that name people, in the order of their markers."""
    return [word.text for word in words_of(prompt) if word.subject is not None]


def advice(prompt: str, depicted: int, most: int | None = None) -> str | None:
    """Say what is to be done before a prompt can be drawn.

    Args:
        prompt: Text with markers.
        depicted: Number of people of whom there are images.
        most: Most people in one image; ``None`` for any number.

    Returns:
        One or two sentences; ``None`` where nothing is.
    """
    text = split_markers(prompt)[0].strip()
    marked, markers = len(subject_words(prompt)), prompt.count(MARKER)
    if not text:
        return "Write what the image should show."
    if markers > marked:
        return f"A marker {MARKER} stands after no word. It belongs directly after one that names a person."
    if most is not None and max(marked, depicted) > most:
        same = " Say which images are of the same person, or remove some." if depicted > most else ""
        return f"At most {_people(most)} fit into one image here.{same}"
    if marked > depicted:
        missing = _ordinals(depicted, marked)
        counts = f"{_marked(marked)}, but there {_images(depicted)}"
        return f"{counts}. Add one of the {missing}, or unmark a word."
    if depicted > marked:
        missing = _ordinals(marked, depicted)
        same = " If images show the same person, say so below them." if marked else ""
        return (
            f"There {_images(depicted)}, but {_marked(marked).lower()}. "
            f"Click the word that names the {missing}, or remove an image.{same}"
        )
    return None


def too_long(unread: str) -> str | None:
    """Say what of a prompt the model does not read, which does not keep anybody from drawing it.

    Args:
        unread: The end of the prompt that is not read.

    Returns:
        A sentence; ``None`` where all is read.
    """
    if not unread:
        return None
    begin = " ".join(unread.split()[:_QUOTED])
    return f"This is longer than the model reads: it does not see “{begin}” and what follows."


def _people(count: int) -> str:
    return "one person" if count == 1 else f"{count} people"


def _marked(count: int) -> str:
    if count == 0:
        return "No word is marked"
    return "1 word is marked" if count == 1 else f"{count} words are marked"


def _images(count: int) -> str:
    if count == 0:
        return "is no image"
    return f"are images of {_people(count)}"


def _ordinals(start: int, end: int) -> str:
    names = [_ORDINALS[i] if i < len(_ORDINALS) else f"{i + 1}th" for i in range(start, end)]
    return f"{' and the '.join(names)} person"
