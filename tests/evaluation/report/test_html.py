"""The page needs nothing besides itself, shows what there is and says what there is not."""

from __future__ import annotations

from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from fastcomposer.evaluation.report.html import SECTIONS
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
