"""The reference of the configuration is the one that the script writes, and leaves nothing out."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def reference() -> ModuleType:
    sys.path.insert(0, str(ROOT / "scripts"))
    try:
        import reference
    finally:
        sys.path.pop(0)
    return reference


@pytest.fixture(scope="module")
def pages(reference: ModuleType) -> dict[str, str]:
    return reference.pages()


def test_the_pages_are_what_the_command_makes(pages: dict[str, str]) -> None:
    folder = ROOT / "docs" / "reference"
    generated = [folder / "index.md", *folder.glob("commands/*.md"), *folder.glob("groups/*.md")]
    written = {str(file.relative_to(folder)): file.read_text(encoding="utf-8") for file in generated}
    assert pages == written, "make reference"


def test_nothing_is_left_out(reference: ModuleType, pages: dict[str, str]) -> None:
    for file in reference.CONF.rglob("*.yaml"):
        group = str(file.parent.relative_to(reference.CONF))
        if group == ".":
            assert pages[f"commands/{file.stem}.md"].startswith(f"# fastcomposer {file.stem}\n")
            assert f"](commands/{file.stem}.md)" in pages["index.md"]
        else:
            page = group.replace("/", "-")
            assert f"\n## `{group}={file.stem}`\n" in pages[f"groups/{page}.md"]
            assert f"](groups/{page}.md)" in pages["index.md"]
    blank = [line for page in pages.values() for line in page.splitlines() if line.endswith("|  |")]
    # Lists and arguments of other libraries, which the line above them explains.
    explained = (
        "step.",
        "vae.",
        "unet.",
        "transformer.",
        "clip.",
        "text_encoder.",
        "scheduler.",
        "startup.",
        "class_words.",
    )
    assert not [line for line in blank if not line.removeprefix("| ").startswith(explained)]


def test_arguments_are_found_in_docstrings(reference: ModuleType) -> None:
    text = """Do it.

    Args:
        one: The first,
            of several lines; see :func:`~package.module.other`.
        **two: ``None`` for none.

    Returns:
        three: Nothing.
    """
    found = reference.parse_arguments(text.replace("\n    ", "\n"))
    assert found == {"one": "The first, of several lines; see `other`.", "two": "`None` for none."}


def test_a_key_has_one_source_of_its_meaning(pages: dict[str, str]) -> None:
    lines = pages["groups/localization.md"].splitlines()
    weight = "| localization_weight | `0.001` | of the localization loss in the total; 0 measures it only |"
    assert weight in lines and weight.replace("0.001", "0.1") in lines  # and where it is overridden
    (layers,) = (
        line for line in pages["groups/method.md"].splitlines() if line.startswith("| vision_layers |")
    )
    assert "last layers" in layers  # as in the docstring
