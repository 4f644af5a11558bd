"""Handlers of the page's events."""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
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
"""Number of outputs of :meth:`Page.shown`."""
MOST_SEED = 2**31 - 1
"""Largest seed."""
_INTERVAL = 0.1  # seconds between two updates of the progress bar
_log = logging.getLogger(__name__)


@contextmanager
def errors_on_page() -> Iterator[None]:
    """Show expected errors on the page; log others in the terminal."""
    try:
        yield
    except gr.Error:
        raise
    except (ValueError, OSError) as error:
        raise gr.Error(str(error), title="Invalid input", duration=12, print_exception=False) from None
    except Exception as error:
        _log.exception("in the page", exc_info=error)
        message = "The page failed. The terminal shows the error."
        raise gr.Error(message, title="Internal error", print_exception=False) from None


class Page:
    """Handlers of the page's events; each returns the values of its outputs."""

    def __init__(self, studio: Studio, limits: PageLimits) -> None:
        self.studio, self.limits = studio, limits

    @errors_on_page()
    def state(self, prompt: str, people: Sequence[Person]) -> tuple[str, str, str]:
        """Show words, advice and people."""
        self.limits.check_prompt(prompt)
        message = advice(prompt, len(people), self.studio.max_subjects)
        message = message or too_long(self.studio.unread(prompt))
        return parts.chips(prompt), parts.notice(message), parts.cards(people)

    @errors_on_page()
    def add(self, files: list[str] | None, prompt: str, people: list[Person]) -> tuple[Any, ...]:
        """Add a person for each uploaded image, and show why others are refused."""
        added, refused = [*people], []
        for file in files or []:
            try:
                added.append((read_reference(Path(file), self.limits),))
            except RefusedImageError as refusal:
                refused.append(str(refusal))
        return None, parts.notice(" ".join(refused) or None), added, *self.state(prompt, added)

    def take_photo(self, file: str | None, prompt: str, people: list[Person]) -> tuple[Any, ...]:
        """Add an image from the camera."""
        return self.add(None if file is None else [file], prompt, people)

    @errors_on_page()
    def arrange(self, prompt: str, people: list[Person], event: gr.EventData) -> tuple[Any, ...]:
        """Move, remove, merge or separate people."""
        index = int(event.index)
        match str(event.act):
            case "remove":
                people = [person for number, person in enumerate(people) if number != index]
            case "join":
                people = joined(people, index)
            case "divide":
                people = divided(people, index)
            case act:
                people = moved(people, index, -1 if act == "left" else 1)
        return people, *self.state(prompt, people)

    @errors_on_page()
    def mark(self, prompt: str, people: list[Person], event: gr.EventData) -> tuple[Any, ...]:
        """Mark or unmark a word."""
        self.limits.check_prompt(prompt)
        prompt = toggle_marker(prompt, int(event.index))
        return prompt, *self.state(prompt, people)

    @errors_on_page()
    def try_example(self, example: Example) -> tuple[Any, ...]:
        """Fill in the prompt and the images of an example."""
        people = [(read_reference(file, self.limits),) for file in example.references]
        return example.prompt, people, *self.state(example.prompt, people)

    def order(
        self, prompt: str, people: list[Person], seed: Any, steps: Any, guidance: Any, negative: str
    ) -> Order:
        """Validate a request; a ValueError states what is missing or out of range."""
        self.limits.check_prompt(prompt)
        self.limits.check_prompt(negative)
        message = advice(prompt, len(people), self.studio.max_subjects)
        if message is not None:
            raise ValueError(message)
        if any(not reference.file.exists() for person in people for reference in person):
            raise ValueError("An uploaded image has expired. Add it again.")
        if seed is None or not 0 <= int(seed) <= MOST_SEED:
            raise ValueError(f"The seed must be an integer from 0 to {MOST_SEED}.")
        if not 1 <= int(steps) <= self.limits.steps:
            raise ValueError(f"The number of steps must lie between 1 and {self.limits.steps}.")
        return Order(prompt, tuple(people), int(seed), int(steps), float(guidance), negative.strip())

    @errors_on_page()
    def begin(self, *request: Any) -> str:
        """Validate a request before it waits in the queue."""
        self.order(*request)
        return parts.WAITING

    def generate(self, *request: Any) -> Iterator[tuple[Any, ...]]:
        """Generate images; takes the arguments of :meth:`order`, α and the number of images."""
        with errors_on_page():
            *wanted, alpha, count = request
            if not 1 <= int(count) <= self.limits.images:
                raise ValueError(f"The number of images must lie between 1 and {self.limits.images}.")
            for line, made in self._progress(self.order(*wanted), [float(alpha)], int(count)):
                shown = [gr.skip()] * NUM_SHOWN if made is None else self.shown(made[0])
                yield line, gr.update(visible=made is None), *shown

    def compare(self, *request: Any) -> Iterator[tuple[Any, ...]]:
        """Generate one seed at several α; takes the arguments of :meth:`order`."""
        with errors_on_page():
            for line, made in self._progress(self.order(*request), STRIP, 1):
                if made is None:
                    yield line, gr.update(visible=True), *[gr.skip()] * 4
                    continue
                strip = [images[0] for images in made]
                entries = [(self._file(image), f"α {image.alpha:g}") for image in strip]
                seen = gr.update(visible=False), gr.update(visible=True), strip, gr.update(value=entries)
                yield line, gr.update(visible=False), *seen

    def stopped(self) -> tuple[Any, ...]:
        """Hide progress bar and stop button."""
        return "", gr.update(visible=False)

    def shown(self, images: list[GeneratedImage]) -> tuple[Any, ...]:
        """Show images, the first of them selected."""
        entries = [(self._file(image), f"seed {image.seed} · α {image.alpha:g}") for image in images]
        withheld = sum(image.withheld for image in images)
        verdict = f"The safety checker blocked {withheld} of {len(images)}. Try another seed or prompt."
        return (
            gr.update(visible=False),
            parts.notice(verdict if withheld else None),
            gr.update(visible=True),
            images,
            gr.update(value=entries, columns=min(2, len(entries)), selected_index=0),
            *self.details(images[0]),
        )

    def details(self, image: GeneratedImage) -> tuple[Any, ...]:
        """Show the attention of an image, and offer its file."""
        seen = overlays(image)
        columns = min(3, max(2, len(seen)))
        save = gr.update(value=self._file(image), visible=not image.withheld)
        return gr.update(visible=bool(seen)), gr.update(value=seen, columns=columns), save

    @errors_on_page()
    def choose(self, images: list[GeneratedImage], event: gr.SelectData) -> tuple[Any, ...]:
        """Select one of several images."""
        return self.details(images[int(event.index)])

    @errors_on_page()
    def choose_alpha(self, strip: list[GeneratedImage], event: gr.SelectData) -> tuple[Any, ...]:
        """Select an image of the comparison and its α."""
        image = strip[int(event.index)]
        return image.alpha, *self.shown([image])

    def _file(self, image: GeneratedImage) -> str:
        """Write an image into the folder of uploads, which is deleted with the page."""
        return save_bytes_to_cache(self.studio.png(image), file_name(image), get_upload_folder())

    def _progress(
        self, order: Order, alphas: Sequence[float], count: int
    ) -> Iterator[tuple[str, list[list[GeneratedImage]] | None]]:
        """Generate in another thread; yields progress bars, and the images at the end."""
        latest: deque[tuple[int, int]] = deque(maxlen=1)
        result: Future[list[list[GeneratedImage]]] = Future()
        cancelled = threading.Event()

        def on_call(done: int, total: int) -> None:
            if cancelled.is_set():
                raise InterruptedError("the request was cancelled")
            latest.append((done, total))

        def work() -> None:
            try:
                result.set_result(self.studio.generate(order, alphas, count, on_call))
            except BaseException as error:
                result.set_exception(error)

        thread = threading.Thread(target=work, daemon=True)
        thread.start()
        try:
            while thread.is_alive():
                thread.join(_INTERVAL)
                if latest:
                    yield parts.progress(*latest.pop()), None
        finally:
            cancelled.set()
            thread.join()
        yield "", result.result()
