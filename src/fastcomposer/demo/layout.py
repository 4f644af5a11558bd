"""Layout of the page, and its events."""

from __future__ import annotations

import random
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gradio as gr

from fastcomposer.demo import parts
from fastcomposer.demo.examples import Example
from fastcomposer.demo.page import MOST_SEED, STRIP, Page
from fastcomposer.demo.studio import Studio
from fastcomposer.demo.uploads import ENDINGS, PageLimits

_BUTTONS: dict[str, Any] = {"js_on_load": parts.ON_CLICK, "apply_default_css": False}
WORK = "studio"
"""Name of the queue of requests for images."""
CSS = Path(__file__).with_name("page.css")


def theme() -> gr.themes.Base:
    """Colours, and fonts of the system, so that none is downloaded."""
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


def build(studio: Studio, limits: PageLimits, examples: Sequence[Example], subtitle: str) -> gr.Blocks:
    """Lay out the page, with a ``subtitle`` below its title."""
    page = Page(studio, limits)
    kept = max(1, int(limits.minutes * 60))
    deletion = (min(60, kept), kept)
    with gr.Blocks(title="FastComposer", analytics_enabled=False, delete_cache=deletion) as blocks:
        gr.HTML(parts.header(subtitle))
        with gr.Row(elem_id="fc-tries", visible=bool(examples)):
            gr.HTML('<span class="fc-label">Try</span>')
            tries = [gr.Button(example.name, size="sm") for example in examples]
        with gr.Row(elem_id="fc-columns"):
            with gr.Column(scale=5, min_width=320):
                made = {
                    **_people(limits),
                    **_prompt(limits),
                    **_settings(studio, limits),
                    "people": gr.State([]),
                }
            with gr.Column(scale=6, min_width=320, elem_id="fc-results"):
                made |= _results()
        components = SimpleNamespace(**made)
        _wire(page, components)
        filled = [getattr(components, name) for name in ("prompt", "people", "chips", "notice", "cards")]
        for button, example in zip(tries, examples, strict=True):
            button.click(partial(page.try_example, example), None, filled, **_QUICK)
    return blocks


def _people(limits: PageLimits) -> dict[str, Any]:
    gr.HTML(
        parts.section("People", "One or several images of each person, in the order of the marked words.")
    )
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
        shown: dict[str, Any] = {"label": "Camera", "show_label": False, "buttons": []}
        made["camera"] = gr.Image(sources=["webcam"], type="filepath", **shown)
    gr.HTML(parts.consent(limits))
    return made


def _prompt(limits: PageLimits) -> dict[str, Any]:
    gr.HTML(parts.section("Prompt", "Write a prompt, then click the words that name the people."))
    prompt = gr.Textbox(
        label="Prompt",
        show_label=False,
        container=False,
        placeholder="a man and a woman on the beach",
        lines=2,
        max_length=limits.characters,
        elem_id="fc-prompt",
    )
    chips = gr.HTML("", elem_id="fc-words", **_BUTTONS)
    return {"prompt": prompt, "chips": chips, "notice": gr.HTML(parts.notice(None), elem_id="fc-notice")}


def _settings(studio: Studio, limits: PageLimits) -> dict[str, Any]:
    defaults = studio.settings["sampler"]
    hint = "α is the fraction of the sampling steps that use the reference images."
    gr.HTML(parts.section("Settings", hint))
    made: dict[str, Any] = {}
    info = "Lower values follow the prompt, higher values keep the identity."
    made["alpha"] = gr.Slider(0, 1, defaults["alpha"], step=0.05, label="α", info=info)
    with gr.Row(elem_id="fc-seed"):
        made["seed"] = gr.Number(42, label="Seed", precision=0, minimum=0, maximum=MOST_SEED, min_width=120)
        made["dice"] = gr.Button("Random seed", min_width=120)
    with gr.Accordion("More settings", open=False):
        most = limits.images
        made["count"] = gr.Slider(1, most, min(2, most), step=1, label="Number of images")
        steps = min(limits.steps, defaults["num_inference_steps"])
        made["steps"] = gr.Slider(1, limits.steps, steps, step=1, label="Steps")
        made["guidance"] = gr.Slider(1, 12, defaults["guidance_scale"], step=0.5, label="Guidance scale")
        made["negative"] = gr.Textbox(
            defaults["negative_prompt"] or "",
            label="Negative prompt",
            placeholder="What the image should not show",
        )
    with gr.Row(elem_id="fc-go"):
        made["generate"] = gr.Button("Generate", variant="primary", min_width=120)
        made["compare"] = gr.Button("Compare α", min_width=120)
    return made


