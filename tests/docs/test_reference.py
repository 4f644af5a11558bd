"""The reference of the configurations is the one that the command makes, and leaves nothing out."""

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


def test_the_file_is_what_the_command_makes(reference: ModuleType) -> None:
    written = (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8")
    assert reference.reference() == written, "make reference"


def test_nothing_is_left_out(reference: ModuleType) -> None:
    text = reference.reference()
    for file in reference.CONF.rglob("*.yaml"):
        group, choice = file.parent.relative_to(reference.CONF), file.stem
        assert (f"`{group}={choice}`" if str(group) != "." else f"fastcomposer.cli.{choice}`") in text
    blank = [line for line in text.splitlines() if line.endswith("|  |")]
    # Lists and arguments of other libraries, which the line above them tells of.
    told = ("step.", "vae.", "unet.", "clip.", "text_encoder.", "scheduler.", "startup.", "class_words.")
    assert not [line for line in blank if not line.removeprefix("| ").startswith(told)]


@pytest.mark.parametrize(
    ("line", "remark"),
    [
        ("name: x # the run's folder", "the run's folder"),
        ("labels: null # such as '{a: b}'", "such as '{a: b}'"),
        ('name: "a # b" # c', "c"),
        ("name: x", ""),
    ],
)
def test_remarks_stand_behind_values(reference: ModuleType, line: str, remark: str) -> None:
    assert reference.remark(line) == remark


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


def test_what_a_key_means_has_one_source(reference: ModuleType) -> None:
    lines = reference.reference().splitlines()
    weight = "| weight | `0.001` | of the localization loss in the total; 0 measures it only |"
    assert weight in lines and weight.replace("0.001", "0.1") in lines  # and where it is overridden
    (layers,) = (line for line in lines if line.startswith("| vision_layers |"))
    assert "last layers" in layers  # as the docstring says
