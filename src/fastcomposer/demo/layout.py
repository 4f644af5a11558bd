"""How the page is laid out, and which of its parts call what."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import gradio as gr

from fastcomposer.demo import parts
from fastcomposer.demo.examples import Example
from fastcomposer.demo.page import MOST_SEED, STRIP, Page, told, told_on_the_way
from fastcomposer.demo.studio import Studio
from fastcomposer.demo.uploads import ENDINGS, PageLimits

_BUTTONS: dict[str, Any] = {"js_on_load": parts.ON_CLICK, "apply_default_css": False}
CSS = Path(__file__).with_name("page.css")


def theme() -> gr.themes.Base:
    """Colours and fonts; the fonts are those of the system, so that none is fetched."""
    return gr.themes.Base(
        primary_hue=gr.themes.colors.teal,
        neutral_hue=gr.themes.colors.stone,
        radius_size=gr.themes.sizes.radius_md,
        font=["system-ui", "-apple-system", "Segoe UI", "Roboto", "sans-serif"],
        font_mono=["ui-monospace", "Menlo", "Consolas", "monospace"],
    ).set(
        body_text_color_subdued="*neutral_500",
        body_text_color_subdued_dark="*neutral_400",
        block_info_text_color="*neutral_500",
        block_info_text_color_dark="*neutral_400",
        block_label_text_color="*neutral_700",
        block_title_text_color="*neutral_700",
        block_title_text_color_dark="*neutral_200",
        button_primary_background_fill="*primary_700",
        button_primary_background_fill_hover="*primary_800",
        button_primary_background_fill_dark="*primary_700",
        button_primary_background_fill_hover_dark="*primary_600",
        button_primary_text_color="white",
        button_secondary_background_fill="*neutral_100",
        button_secondary_background_fill_hover="*neutral_200",
        button_secondary_background_fill_dark="*neutral_800",
        button_secondary_background_fill_hover_dark="*neutral_700",
        slider_color="*primary_700",
        slider_color_dark="*primary_400",
    )


@dataclass(frozen=True)
class _Inputs:
    """What people set."""

    tray: gr.File
    camera: gr.Image
    refused: gr.HTML
    cards: gr.HTML
    prompt: gr.Textbox
    chips: gr.HTML
    notice: gr.HTML
    people: gr.State
    alpha: gr.Slider
    seed: gr.Number
    dice: gr.Button
    steps: gr.Slider
    guidance: gr.Slider
    count: gr.Slider
    negative: gr.Textbox
    draw: gr.Button
    compare: gr.Button


@dataclass(frozen=True)
class _Results:
    """What people get."""

    placeholder: gr.HTML
    progress: gr.HTML
    stop: gr.Button
    verdict: gr.HTML
    images: gr.Column
    gallery: gr.Gallery
    download: gr.DownloadButton
    looking: gr.Column
    looks: gr.Gallery
    comparison: gr.Column
    strip: gr.Gallery


def build(studio: Studio, limits: PageLimits, examples: Sequence[Example], subtitle: str) -> gr.Blocks:
    """Lay the page out.

    Args:
        studio: Draws.
        limits: What is taken.
        examples: Things to try.
        subtitle: What is loaded.
    """
    page = Page(studio, limits)
    kept = max(1, int(limits.minutes * 60))
    with gr.Blocks(
        title="FastComposer", analytics_enabled=False, delete_cache=(min(60, kept), kept)
    ) as blocks:
        gr.HTML(parts.header(subtitle))
        with gr.Row(elem_id="fc-tries", visible=bool(examples)):
            gr.HTML('<span class="fc-label">Try</span>')
            tries = [gr.Button(example.name, size="sm") for example in examples]
        with gr.Row(elem_id="fc-columns"):
            with gr.Column(scale=5, min_width=320):
                inputs = _inputs(studio, limits)
            with gr.Column(scale=6, min_width=320, elem_id="fc-results"):
                results = _results()
        _wire(page, inputs, results)
        _wire_examples(page, inputs, tries, examples)
    return blocks


def _inputs(studio: Studio, limits: PageLimits) -> _Inputs:
    return _Inputs(**_people(limits), **_prompt(), **_settings(studio, limits), people=gr.State([]))


def _people(limits: PageLimits) -> dict[str, Any]:
    gr.HTML(parts.section("People", "One image of each or several, in the order of the words below."))
    made: dict[str, Any] = {"cards": gr.HTML("", elem_id="fc-people", **_BUTTONS)}
    made["tray"] = gr.File(
        file_count="multiple",
        type="filepath",
        file_types=list(ENDINGS),
        label="Add images",
        show_label=False,
        height=72,
        elem_id="fc-tray",
    )
    made["refused"] = gr.HTML(parts.notice(None), elem_id="fc-refused")
    with gr.Accordion("Use the camera", open=False):
        made["camera"] = gr.Image(
            sources=["webcam"], type="filepath", label="Camera", show_label=False, buttons=[]
        )
    gr.HTML(parts.consent(limits))
    return made


def _prompt() -> dict[str, Any]:
    gr.HTML(parts.section("Prompt", "Write what happens, then click the words that name the people."))
    prompt = gr.Textbox(
        label="Prompt",
        show_label=False,
        container=False,
        placeholder="a man and a woman on the beach",
        lines=2,
        elem_id="fc-prompt",
    )
    chips = gr.HTML("", elem_id="fc-words", **_BUTTONS)
    return {"prompt": prompt, "chips": chips, "notice": gr.HTML(parts.notice(None), elem_id="fc-notice")}


def _settings(studio: Studio, limits: PageLimits) -> dict[str, Any]:
    defaults = studio.settings["sampler"]
    gr.HTML(parts.section("Image", "α is the share of the drawing that sees the images of people."))
    made: dict[str, Any] = {}
    made["alpha"] = gr.Slider(
        0, 1, defaults["alpha"], step=0.05, label="α", info="Lower follows the prompt, higher the faces."
    )
    with gr.Row(elem_id="fc-seed"):
        made["seed"] = gr.Number(42, label="Seed", precision=0, minimum=0, maximum=MOST_SEED, min_width=120)
        made["dice"] = gr.Button("Another seed", min_width=120)
    with gr.Accordion("More", open=False):
        most = limits.images
        made["count"] = gr.Slider(1, most, min(2, most), step=1, label="Number of images")
        steps = min(limits.steps, defaults["num_inference_steps"])
        made["steps"] = gr.Slider(1, limits.steps, steps, step=1, label="Steps")
        made["guidance"] = gr.Slider(1, 12, defaults["guidance_scale"], step=0.5, label="Guidance")
        made["negative"] = gr.Textbox(
            defaults["negative_prompt"] or "", label="Negative prompt", placeholder="What to keep out"
        )
    with gr.Row(elem_id="fc-go"):
        made["draw"] = gr.Button("Draw", variant="primary", min_width=120)
        made["compare"] = gr.Button("Compare α", min_width=120)
    return made


def _results() -> _Results:
    placeholder = gr.HTML(parts.PLACEHOLDER)
    with gr.Row(elem_id="fc-under-way"):
        progress = gr.HTML("", js_on_load=parts.ON_PROGRESS, apply_default_css=False, elem_id="fc-progress")
        stop = gr.Button("Stop", size="sm", scale=0, min_width=72, visible=False)
    verdict = gr.HTML(parts.notice(None), elem_id="fc-verdict")
    plain: dict[str, Any] = {"interactive": False, "show_label": False, "buttons": [], "object_fit": "cover"}
    with gr.Column(visible=False) as images:
        gr.HTML(parts.section("Images", "Choose one to see where its words look, and to save it."))
        gallery = gr.Gallery(label="Images", allow_preview=False, elem_id="fc-gallery", **plain)
        download = gr.DownloadButton("Save the chosen image, settings inside", size="md", elem_id="fc-save")
    with gr.Column(visible=False) as looking:
        gr.HTML(parts.section("Attention", "Bright is what a person's word looked at while drawing."))
        looks = gr.Gallery(label="Attention", allow_preview=False, elem_id="fc-looks", **plain)
    with gr.Column(visible=False) as comparison:
        gr.HTML(parts.section("One seed, several α", "Choose an image to take its α."))
        strip = gr.Gallery(
            label="Comparison", columns=len(STRIP), allow_preview=False, elem_id="fc-strip", **plain
        )
    return _Results(
        *(
            placeholder,
            progress,
            stop,
            verdict,
            images,
            gallery,
            download,
            looking,
            looks,
            comparison,
            strip,
        )
    )


_QUICK: dict[str, Any] = {"queue": False, "show_progress": "hidden", "api_visibility": "private"}

# Like the others, but through the queue: the errors of those are not shown, and here a full queue is told.
_AT_ONCE: dict[str, Any] = {**_QUICK, "queue": True, "concurrency_limit": None}


def _wire(page: Page, inputs: _Inputs, results: _Results) -> None:
    """Connect the parts with the answers."""
    drawn, compared = gr.State([]), gr.State([])
    state = [inputs.chips, inputs.notice, inputs.cards]
    given = [inputs.prompt, inputs.people]
    inputs.prompt.change(told(page.state), given, state, trigger_mode="always_last", **_QUICK)
    taken = [inputs.refused, inputs.people, *state]
    uploaded = inputs.tray.upload(told(page.add), [inputs.tray, *given], [inputs.tray, *taken], **_QUICK)
    photo = inputs.camera.input(
        told(page.take_photo), [inputs.camera, *given], [inputs.camera, *taken], **_QUICK
    )
    # Whoever writes while images are on their way would be told of the prompt as it was before.
    for event in (uploaded, photo):
        event.then(told(page.state), given, state, **_QUICK)
    inputs.cards.click(told(page.arrange), given, [inputs.people, *state], **_QUICK)
    inputs.chips.click(told(page.mark), given, [inputs.prompt, *state], **_QUICK)
    inputs.dice.click(partial(random.randint, 0, MOST_SEED), None, inputs.seed, **_QUICK)

    details = [results.looking, results.looks, results.download]
    shown = [results.placeholder, results.verdict, results.images, drawn, results.gallery, *details]
    _wire_drawing(page, inputs, results, compared, shown)
    results.gallery.select(told(page.choose), drawn, details, **_QUICK)
    results.strip.select(told(page.choose_alpha), compared, [inputs.alpha, *shown], **_QUICK)


def _wire_drawing(
    page: Page, inputs: _Inputs, results: _Results, compared: gr.State, shown: Sequence[Any]
) -> None:
    """One drawing at a time: checked at once, then in its turn, and always with an end that is seen."""
    order = [inputs.prompt, inputs.people, inputs.seed, inputs.steps, inputs.guidance, inputs.negative]
    strip = [results.placeholder, results.comparison, compared, results.strip]
    started: list[tuple[list[Any], Any, list[Any], list[Any]]] = [
        ([inputs.draw.click, inputs.prompt.submit], page.draw, [inputs.alpha, inputs.count], [*shown]),
        ([inputs.compare.click], page.compare, [], strip),
    ]
    work: dict[str, Any] = {"concurrency_id": "studio", "concurrency_limit": 1, "show_progress": "hidden"}
    on_the_way, events = [results.progress, results.stop], []
    for triggers, draw, further, answers in started:
        checked = gr.on(triggers, told(page.begin), order, results.progress, **_AT_ONCE)
        wanted, filled = [*order, *further], [*on_the_way, *answers]
        event = checked.success(told_on_the_way(draw), wanted, filled, api_visibility="private", **work)
        event.failure(page.stopped, None, on_the_way, **_QUICK)
        events.append(event)
    results.stop.click(page.stopped, None, on_the_way, cancels=events, **_QUICK)


def _wire_examples(
    page: Page, inputs: _Inputs, tries: Sequence[gr.Button], examples: Sequence[Example]
) -> None:
    filled = [inputs.prompt, inputs.people, inputs.chips, inputs.notice, inputs.cards]
    for button, example in zip(tries, examples, strict=True):
        button.click(told(partial(page.try_example, example)), None, filled, **_QUICK)