def _results() -> dict[str, Any]:
    made: dict[str, Any] = {"placeholder": gr.HTML(parts.PLACEHOLDER)}
    with gr.Row(elem_id="fc-under-way"):
        made["progress"] = gr.HTML(
            "", js_on_load=parts.ON_PROGRESS, apply_default_css=False, elem_id="fc-progress"
        )
        made["stop"] = gr.Button("Stop", size="sm", scale=0, min_width=72, visible=False)
    made["verdict"] = gr.HTML(parts.notice(None), elem_id="fc-verdict")
    plain: dict[str, Any] = {
        "interactive": False,
        "show_label": False,
        "buttons": [],
        "object_fit": "cover",
        "allow_preview": False,
    }
    with gr.Column(visible=False) as made["images"]:
        gr.HTML(parts.section("Images", "Select an image to see its attention and to save it."))
        made["gallery"] = gr.Gallery(label="Images", elem_id="fc-gallery", **plain)
        made["download"] = gr.DownloadButton(
            "Save the selected image with its settings", size="md", elem_id="fc-save"
        )
    with gr.Column(visible=False) as made["looking"]:
        gr.HTML(parts.section("Attention", "Bright pixels attend to the word."))
        made["looks"] = gr.Gallery(label="Attention", elem_id="fc-looks", **plain)
    with gr.Column(visible=False) as made["comparison"]:
        gr.HTML(parts.section("One seed, several α", "Select an image to use its α."))
        made["strip"] = gr.Gallery(label="Comparison", columns=len(STRIP), elem_id="fc-strip", **plain)
    return made


_QUICK: dict[str, Any] = {"queue": False, "show_progress": "hidden", "api_visibility": "private"}

# Through the queue: Gradio shows the errors of queued events only, and a full queue is such an error.
_AT_ONCE: dict[str, Any] = {**_QUICK, "queue": True, "concurrency_limit": None}


def _wire(page: Page, ui: SimpleNamespace) -> None:
    """Connect events with their handlers."""
    generated, compared = gr.State([]), gr.State([])
    state = [ui.chips, ui.notice, ui.cards]
    given = [ui.prompt, ui.people]
    ui.prompt.change(page.state, given, state, trigger_mode="always_last", **_QUICK)
    taken = [ui.refused, ui.people, *state]
    uploaded = ui.tray.upload(page.add, [ui.tray, *given], [ui.tray, *taken], **_QUICK)
    photo = ui.camera.input(page.take_photo, [ui.camera, *given], [ui.camera, *taken], **_QUICK)
    for event in (uploaded, photo):  # the prompt may have changed during the upload
        event.then(page.state, given, state, **_QUICK)
    ui.cards.click(page.arrange, given, [ui.people, *state], **_QUICK)
    ui.chips.click(page.mark, given, [ui.prompt, *state], **_QUICK)
    ui.dice.click(partial(random.randint, 0, MOST_SEED), None, ui.seed, **_QUICK)

    details = [ui.looking, ui.looks, ui.download]
    shown = [ui.placeholder, ui.verdict, ui.images, generated, ui.gallery, *details]
    ui.gallery.select(page.choose, generated, details, **_QUICK)
    ui.strip.select(page.choose_alpha, compared, [ui.alpha, *shown], **_QUICK)

    # One request at a time: validated at once, then queued; progress and stop button always disappear.
    order = [ui.prompt, ui.people, ui.seed, ui.steps, ui.guidance, ui.negative]
    strip = [ui.placeholder, ui.comparison, compared, ui.strip]
    requests: list[tuple[list[Any], Any, list[Any], list[Any]]] = [
        ([ui.generate.click, ui.prompt.submit], page.generate, [ui.alpha, ui.count], shown),
        ([ui.compare.click], page.compare, [], strip),
    ]
    work: dict[str, Any] = {"concurrency_id": WORK, "concurrency_limit": 1, "show_progress": "hidden"}
    progress, events = [ui.progress, ui.stop], []
    for triggers, handler, further, outputs in requests:
        checked = gr.on(triggers, page.begin, order, ui.progress, **_AT_ONCE)
        inputs = [*order, *further]
        event = checked.success(handler, inputs, [*progress, *outputs], api_visibility="private", **work)
        event.failure(page.stopped, None, progress, **_QUICK)
        events.append(event)
    ui.stop.click(page.stopped, None, progress, cancels=events, **_QUICK)
