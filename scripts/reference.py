"""Write the reference of all configurations: ``python scripts/reference.py docs/reference``.

Every page is generated: defaults and comments are those of the files in ``conf/``, and the meaning of a key
comes from the docstring of the class or function that the file instantiates.
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

from fastcomposer.cli.app import COMMANDS
from fastcomposer.data.datamodule import SubjectDataModule
from fastcomposer.data.sample_settings import SampleSettings

CONF = Path(__file__).resolve().parents[1] / "conf"
_OVERRIDES = ("experiment", "sweep")  # files that set what others declare
_SKIPPED = ("defaults", "hydra")
_REMARK = re.compile(r"""^(?:[^'"#]|"[^"]*"|'[^']*'|(?<=\w)['"#])*?\s#\s(.*)$""")
_ROLE = re.compile(r":\w+:`~?(?:[\w.]+\.)?([\w]+)`")
_ARGUMENT = re.compile(r"^\*{0,2}(\w+)(?: \([^:]*\))?: ?(.*)$")
_CODE_OR_TAG = re.compile(r"`[^`]*`|<")
_INTERPOLATION = re.compile(r"\$\{([\w./]+)\}")

HEAD = """# Configuration

A page for every subcommand and every configuration group, written by `make reference`.

Select a choice of a group with `group=choice` and set a key with `key=value`. `--cfg job` prints the
configuration that a call resolves to, `--help` lists keys and examples. `${a.b}` is the value of another
key. A list is written `[a,b]`, no value is `null`, and a key that a choice lacks is added with `+key=value`.
`--config-dir` adds a folder with choices of your own, as in the how-to pages for a
[dataset](../how-to/dataset.md), a [metric](../how-to/metric.md), a [backbone](../how-to/backbone.md) and a
[localization loss](../how-to/localization.md).
"""


@dataclass
class File:
    """A configuration file.

    Attributes:
        group: Folder of the file; empty for a subcommand.
        about: Comment at the top.
        examples: For a subcommand: the text of its help.
        values: Content, merged with that of files of the same group that it builds on.
        own: Paths of the keys in the file, in their order.
        remarks: Comments behind keys, by path, including those of the files that it builds on.
        builds_on: Names of these files.
        swept: For a sweep: the values or ranges of its keys.
        choices: For a subcommand: its groups with the default choice of each.
    """

    group: str
    about: str
    examples: str
    values: dict[str, Any]
    own: list[tuple[str, ...]]
    remarks: dict[tuple[str, ...], str]
    builds_on: list[str] = field(default_factory=list)
    swept: dict[str, Any] = field(default_factory=dict)
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
        if comment := remark(lines[line]):
            remarks[place] = comment
    group = str(path.parent.relative_to(CONF)).strip(".")
    about = [line for line in about if not line.startswith("@package")]
    hydra = content.get("hydra", {})
    header = hydra.get("help", {}).get("header", "")
    file = File(group, _paragraphs(about), _paragraphs(header.splitlines()), {}, [], {})
    if group == "sweep":
        file.swept = hydra.get("sweeper", {}).get("params", {})
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
    """Lines as Markdown; indented ones are code."""
    parts = []
    for code, lines in groupby(about, lambda line: line.startswith("  ")):
        text = "\n".join(line.removeprefix("  ") for line in lines)
        parts.append(f"```sh\n{text}\n```" if code else text)
    return "\n\n".join(parts)


def _choose(file: File, entry: dict[str, Any], path: Path) -> None:
    """Record the choices of a defaults list, and merge their values."""
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
            if source not in ("compared", *_OVERRIDES):
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
    """Return the comment behind a key and its value."""
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
    """Return the summary and the arguments from the docstring of what a file instantiates."""
    found: Any = _locate(target)
    classes = (
        [cls for cls in inspect.getmro(found) if cls is not object] if inspect.isclass(found) else [found]
    )
    if SubjectDataModule in classes:
        classes.append(SampleSettings)
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
    return {name: _plain(argument) for name, argument in arguments.items()}


def _plain(text: str) -> str:
    return _ROLE.sub(r"`\1`", " ".join(text.split())).replace("``", "`").strip()


def meaning(file: File, place: tuple[str, ...]) -> str:
    """Return the meaning of a key: constructor docstring, comment, or the key whose value it takes."""
    value = at(file.values, place)
    target = value.get("_target_") if isinstance(value, dict) else None
    owner = at(file.values, (*place[:-1], "_target_"))
    argument = documented(owner)[1].get(place[-1], "") if isinstance(owner, str) else ""
    if isinstance(owner, str) and not owner.startswith("fastcomposer."):
        argument = re.split(r"(?<=[.!?]) ", argument)[0]  # the first sentence is enough for a table
    referred = _INTERPOLATION.fullmatch(value) if isinstance(value, str) else None
    if argument.lower().startswith(("see ", "as ")) or not argument:
        argument = f"as `{referred[1]}`" if referred else argument
    parts = [argument] if argument else []
    if comment := file.remarks.get(place) or ("" if argument else _elsewhere(file, place)):
        parts.append(comment)
    if target and not argument:
        parts.append(documented(target)[0])
    return _escaped("; ".join(part.rstrip(".") for part in parts))


def _escaped(text: str) -> str:
    """Escape what Markdown would take for the end of a cell or for HTML."""
    plain = _CODE_OR_TAG.sub(lambda found: "&lt;" if found[0] == "<" else found[0], text)
    return plain.replace("|", "\\|")


def _elsewhere(file: File, place: tuple[str, ...]) -> str:
    """Return the comment behind the same key of another choice of the group, or of another subcommand."""
    others = [read(name) for name in COMMANDS]
    if file.group:
        others = [read(f"{file.group}/{path.stem}") for path in sorted((CONF / file.group).glob("*.yaml"))]
    return next((other.remarks[place] for other in others if place in other.remarks), "")


def rows(file: File) -> Iterator[tuple[str, str, str]]:
    """Key, default and meaning of every key of a file."""
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


def command_page(command: str) -> str:
    """The page of a subcommand: purpose, examples, groups and keys."""
    file = read(command)
    groups = [
        f"| {_link(group.partition('@')[0], '../')} | {_choice(choice)} |"
        for group, choice in file.choices.items()
    ]
    parts = [
        f"# fastcomposer {command}",
        file.about,
        *(["## Examples", file.examples] if file.examples else []),
        "## Groups",
        "\n".join(["| group | default |", "| --- | --- |", *groups]),
        "## Keys",
        table(file),
    ]
    return "\n\n".join(parts) + "\n"


def _link(group: str, up: str = "") -> str:
    return f"[{group}]({up}groups/{_page(group)})"


def _page(group: str) -> str:
    return f"{group.replace('/', '-')}.md"


def _choice(choice: Any) -> str:
    return (
        f"`[{','.join(choice)}]`" if isinstance(choice, list) else f"`{'null' if choice is None else choice}`"
    )


def group_page(group: str) -> str:
    """The page of a configuration group: all its choices."""
    parts = [f"# {group}"]
    for path in sorted((CONF / group).glob("*.yaml")):
        file = read(f"{group}/{path.stem}")
        parts.append(f"## `{group}={path.stem}`")
        target = file.values.get("_target_")
        if target and "_target_" in {place[0] for place in file.own}:
            parts.append(f"Instantiates `{target}`.")
        parts += [file.about] if file.about else []
        if file.builds_on:
            parts.append("Builds on " + ", ".join(f"`{name}`" for name in file.builds_on) + ". Changes:")
        head = ("key", "set to") if group in _OVERRIDES else ("key", "default", "meaning")
        parts += [listed] if (listed := table(file, head)) else []
        if file.swept:
            lines = [f"| {key} | {_written(values)} |" for key, values in file.swept.items()]
            parts.append("\n".join(["| swept key | values |", "| --- | --- |", *lines]))
    return "\n\n".join(parts) + "\n"


def index_page(groups: Iterable[str]) -> str:
    """The page that lists subcommands and groups."""
    commands = [
        f"| [fastcomposer {name}](commands/{name}.md) | {' '.join(read(name).about.split())} |"
        for name in COMMANDS
    ]
    choices = [
        f"| {_link(group)} | {' '.join(f'`{path.stem}`' for path in sorted((CONF / group).glob('*.yaml')))} |"
        for group in groups
    ]
    parts = [
        HEAD,
        "## Subcommands\n",
        "\n".join(["| subcommand | purpose |", "| --- | --- |", *commands]),
        "\n## Groups\n",
        "\n".join(["| group | choices |", "| --- | --- |", *choices]),
    ]
    return "\n".join(parts) + "\n"


def pages() -> dict[str, str]:
    """All pages by their path in the folder of the reference."""
    groups = sorted({str(file.parent.relative_to(CONF)) for file in CONF.glob("*/**/*.yaml")})
    return {
        "index.md": index_page(groups),
        **{f"commands/{command}.md": command_page(command) for command in COMMANDS},
        **{f"groups/{_page(group)}": group_page(group) for group in groups},
    }


def main(folder: Path) -> None:
    """Write all pages, and delete those of subcommands and groups that are gone."""
    written = pages()
    for part in ("commands", "groups"):
        (folder / part).mkdir(parents=True, exist_ok=True)
        for file in (folder / part).glob("*.md"):
            if f"{part}/{file.name}" not in written:
                file.unlink()
    for name, text in written.items():
        (folder / name).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
