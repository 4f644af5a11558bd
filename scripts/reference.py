"""Write the reference of all configurations: ``python scripts/reference.py docs/configuration.md``.

Nothing of it is written by hand: defaults and remarks are those of the files in ``conf/``, and what a key
means is looked up in the docstring of what the file instantiates.
"""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from itertools import groupby
from pathlib import Path
from typing import Any

import yaml
from hydra._internal.utils import _locate

CONF = Path(__file__).resolve().parents[1] / "conf"
_FIRST = ("train", "prepare", "generate", "evaluate", "report", "bench")
COMMANDS = (*_FIRST, *(file.stem for file in sorted(CONF.glob("*.yaml")) if file.stem not in _FIRST))
_OVERRIDES = ("experiment", "sweep")  # files that set what others declare
_SKIPPED = ("defaults", "hydra")
_REMARK = re.compile(r"""^(?:[^'"#]|"[^"]*"|'[^']*'|(?<=\w)['"#])*?\s#\s(.*)$""")
_ROLE = re.compile(r":\w+:`~?(?:[\w.]+\.)?([\w]+)`")
_ARGUMENT = re.compile(r"^\*{0,2}(\w+)(?: \([^:]*\))?: ?(.*)$")
_INTERPOLATION = re.compile(r"\$\{([\w./]+)\}")

HEAD = """# Configuration

Every command, every choice, every key. This file is generated: `make reference`.

A choice is made with `group=name`, a key set with `key=value`; `--cfg job` prints what a call comes to,
`--help` shows examples. `${a.b}` is the value of another key. Lists are written `[a,b]`, nothing is
`null`, and a key that a choice does not have is added with `+key=value`. `--config-dir` adds a folder of
your own choices (see the recipes: [dataset](dataset.md), [metric](metric.md), [backbone](backbone.md),
[localization loss](localization.md)).
"""


@dataclass
class File:
    """A configuration file.

    Attributes:
        group: Folder that it is in; empty for a command.
        about: The remark at its top.
        values: Its content, with that of files of the same group that it builds on.
        own: Paths of the keys that stand in it, in their order.
        remarks: What stands behind keys, by path; those of the files that it builds on, too.
        builds_on: Names of these files.
        choices: For a command: its groups with the choice of each.
    """

    group: str
    about: str
    values: dict[str, Any]
    own: list[tuple[str, ...]]
    remarks: dict[tuple[str, ...], str]
    builds_on: list[str] = field(default_factory=list)
    choices: dict[str, Any] = field(default_factory=dict)


@cache
def read(name: str) -> File:
    """Read a file of ``conf/``, named without its ending."""
    path = CONF / f"{name}.yaml"
    text = path.read_text(encoding="utf-8")
    content = yaml.safe_load(text) or {}
    about = []
    for line in text.splitlines():
        if not line.startswith("#"):
            break
        about.append(line.removeprefix("#").removeprefix(" "))
    node = yaml.compose(text)
    remarks, lines = {}, text.splitlines()
    for place, line in _lines(node):
        if said := remark(lines[line]):
            remarks[place] = said
    group = str(path.parent.relative_to(CONF)).strip(".")
    file = File(group, _paragraphs(line for line in about if not line.startswith("@package")), {}, [], {})
    for entry in content.get("defaults", []):
        if isinstance(entry, str) and entry != "_self_":
            file.builds_on.append(entry)
            if not path.with_name(f"{entry}.yaml").is_file():  # a plugin's
                continue
            parent = read(str(path.parent.relative_to(CONF) / entry))
            file.values = _merged(file.values, parent.values)
            file.remarks |= parent.remarks
        elif isinstance(entry, dict):
            _choose(file, entry, path)
    file.values = _merged(file.values, {key: content[key] for key in content if key not in _SKIPPED})
    file.remarks |= remarks
    file.own = [place for place, _ in _lines(node) if place[0] not in _SKIPPED]
    return file


