"""What the site needs besides its pages: the cards of ``data/``, a menu of the reference, and equations.

MkDocs calls these functions (``hooks`` in ``mkdocs.yml``).
"""

from __future__ import annotations

import html
import posixpath
import re
from pathlib import Path
from typing import Any

from latex2mathml.converter import convert
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[1]
CARDS = ("README.md", "mini/README.md", "architectures/README.md")
_LINK = re.compile(r"(\]\()([^)#\s]+)((?:#[\w-]+)?\))")
_EQUATION = re.compile(r'<(span|div) class="arithmatex">\\[(\[](.*?)\\[)\]]</\1>', re.S)
_NUMBER = re.compile(r"\\tag\{(\w+)\}")
_ROLE = re.compile(r":\w+:<code>~?(?:[\w.]+\.)?(\w+)</code>")


def on_config(config: MkDocsConfig) -> None:
    """List the generated pages of the reference in the menu."""
    folder = ROOT / "docs" / "reference"
    (entries,) = (entry["Reference"] for entry in config.nav if "Reference" in entry)
    for title, part in (("Subcommands", "commands"), ("Configuration groups", "groups")):
        entries.append(
            {title: [f"reference/{part}/{file.name}" for file in sorted((folder / part).glob("*.md"))]}
        )


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the cards of ``data/`` and the images that pages show."""
    shown = [
        *CARDS,
        *(file.relative_to(ROOT / "data") for file in (ROOT / "data/mini/samples").glob("*.png")),
    ]
    for name in shown:
        files.append(File.generated(config, f"data/{name}", abs_src_path=str(ROOT / "data" / name)))
    return files


def on_page_markdown(markdown: str, page: Page, files: Files, **_: Any) -> str:
    """Turn links between files of the repository into links between files of the site."""
    sources = {Path(file.abs_src_path).resolve(): file.src_uri for file in files if file.abs_src_path}
    source = Path(page.file.abs_src_path).resolve()

    def linked(match: re.Match[str]) -> str:
        found = sources.get((source.parent / match[2]).resolve())
        if found is None:
            return match[0]
        return match[1] + posixpath.relpath(found, posixpath.dirname(page.file.src_uri) or ".") + match[3]

    return _LINK.sub(linked, markdown)


def on_page_content(content: str, **_: Any) -> str:
    """Write equations as MathML, which browsers show without a script, and Sphinx's roles as code."""
    return _ROLE.sub(r"<code>\1</code>", _EQUATION.sub(_mathml, content))


def _mathml(match: re.Match[str]) -> str:
    source = html.unescape(match[2])
    block = match[1] == "div"
    number = _NUMBER.search(source)
    equation = convert(_NUMBER.sub("", source).strip(), display="block" if block else "inline")
    if not block:
        return equation
    label = f'<span class="number">({number[1]})</span>' if number else ""
    return f'<div class="equation">{equation}{label}</div>'
