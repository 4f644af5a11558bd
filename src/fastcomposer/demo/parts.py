"""Pieces of the page as HTML; whatever people typed or named is escaped."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from fastcomposer.demo.marking import words_of
from fastcomposer.demo.uploads import PageLimits, Person
from fastcomposer.prompt import split_markers

ON_CLICK = """
const chosen = { key: null };
element.addEventListener('click', event => {
  const button = event.target.closest('button[data-act]');
  if (!button) return;
  chosen.key = `button[data-act="${button.dataset.act}"][data-place="${button.dataset.place}"]`;
  trigger('click', { act: button.dataset.act, place: Number(button.dataset.place) });
});
watch('value', () => {
  const again = chosen.key && element.querySelector(chosen.key);
  if (again && !again.disabled) again.focus({ preventScroll: true });
  chosen.key = null;
});
"""
"""Script of the pieces with buttons: says which was pressed, and keeps the keyboard there when redrawn."""

ON_PROGRESS = """
let shown = false;
watch('value', () => {
  const bar = element.querySelector('progress');
  const box = bar && bar.getBoundingClientRect();
  if (bar && !shown && (box.top < 0 || box.bottom > window.innerHeight - 80))
    element.scrollIntoView({ behavior: 'smooth', block: 'center' });
  shown = Boolean(bar);
});
"""
"""Script of the progress bar: brings it into view when it appears, on phones above all."""

PLACEHOLDER = (
    '<div class="fc-empty"><p>Images appear here.</p>'
    "<p>Start with one of the examples on top, or with images of your own.</p></div>"
)
"""What stands where images will."""
WAITING = (
    '<div class="fc-progress" role="status"><progress aria-label="Drawing"></progress>'
    "<span>Waiting for its turn</span></div>"
)
"""What stands where a drawing will tell how far it is."""


def header(subtitle: str) -> str:
    """Title of the page.

    Args:
        subtitle: What is loaded.
    """
    return (
        '<header class="fc-header"><h1>FastComposer</h1>'
        "<p>New images of people from one image each. "
        "Nothing is trained: add images, say who is who, draw.</p>"
        f'<p class="fc-loaded">{escape(subtitle)}</p></header>'
    )


def consent(limits: PageLimits) -> str:
    """Whom to depict, and what becomes of the images."""
    return (
        '<p class="fc-consent"><strong>Only people who have agreed.</strong> '
        "Images stay on the machine that runs this page, and are deleted after "
        f"{limits.minutes:g} minutes. Every drawn image says in its file that it was generated.</p>"
    )


def section(title: str, hint: str) -> str:
    """Heading with a sentence below it."""
    return f'<div class="fc-section"><h2>{escape(title)}</h2><p>{escape(hint)}</p></div>'


def cards(people: Sequence[Person]) -> str:
    """The people in order, each with their images, their number and what can be done with them."""
    if not people:
        return ""
    last = len(people) - 1
    items = "".join(
        f'<li>{_images(person, place)}<span class="fc-number" aria-hidden="true">{place + 1}</span>'
        '<div class="fc-tools">'
        + _tool("left", place, "←", f"Move person {place + 1} to the left", place == 0)
        + _tool("remove", place, "✕", f"Remove person {place + 1}", False)
        + _tool("right", place, "→", f"Move person {place + 1} to the right", place == last)
        + "</div>"
        + _sameness(person, place)
        + "</li>"
        for place, person in enumerate(people)
    )
    return f'<ol class="fc-cards" aria-label="People, in the order of the marked words">{items}</ol>'


def chips(prompt: str) -> str:
    """The prompt with a button for every word, pressed where the word names a person."""
    text, place, pieces = split_markers(prompt)[0], 0, []
    words = words_of(prompt)
    if not words:
        return ""
    for number, word in enumerate(words):
        pieces.append(escape(text[place : word.start]))
        badge = "" if word.subject is None else f"<b>{word.subject}</b>"
        label = word.text if word.subject is None else f"{word.text}, person {word.subject}"
        pieces.append(
            f'<button type="button" data-act="mark" data-place="{number}" '
            f'aria-pressed="{str(word.subject is not None).lower()}" aria-label="{escape(label)}">'
            f"{escape(word.text)}{badge}</button>"
        )
        place = word.end
    return (
        f'<p class="fc-chips" role="group" aria-label="Mark the words that name people">{"".join(pieces)}</p>'
    )


def notice(words: str | None, kind: str = "warning") -> str:
    """A line that is read aloud when it changes; empty for nothing to say."""
    inside = "" if words is None else f'<p class="fc-notice fc-{kind}">{escape(words)}</p>'
    return f'<div role="status" aria-live="polite">{inside}</div>'


def progress(done: int, total: int) -> str:
    """How far a drawing is."""
    return (
        '<div class="fc-progress" role="status">'
        f'<progress max="{total}" value="{done}" aria-label="Drawing"></progress>'
        f"<span>{done} of {total} steps</span></div>"
    )


def _images(person: Person, place: int) -> str:
    shown = "".join(
        f'<img src="{reference.thumbnail}" alt="Person {place + 1}: {escape(reference.name)}">'
        for reference in person
    )
    return f'<div class="fc-images">{shown}</div>'


def _sameness(person: Person, place: int) -> str:
    """Say that a person is the one before, or that the images are of several."""
    made = []
    if place:
        made.append(("join", f"Same as {place}", f"Person {place + 1} is the same as person {place}"))
    if len(person) > 1:
        made.append(("divide", "Separate", f"The images of person {place + 1} are of several people"))
    buttons = "".join(
        f'<button type="button" data-act="{act}" data-place="{place}" aria-label="{label}" title="{label}">'
        f"{words}</button>"
        for act, words, label in made
    )
    return f'<div class="fc-same">{buttons}</div>' if made else ""


def _tool(act: str, place: int, sign: str, label: str, disabled: bool) -> str:
    named = f'aria-label="{label}" title="{label}"{" disabled" if disabled else ""}'
    return f'<button type="button" data-act="{act}" data-place="{place}" {named}>{sign}</button>'