def _paragraphs(about: Iterable[str]) -> str:
    """Lines as Markdown; those that are set in are code."""
    parts = []
    for code, lines in groupby(about, lambda line: line.startswith("  ")):
        text = "\n".join(line.removeprefix("  ") for line in lines)
        parts.append(f"```sh\n{text}\n```" if code else text)
    return "\n\n".join(parts)


def _choose(file: File, entry: dict[str, Any], path: Path) -> None:
    """Note what a default list chooses, and take the values of what it chooses."""
    for group, choice in entry.items():
        if group.startswith(("override ", "/")):
            continue
        file.choices[group] = choice
        source, _, target = group.partition("@")
        for name in choice if isinstance(choice, list) else [choice]:
            folder = path.parent.relative_to(CONF) / source
            if name is None or not (CONF / folder / f"{name}.yaml").is_file():
                continue
            values = read(str(folder / name)).values
            if source not in ("methods", *_OVERRIDES):
                for part in reversed((target or source).split(".")):
                    values = {part: values}
            file.values = _merged(file.values, values)


def _lines(node: yaml.Node | None, place: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], int]]:
    """Path and line of every key."""
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            yield (*place, key.value), key.start_mark.line
            if not (isinstance(value, yaml.MappingNode) and value.flow_style):
                yield from _lines(value, (*place, key.value))


def remark(line: str) -> str:
    """What stands behind a key and its value."""
    found = _REMARK.match(line)
    return found[1] if found else ""


