"""Every command that the README or a command's help shows composes, with keys that exist."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from configurations import composed
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from fastcomposer.cli.common import CONFIG_FOLDER, quoted

ROOT = Path(__file__).parents[1]
DOCUMENTS = [ROOT / "README.md", ROOT / "data" / "README.md", *sorted(CONFIG_FOLDER.glob("*.yaml"))]
COMMANDS = ("train", "prepare", "generate", "evaluate", "report", "bench")
_CALL = re.compile(r"^\s*(?:python -m fastcomposer\.cli\.(\w+) )(.*)$")
_LOOP = re.compile(r"^for (\w+) in ([^;]+); do$")
_COMMENTS = re.compile(r"\s#\s.*$")


def examples() -> list[tuple[str, str]]:
    """Command and arguments of every call, in the words of its document."""
    found: dict[tuple[str, str], None] = {}
    for document in DOCUMENTS:
        variable, values = "", [""]
        for line in document.read_text(encoding="utf-8").replace("\\\n", " ").splitlines():
            if loop := _LOOP.match(line):
                variable, values = f"${loop[1]}", loop[2].split()
            elif call := _CALL.match(_COMMENTS.sub("", line)):
                repeated = values if variable and variable in line else [""]
                found |= {(call[1], call[2].replace(variable, value)): None for value in repeated}
    return [*found]


def overrides(command: str, arguments: str) -> list[str]:
    """What the command hands to Hydra; of a sweep its first job."""
    given = [word for word in shlex.split(arguments) if word not in ("-m", "--help", "--cfg", "job")]
    if command == "generate":
        given = [quoted(word, "prompt") for word in given]
    parsed = OverridesParser.create().parse_overrides(given)
    return [
        f"{one.get_key_element()}={next(one.sweep_string_iterator())}"
        if one.is_sweep_override()
        else str(one.input_line)
        for one in parsed
    ]


def test_the_examples_are_found() -> None:
    found = examples()
    assert len(found) > 50
    assert {command for command, _ in found} == {
        "train",
        "prepare",
        "generate",
        "evaluate",
        "report",
        "bench",
    }
    assert ("train", "experiment=mini_base method=embedder") in found  # out of a loop
    assert not [arguments for _, arguments in found if "$" in arguments or "…" in arguments]


@pytest.mark.parametrize(("command", "arguments"), examples())
def test_every_example_composes(command: str, arguments: str) -> None:
    config = composed(command, *overrides(command, arguments))
    plain = {key: config[key] for key in config if key != "hydra" and OmegaConf.is_config(config[key])}
    for value in plain.values():
        OmegaConf.to_container(value, resolve=True)
