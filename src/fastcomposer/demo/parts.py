"""HTML of the page; text and file names of users are escaped."""

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
  chosen.key = `button[data-act="${button.dataset.act}"][data-index="${button.dataset.index}"]`;
  trigger('click', { act: button.dataset.act, index: Number(button.dataset.index) });
});
watch('value', () => {
  const again = chosen.key && element.querySelector(chosen.key);
  if (again && !again.disabled) again.focus({ preventScroll: true });
  chosen.key = null;
});
"""
"""Script of HTML with buttons: reports clicks, and keeps the keyboard focus after an update."""

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
"""Script of the progress bar: scrolls it into view when it appears."""

PLACEHOLDER = (
    '<div class="fc-empty"><p>Generated images appear here.</p>'
    "<p>Start with an example above, or with your own images.</p></div>"
)
WAITING = (
    '<div class="fc-progress" role="status"><progress aria-label="Progress"></progress>'
    "<span>Waiting in the queue</span></div>"
)


def header(subtitle: str) -> str:
    """Title of the page."""
    return (
        '<header class="fc-header"><h1>FastComposer</h1>'
        "<p>Generate images of people from one reference image of each, without training.</p>"
        f'<p class="fc-loaded">{escape(subtitle)}</p></header>'
    )


def consent(limits: PageLimits) -> str:
    """Consent, and how long images are kept."""
    return (
        '<p class="fc-consent"><strong>Obtain consent from everyone you depict.</strong> '
        "Images stay on the machine that runs this page and are deleted after "
        f"{limits.minutes:g} minutes. The file of a generated image states that it was generated.</p>"
    )


def section(title: str, hint: str) -> str:
    """Heading with a sentence below it."""
    return f'<div class="fc-section"><h2>{escape(title)}</h2><p>{escape(hint)}</p></div>'


def cards(people: Sequence[Person]) -> str:
    """The people in order, each with their images, number and buttons."""
    items = []
    for index, person in enumerate(people):
        number = index + 1
        images = "".join(
            f'<img src="{reference.thumbnail}" alt="Person {number}: {escape(reference.name)}">'
            for reference in person
        )
        tools = [
            _button("left", index, "←", f"Move person {number} to the left", disabled=index == 0),
            _button("remove", index, "✕", f"Remove person {number}"),
            _button("right", index, "→", f"Move person {number} to the right", number == len(people)),
        ]
        same = []
        if index:
            same.append(
                _button("join", index, f"Same as {index}", f"Merge person {number} with person {index}")
            )
        if len(person) > 1:
            same.append(_button("divide", index, "Separate", f"Separate the images of person {number}"))
        items.append(
            f'<li><div class="fc-images">{images}</div>'
            f'<span class="fc-number" aria-hidden="true">{number}</span>'
            f'<div class="fc-tools">{"".join(tools)}</div>'
            + (f'<div class="fc-same">{"".join(same)}</div>' if same else "")
            + "</li>"
        )
    label = "People, in the order of the marked words"
    return f'<ol class="fc-cards" aria-label="{label}">{"".join(items)}</ol>' if items else ""


def chips(prompt: str) -> str:
    """The prompt with a button for each word, pressed where the word names a person."""
    text, end, pieces = split_markers(prompt)[0], 0, []
    words = words_of(prompt)
    if not words:
        return ""
    for number, word in enumerate(words):
        pieces.append(escape(text[end : word.start]))
        badge = "" if word.subject is None else f"<b>{word.subject}</b>"
        label = word.text if word.subject is None else f"{word.text}, person {word.subject}"
        pieces.append(
            f'<button type="button" data-act="mark" data-index="{number}" '
            f'aria-pressed="{str(word.subject is not None).lower()}" aria-label="{escape(label)}">'
            f"{escape(word.text)}{badge}</button>"
        )
        end = word.end
    return (
        f'<p class="fc-chips" role="group" aria-label="Mark the words that name people">{"".join(pieces)}</p>'
    )


def notice(message: str | None) -> str:
    """A message that screen readers announce; empty for none."""
    inside = "" if message is None else f'<p class="fc-notice">{escape(message)}</p>'
    return f'<div role="status" aria-live="polite">{inside}</div>'


def progress(done: int, total: int) -> str:
    """Progress of a request."""
    return (
        '<div class="fc-progress" role="status">'
        f'<progress max="{total}" value="{done}" aria-label="Progress"></progress>'
        f"<span>{done} of {total} steps</span></div>"
    )


def _button(act: str, index: int, text: str, label: str, disabled: bool = False) -> str:
    state = f'aria-label="{label}" title="{label}"{" disabled" if disabled else ""}'
    return f'<button type="button" data-act="{act}" data-index="{index}" {state}>{text}</button>'