def _merged(base: Mapping[str, Any], more: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in more.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = _merged(merged[key], value) if both else value
    return merged


def at(values: Any, place: tuple[str, ...]) -> Any:
    """The value at a path; ``None`` where there is none."""
    for key in place:
        values = values.get(key) if isinstance(values, dict) else None
    return values


@cache
def documented(target: str) -> tuple[str, dict[str, str]]:
    """Purpose and arguments of what a file instantiates, as its docstring tells them."""
    found: Any = _locate(target)
    classes = (
        [cls for cls in inspect.getmro(found) if cls is not object] if inspect.isclass(found) else [found]
    )
    arguments: dict[str, str] = {}
    for one in reversed(classes):
        for text in (inspect.getdoc(one.__init__) if inspect.isclass(one) else None, one.__doc__):
            arguments |= parse_arguments(inspect.cleandoc(text or ""))
    return _plain((inspect.getdoc(found) or "").partition("\n\n")[0]), arguments


def parse_arguments(text: str) -> dict[str, str]:
    """Arguments and attributes of a docstring in Google's style, each on one line."""
    arguments: dict[str, str] = {}
    inside, name, indent = False, "", 0
    for line in text.splitlines():
        if line.strip() in ("Args:", "Attributes:"):
            inside, indent = True, len(line) - len(line.lstrip()) + 4
        elif inside and line.strip():
            depth = len(line) - len(line.lstrip())
            if depth < indent:
                inside = False
            elif depth == indent and (found := _ARGUMENT.match(line.strip())):
                name = found[1]
                arguments[name] = found[2]
            elif name:
                arguments[name] += " " + line.strip()
    return {name: _plain(said) for name, said in arguments.items()}


def _plain(text: str) -> str:
    return _ROLE.sub(r"`\1`", " ".join(text.split())).replace("``", "`").strip()


def meaning(file: File, place: tuple[str, ...]) -> str:
    """What a key is for: the remark behind it, what the constructor says, or whose value it takes."""
    parts = []
    value = at(file.values, place)
    target = value.get("_target_") if isinstance(value, dict) else None
    owner = at(file.values, (*place[:-1], "_target_"))
    said = documented(owner)[1].get(place[-1], "") if isinstance(owner, str) else ""
    if isinstance(owner, str) and not owner.startswith("fastcomposer."):
        said = re.split(r"(?<=[.!?]) ", said)[0]  # others tell more than a table holds
    referred = _INTERPOLATION.fullmatch(value) if isinstance(value, str) else None
    if said.lower().startswith(("see ", "as ")) or not said:
        said = f"as `{referred[1]}`" if referred else said
    if said:
        parts.append(said.rstrip("."))
    if told := file.remarks.get(place) or ("" if said else _elsewhere(file, place)):
        parts.append(told.rstrip("."))
    if target and not said:
        parts.append(documented(target)[0].rstrip("."))
    return "; ".join(parts).replace("|", "\\|").replace("<", "\\<")


def _elsewhere(file: File, place: tuple[str, ...]) -> str:
    """The remark behind the same key of another choice of the group, or of another command."""
    others = [read(name) for name in COMMANDS]
    if file.group:
        others = [read(f"{file.group}/{path.stem}") for path in sorted((CONF / file.group).glob("*.yaml"))]
    return next((other.remarks[place] for other in others if place in other.remarks), "")


def rows(file: File) -> Iterator[tuple[str, str, str]]:
    """Key, default and meaning of all that a file says."""
    for place in file.own:
        value = at(file.values, place)
        if place[-1].startswith("_"):
            continue
        shown = value
        if isinstance(value, dict):
            if "_target_" in value and (*place, "_target_") in file.own:
                shown = value["_target_"]
            elif any(other[: len(place)] == place and other != place for other in file.own):
                if place in file.remarks:  # its keys follow
                    yield ".".join(place), "", meaning(file, place)
                continue
        yield ".".join(place), _written(shown), meaning(file, place)


def _written(value: Any) -> str:
    text = yaml.safe_dump(value, default_flow_style=True, width=10_000, allow_unicode=True).strip()
    text = text.removesuffix("...").strip()
    return f"`{text}`".replace("|", "\\|")


def table(file: File, head: tuple[str, ...] = ("key", "default", "meaning")) -> str:
    """Markdown of a file's keys; empty where it has none."""
    lines = [row[: len(head)] for row in rows(file) if row[1] or len(head) > 2]
    return (
        "\n".join(f"| {' | '.join(line)} |" for line in (head, ["---"] * len(head), *lines)) if lines else ""
    )


def command_section(command: str) -> str:
    """All of a command but its groups."""
    file = read(command)
    chosen = ", ".join(
        f"[{group.partition('@')[0]}](#{group.partition('@')[0]})={_choice(choice)}"
        for group, choice in file.choices.items()
    )
    parts = [f"## `python -m fastcomposer.cli.{command}`", file.about, f"Groups: {chosen}."]
    return "\n\n".join([*parts, table(file)])


def _choice(choice: Any) -> str:
    return (
        f"`[{','.join(choice)}]`" if isinstance(choice, list) else f"`{'null' if choice is None else choice}`"
    )


def group_section(group: str) -> str:
    """All choices of a group."""
    anchor = group.replace("/", "")
    parts = [f'<a id="{anchor}"></a>\n\n## `{group}=`' if anchor != group else f"## {group}"]
    for path in sorted((CONF / group).glob("*.yaml")):
        file = read(f"{group}/{path.stem}")
        parts.append(f"### `{group}={path.stem}`")
        target = file.values.get("_target_")
        if target and "_target_" in {place[0] for place in file.own}:
            parts.append(f"Makes `{target}`.")
        parts += [file.about] if file.about else []
        if file.builds_on:
            parts.append("Builds on " + ", ".join(f"`{name}`" for name in file.builds_on) + "; what differs:")
        head = ("key", "set to") if group in _OVERRIDES else ("key", "default", "meaning")
        parts += [listed] if (listed := table(file, head)) else []
    return "\n\n".join(parts)


def reference() -> str:
    """The whole document."""
    folders = sorted({file.parent for file in CONF.glob("*/**/*.yaml")})
    groups = [str(folder.relative_to(CONF)) for folder in folders]
    sections = [command_section(command) for command in COMMANDS]
    sections += [group_section(group) for group in groups]
    return HEAD + "\n" + "\n\n".join(sections) + "\n"


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(reference(), encoding="utf-8")
