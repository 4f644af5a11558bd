"""Hooks of the documentation site: cards of ``data/`` as pages, the menu of the reference, and equations.

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
# Pages by their file. A page called README would become the first page of its menu.
CARDS = {
    "data/folders.md": "data/README.md",
    "data/mini/card.md": "data/mini/README.md",
    "data/mini_dit/card.md": "data/mini_dit/README.md",
    "data/architectures/card.md": "data/architectures/README.md",
}
_LINK = re.compile(r"(\]\()([^)#\s]+)((?:#[\w-]+)?\))")
_EQUATION = re.compile(r'<(span|div) class="arithmatex">\\[(\[](.*?)\\[)\]]</\1>', re.S)
_NUMBER = re.compile(r"\\tag\{(\w+)\}")
_CELL = re.compile(r"<td.*?</td>", re.S)
_ROLE = re.compile(r":\w+:<code>~?(?:[\w.]+\.)?(\w+)</code>")


def on_config(config: MkDocsConfig) -> None:
    """List the generated pages of the reference in the menu."""
    (entries,) = (entry["Reference"] for entry in config.nav if "Reference" in entry)
    for title, part in (("Subcommands", "commands"), ("Configuration groups", "groups")):
        names = sorted(file.stem for file in (ROOT / "docs" / "reference" / part).glob("*.md"))
        entries.append({title: [f"reference/{part}/{name}.md" for name in names]})


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the cards of ``data/`` and the images that pages show."""
    samples = [str(file.relative_to(ROOT)) for file in (ROOT / "data/mini/samples").glob("*.png")]
    for name, source in (CARDS | dict(zip(samples, samples, strict=True))).items():
        files.append(File.generated(config, name, abs_src_path=str(ROOT / source)))
    return files


def on_page_markdown(markdown: str, page: Page, files: Files, **_: Any) -> str:
    """Turn links between files of the repository into links between pages."""
    pages = {Path(file.abs_src_path).resolve(): file.src_uri for file in files if file.abs_src_path}
    folder = Path(page.file.abs_src_path).resolve().parent

    def linked(match: re.Match[str]) -> str:
        found = pages.get((folder / match[2]).resolve())
        if found is None:
            return match[0]
        return match[1] + posixpath.relpath(found, posixpath.dirname(page.file.src_uri) or ".") + match[3]

    return _LINK.sub(linked, markdown)


def on_page_content(content: str, **_: Any) -> str:
    """Write equations as MathML, which browsers show without a script, and Sphinx's roles as code.

    In code within a table, GitHub wants ``|`` escaped and Python-Markdown does not.
    """
    content = _ROLE.sub(r"<code>\1</code>", _EQUATION.sub(_mathml, content))
    return _CELL.sub(lambda cell: cell[0].replace(r"\|", "|"), content)


def _mathml(match: re.Match[str]) -> str:
    source = html.unescape(match[2])
    block = match[1] == "div"
    number = _NUMBER.search(source)
    equation = convert(_NUMBER.sub("", source).strip(), display="block" if block else "inline")
    if not block:
        return equation
    label = f'<span class="number">({number[1]})</span>' if number else ""
    return f'<div class="equation">{equation}{label}</div>'
