"""The page needs nothing besides itself, shows what there is and says what there is not."""

from __future__ import annotations

import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from fastcomposer.evaluation.load_results import collect
from fastcomposer.evaluation.report.gallery import caption_of, chosen_cases, image_grid, shown
from fastcomposer.evaluation.report.html import SECTIONS, flat
from fastcomposer.evaluation.report.write_report import FORMATS, write_report

Evaluation = tuple[Path, list[Any]]
_VOID = {"meta", "link", "img", "br", "use", "path", "rect"}


class Page(HTMLParser):
    """Elements with their attributes, and whether all are closed in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in _VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        if tag not in _VOID:
            assert self.open.pop() == tag

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


@pytest.fixture(scope="module")
def text(whole_evaluation: Evaluation) -> str:
    folder, benchmarks = whole_evaluation
    files = write_report(folder, alpha=0.6, benchmarks=benchmarks)
    assert files == [folder / name for name in FORMATS.values()]
    return (folder / "report.html").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def page(text: str) -> Page:
    return Page(text)


def test_the_page_is_whole_and_loads_nothing(text: str, page: Page) -> None:
    assert not page.open
    assert "http:" not in text
    assert "https:" not in text
    assert "@import" not in text
    assert not page.all("script")
    assert all(str(link["href"]).startswith("data:") for link in page.all("link"))
    assert all(str(image["src"]).startswith("data:image/") for image in page.all("img"))


def test_every_section_is_there_and_can_be_reached(page: Page) -> None:
    identifiers = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(identifiers) == len(set(identifiers))
    anchors = [str(link["href"])[1:] for link in page.all("a")]
    assert set(anchors) == {anchor for anchor, _ in SECTIONS} <= set(identifiers)


def test_images_and_tables_are_described(page: Page) -> None:
    images = page.all("img")
    # Two prompts of each of 4 and 3 categories; references and 5 methods; two references for a pair.
    photos = 8 * 6 + 6 * (2 + 5)
    attention = 3 * (1 + 2) + 3 * (2 + 2 * 3)
    assert len(images) == photos + attention
    assert all(image["alt"] for image in images)
    assert all(heading["scope"] in {"col", "row", "colgroup"} for heading in page.all("th"))
    labels = [a["aria-label"] for a in page.all("div") if a.get("role") == "img"]
    assert len(labels) == 5  # two curves, two categories, one of speed
    assert any("α 0.6: identity 0.450" in str(label) for label in labels)


def test_figures_and_their_tags_are_shown(text: str) -> None:
    assert '<span class="interval">[0.430, 0.470]</span>' in text
    assert "0.380 re-run [R]" in text
    assert "an abacus" in text
    assert "alpha 0.6, localization mini" in text
    assert re.search(r"<b>5</b> held", text)


def test_missing_parts_are_named_in_a_sentence(
    tmp_path: Path, write_evaluation: Callable[..., Evaluation], made_up: Callable[..., Any]
) -> None:
    folder, _ = write_evaluation(tmp_path, [made_up("text_only", 0.04, 0.27)])
    for file in folder.rglob("*.png"):
        file.unlink()
    (only,) = write_report(folder, formats=["html"])
    text = only.read_text(encoding="utf-8")
    for sentence in (
        "No setting of α besides one was measured",
        "No model without localization was measured",
        "The images are not beside the results",
        "No attention maps were kept.",
        "FastComposer itself was not measured",
    ):
        assert sentence in text
    assert not (folder / "tables.md").exists()
    assert not Page(text).open


def test_rows_alone_make_a_report(tmp_path: Path, whole_evaluation: Evaluation) -> None:
    (tmp_path / "results.json").write_bytes((whole_evaluation[0] / "results.json").read_bytes())
    (only,) = write_report(tmp_path, formats=["html"])
    text = only.read_text(encoding="utf-8")
    assert "The two runs have no scored case in common." in text
    assert "Bars are 95 % intervals." in text  # categories are in the rows


def test_unknown_formats_are_refused(whole_evaluation: Evaluation) -> None:
    with pytest.raises(ValueError, match="formats: pdf: unknown; there is md, csv, tex, html"):
        write_report(whole_evaluation[0], formats=["html", "pdf"])


def test_shown_cases_vary_prompts_and_people(whole_evaluation: Evaluation) -> None:
    runs = collect(*_arguments(whole_evaluation)).main("single_subject")
    cases = chosen_cases(runs, per_category=2)
    assert len({caption_of(case).replace("woman", "man") for case in cases}) == 8
    assert [case.category for case in cases[::2]] == ["accessory", "style", "expression", "context"]
    assert len({case.subjects for case in cases}) >= 3
    assert cases == chosen_cases(runs, per_category=2)


def test_grid_puts_references_above_all_methods(whole_evaluation: Evaluation) -> None:
    gallery = image_grid(collect(*_arguments(whole_evaluation)), "multi_subject")
    assert gallery is not None
    labels = [strip.label for strip in gallery.strips]
    assert labels == [
        "Reference",
        "Text only",
        "Textual Inversion",
        "DreamBooth",
        "Custom Diffusion",
        "FastComposer",
    ]
    assert {len(cell) for cell in gallery.strips[0].cells} == {2}
    assert gallery.strips[0].references


@pytest.mark.parametrize(("side", "kind", "pixelated"), [(64, "png", True), (512, "jpeg", False)])
def test_small_images_keep_their_pixels(side: int, kind: str, pixelated: bool, tmp_path: Path) -> None:
    Image.effect_noise((side, side), 80).convert("RGB").save(tmp_path / "a.png")
    image = shown(tmp_path / "a.png", "noise")
    assert image.source.startswith(f"data:image/{kind};base64,")
    assert image.pixelated is pixelated


def test_settings_are_flattened() -> None:
    values = {"gpu": None, "versions": {"torch": "2.14", "fused_attention": True}, "seeds": [1, 2], "x": 0.1}
    assert flat(values) == [
        ("gpu", "none"),
        ("versions, torch", "2.14"),
        ("versions, fused attention", "yes"),
        ("seeds", "1, 2"),
        ("x", "0.1"),
    ]


def _arguments(evaluation: Evaluation) -> tuple[Path, float, list[Any]]:
    return evaluation[0], 0.6, evaluation[1]
