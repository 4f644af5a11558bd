"""Every command that a document or a command's help shows composes, with keys that exist."""

from __future__ import annotations

from pathlib import Path

import pytest
from example_calls import calls, compose_call

from fastcomposer.cli.app import COMMANDS
from fastcomposer.cli.common import CONFIG_FOLDER

ROOT = Path(__file__).parents[1]
# Recipes are executed (tests/docs/test_recipes.py); the reference repeats the helps.
PAGES = [
    file for file in sorted((ROOT / "docs").rglob("*.md")) if file.parent.name not in ("how-to", "commands")
]
DOCUMENTS = [ROOT / "README.md", ROOT / "data" / "README.md", *PAGES, *sorted(CONFIG_FOLDER.glob("*.yaml"))]


def examples() -> list[tuple[str, str]]:
    """Subcommand and arguments of every call, as in its document."""
    return [*dict.fromkeys(call for file in DOCUMENTS for call in calls(file.read_text(encoding="utf-8")))]


def test_the_examples_are_found() -> None:
    found = examples()
    assert len(found) > 50
    assert {command for command, _ in found} == set(COMMANDS)
    assert ("train", "experiment=mini_base method=embedder") in found  # out of a loop
    assert not [arguments for _, arguments in found if "$" in arguments or "…" in arguments]


@pytest.mark.parametrize(("command", "arguments"), examples())
def test_every_example_composes(command: str, arguments: str) -> None:
    compose_call(command, arguments)
