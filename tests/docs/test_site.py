"""The site builds without warnings, needs no other host, and leads to its pages."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
_LOADED = {"script": "src", "img": "src", "link": "href", "iframe": "src", "source": "src"}


class Requests(HTMLParser):
    """Addresses that a browser loads together with a page."""

    def __init__(self) -> None:
        super().__init__()
        self.addresses: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        if tag in _LOADED and values.get("rel") not in ("prev", "next", "canonical"):
            self.addresses.append(values.get(_LOADED[tag]) or "")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    built = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)],
        cwd=ROOT,
        env=os.environ | {"NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
    )
    assert built.returncode == 0, built.stderr
    return folder


def links(page: Path) -> Iterator[Path]:
    """Pages that the content of a page links to."""
    content = page.read_text(encoding="utf-8").partition("<article")[2].partition("</article>")[0]
    for target in re.findall(r'href="([^"#:]+\.html)', content):
        yield (page.parent / target).resolve()


def test_own_photos_are_one_click_from_home(site: Path) -> None:
    assert site / "guides" / "own-photos.html" in links(site / "index.html")


def test_every_page_is_two_clicks_of_content_from_home(site: Path) -> None:
    first = {site / "index.html", *links(site / "index.html")}
    reached = first | {target for page in first for target in links(page)}
    pages = {*site.rglob("*.html")} - {site / "404.html"}
    assert pages - reached == set()


def test_no_page_loads_anything_from_another_host(site: Path) -> None:
    for page in site.rglob("*.html"):
        requests = Requests()
        requests.feed(page.read_text(encoding="utf-8"))
        assert requests.addresses
        assert not [address for address in requests.addresses if re.match(r"(https?:)?//", address)]


def test_equations_are_numbered_and_need_no_script(site: Path) -> None:
    text = (site / "method.html").read_text(encoding="utf-8")
    assert re.findall(r'<span class="number">\((\d+)\)</span>', text) == [*map(str, range(1, 15))]
    equations = re.findall(r"<math.*?</math>", text, re.S)
    assert len(equations) > 20
    assert not [equation for equation in equations if "\\" in equation or "$" in equation]
