"""The page: which part calls what, and where its answer goes."""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from functools import wraps
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.processing_utils import save_bytes_to_cache
from gradio.utils import get_upload_folder

from fastcomposer.demo import parts
from fastcomposer.demo.examples import Example
from fastcomposer.demo.marking import advice, toggle_marker, too_long
from fastcomposer.demo.studio import GeneratedImage, Order, Studio, file_name, overlays
from fastcomposer.demo.uploads import (
    PageLimits,
    Person,
    RefusedImageError,
    divided,
    joined,
    moved,
    read_reference,
)

STRIP = (0.0, 0.4, 0.6, 0.8, 1.0)
"""Values of α in the comparison."""
NUM_SHOWN = 8
"""Number of parts that :meth:`Page.shown` fills."""
MOST_SEED = 2**31 - 1
"""Largest seed."""
_LATEST = 0.1  # seconds between two looks at how far a drawing is
_log = logging.getLogger(__name__)


def told(function: Callable[..., Any]) -> Callable[..., Any]:
    """Show what goes wrong in words; defects of ours go to the terminal."""

    @wraps(function)
    def call(*args: Any) -> Any:
        try:
            return function(*args)
        except gr.Error:
            raise
        except Exception as error:
            raise _shown(error) from None

    return call


def _shown(error: Exception) -> gr.Error:
    if isinstance(error, ValueError | OSError):
        return gr.Error(str(error), title="That does not work", duration=12, print_exception=False)
    _log.exception("in the page", exc_info=error)
    words = "Something is wrong with this page, not with what you did. Its terminal says what."
    return gr.Error(words, title="Sorry", print_exception=False)


