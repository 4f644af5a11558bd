"""Calls of our subcommands in documents and helps, and how to compose them."""

from __future__ import annotations

import re
import shlex

from configurations import composed
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep, Override
from omegaconf import OmegaConf

from fastcomposer.cli import doctor, evaluate, report, score
from fastcomposer.cli.common import quoted, renamed

_CALL = re.compile(r"^\s*fastcomposer (\w+)(?: (.*))?$")
_LOOP = re.compile(r"^for (\w+) in ([^;]+); do$")
_COMMENTS = re.compile(r"\s#\s.*$")


def calls(text: str) -> list[tuple[str, str]]:
    """Subcommand and arguments of every call, as in the text; of a loop one for each value."""
    found = []
    variable, values = "", [""]
    for line in text.replace("\\\n", " ").splitlines():
        if loop := _LOOP.match(line):
            variable, values = f"${loop[1]}", loop[2].split()
        elif call := _CALL.match(_COMMENTS.sub("", line)):
            arguments = call[2] or ""
            repeated = values if variable and variable in line else [""]
            found += [(call[1], arguments.replace(variable, value)) for value in repeated]
    return found


def overrides(command: str, arguments: str) -> list[str]:
    """What the command hands to Hydra; of a sweep its first job."""
    given = [
        word for word in shlex.split(arguments) if word not in ("-m", "--json", "--help", "--cfg", "job")
    ]
    if command == "generate":
        given = [quoted(word, "prompt") for word in given]
    for module in (evaluate, report, score):
        if module.__name__.endswith(command):
            given = [renamed(word, *module.ALIAS) for word in given]
    parsed = OverridesParser.create().parse_overrides(given)
    return [_first(one) if one.is_sweep_override() else str(one.input_line) for one in parsed]


def _first(override: Override) -> str:
    """The first value of a sweep, the lower end of what a search chooses from."""
    value = override.value()
    first = value.start if isinstance(value, IntervalSweep) else next(override.sweep_string_iterator())
    return f"{override.get_key_element()}={first}"


def compose_call(command: str, arguments: str) -> None:
    """Compose what a call says and resolve all of it; fails where a key does not exist."""
    if command == "doctor":
        command, examined = doctor.split_call(shlex.split(arguments))
        arguments = shlex.join(examined)
    given = overrides(command, arguments)
    if "sweep=jobs" in given:  # the command looks into the folder for the jobs' names
        given = [*given, "job=0"]
    config = composed(command, *given)
    plain = {key: config[key] for key in config if key != "hydra" and OmegaConf.is_config(config[key])}
    for value in plain.values():
        OmegaConf.to_container(value, resolve=True)