class Page:
    """Answers what people do on the page.

    Args:
        studio: Draws.
        limits: What is taken.
    """

    def __init__(self, studio: Studio, limits: PageLimits) -> None:
        self.studio, self.limits = studio, limits

    def state(self, prompt: str, people: Sequence[Person]) -> tuple[str, str, str]:
        """Words, advice and images, as they are shown."""
        words = advice(prompt, len(people), self.studio.max_subjects) or too_long(self.studio.unread(prompt))
        return parts.chips(prompt), parts.notice(words), parts.cards(people)

    def add(self, files: list[str] | None, prompt: str, people: list[Person]) -> tuple[Any, ...]:
        """Take uploaded images as of a person each, and say of each one that is not taken why."""
        added, refused = [*people], []
        for file in files or []:
            try:
                added.append((read_reference(Path(file), self.limits),))
            except RefusedImageError as refusal:
                refused.append(str(refusal))
        return None, parts.notice(" ".join(refused) or None), added, *self.state(prompt, added)

    def take_photo(self, file: str | None, prompt: str, people: list[Person]) -> tuple[Any, ...]:
        """Take an image from the camera."""
        return self.add(None if file is None else [file], prompt, people)

    def arrange(self, prompt: str, people: list[Person], event: gr.EventData) -> tuple[Any, ...]:
        """Move or remove a person, or say which images are of the same."""
        place = int(event.place)
        match str(event.act):
            case "remove":
                people = [person for number, person in enumerate(people) if number != place]
            case "join":
                people = joined(people, place)
            case "divide":
                people = divided(people, place)
            case act:
                people = moved(people, place, -1 if act == "left" else 1)
        return people, *self.state(prompt, people)

    def mark(self, prompt: str, people: list[Person], event: gr.EventData) -> tuple[Any, ...]:
        """Mark a word, or take its mark away."""
        prompt = toggle_marker(prompt, int(event.place))
        return prompt, *self.state(prompt, people)

    def try_example(self, example: Example) -> tuple[Any, ...]:
        """Fill in a prompt and its images."""
        people = [(read_reference(file, self.limits),) for file in example.references]
        return example.prompt, people, *self.state(example.prompt, people)

    def order(
        self, prompt: str, people: list[Person], seed: Any, steps: Any, guidance: Any, negative: str
    ) -> Order:
        """What is wanted, checked.

        Raises:
            ValueError: If something is missing or out of range, in words for the person.
        """
        words = advice(prompt, len(people), self.studio.max_subjects)
        if words is not None:
            raise ValueError(words)
        if any(not reference.file.exists() for person in people for reference in person):
            raise ValueError("An image has been deleted meanwhile. Add it again.")
        if seed is None or not 0 <= int(seed) <= MOST_SEED:
            raise ValueError(f"The seed is a whole number from 0 to {MOST_SEED}.")
        if not 1 <= int(steps) <= self.limits.steps:
            raise ValueError(f"Steps: from 1 to {self.limits.steps}.")
        return Order(prompt, tuple(people), int(seed), int(steps), float(guidance), negative.strip())

    def begin(self, *wanted: Any) -> str:
        """Check what is wanted at once, so that nobody waits for a refusal."""
        self.order(*wanted)
        return parts.WAITING

    def draw(
        self,
        prompt: str,
        people: list[Person],
        seed: Any,
        steps: Any,
        guidance: Any,
        negative: str,
        alpha: float,
        count: float,
    ) -> Iterator[tuple[Any, ...]]:
        """Draw, and say how far it is."""
        if not 1 <= int(count) <= self.limits.images:
            raise ValueError(f"Images: from 1 to {self.limits.images}.")
        order = self.order(prompt, people, seed, steps, guidance, negative)
        for line, made in self._at_work(order, [float(alpha)], int(count)):
            skipped = [gr.skip()] * NUM_SHOWN
            yield (line, gr.update(visible=made is None), *(skipped if made is None else self.shown(made[0])))

    def compare(
        self, prompt: str, people: list[Person], seed: Any, steps: Any, guidance: Any, negative: str
    ) -> Iterator[tuple[Any, ...]]:
        """Draw one seed at several α, and say how far it is."""
        order = self.order(prompt, people, seed, steps, guidance, negative)
        for line, made in self._at_work(order, STRIP, 1):
            if made is None:
                yield line, gr.update(visible=True), *[gr.skip()] * 4
                continue
            strip = [images[0] for images in made]
            shown = [(self._file(drawn), f"α {drawn.alpha:g}") for drawn in strip]
            seen = gr.update(visible=False), gr.update(visible=True), strip, gr.update(value=shown)
            yield line, gr.update(visible=False), *seen

    def stopped(self) -> tuple[Any, ...]:
        """What is left of a drawing that was stopped."""
        return "", gr.update(visible=False)

    def shown(self, drawn: list[GeneratedImage]) -> tuple[Any, ...]:
        """Images for the result, the first of them chosen."""
        entries = [(self._file(one), f"seed {one.seed} · α {one.alpha:g}") for one in drawn]
        withheld = sum(one.withheld for one in drawn)
        verdict = f"The safety checker withheld {withheld} of {len(drawn)}: try another seed or prompt."
        return (
            gr.update(visible=False),
            parts.notice(verdict if withheld else None),
            gr.update(visible=True),
            drawn,
            gr.update(value=entries, columns=min(2, len(entries)), selected_index=0),
            *self.details(drawn[0]),
        )

    def details(self, one: GeneratedImage) -> tuple[Any, ...]:
        """Where the words of an image look, and its file."""
        seen = overlays(one)
        columns = min(3, max(2, len(seen)))
        save = gr.update(value=self._file(one), visible=not one.withheld)
        return gr.update(visible=bool(seen)), gr.update(value=seen, columns=columns), save

    def choose(self, drawn: list[GeneratedImage], event: gr.SelectData) -> tuple[Any, ...]:
        """Look at one of several images."""
        return self.details(drawn[int(event.index)])

    def choose_alpha(self, strip: list[GeneratedImage], event: gr.SelectData) -> tuple[Any, ...]:
        """Take the α of an image in the comparison, and look at the image."""
        one = strip[int(event.index)]
        return one.alpha, *self.shown([one])

    def _file(self, drawn: GeneratedImage) -> str:
        """Where an image can be fetched; deleted with all others of the page."""
        return save_bytes_to_cache(self.studio.png(drawn), file_name(drawn), get_upload_folder())

    def _at_work(
        self, order: Order, alphas: Sequence[float], count: int
    ) -> Iterator[tuple[str, list[list[GeneratedImage]] | None]]:
        """Draw in another thread, and tell from time to time how far it is; the images come last."""
        calls: queue.SimpleQueue[tuple[int, int]] = queue.SimpleQueue()
        made: list[list[list[GeneratedImage]]] = []
        failed: list[BaseException] = []
        left = threading.Event()

        def on_call(done: int, total: int) -> None:
            if left.is_set():
                raise InterruptedError("nobody is waiting for it any more")
            calls.put((done, total))

        def work() -> None:
            try:
                made.append(self.studio.draw(order, alphas, count, on_call))
            except BaseException as error:
                failed.append(error)

        thread = threading.Thread(target=work, daemon=True)
        thread.start()
        try:
            while thread.is_alive():
                thread.join(_LATEST)
                latest = None
                while not calls.empty():
                    latest = calls.get()
                if latest is not None:
                    yield parts.progress(*latest), None
        finally:
            left.set()
            thread.join()
        if failed:
            raise failed[0]
        yield "", made[0]


def told_on_the_way(function: Callable[..., Iterator[Any]]) -> Callable[..., Iterator[Any]]:
    """As :func:`told`, for answers that come piece by piece."""

    @wraps(function)
    def call(*args: Any) -> Iterator[Any]:
        try:
            yield from function(*args)
        except gr.Error:
            raise
        except Exception as error:
            raise _shown(error) from None

    return call
