"""What a command says at its end: where everything is, and what to do next.

It goes to standard error, as progress does; standard output has what a script reads.
"""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from hydra.conf import HydraConf
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

DEFAULTS = {"model": "mini", "data": "avatars", "sampler": "mini", "benchmark": "mini"}
"""Choices that need not be said; those of the mini world."""
_PLAIN = re.compile(r"[\w.*/-]*[A-Za-z/][\w.*/-]*")  # needs no quotes of Hydra's
_WORDS = ("null", "true", "false", "nan", "inf")  # as its grammar reads them
_CONFIG_FOLDER = ("--config-dir", "-cd")


@dataclass(frozen=True)
class Step:
    """Something to do next.

    Attributes:
        purpose: What for, in a few words.
        line: The command, as a shell takes it.
    """

    purpose: str
    line: str


def conclude(places: Mapping[str, str | Path | None], steps: Sequence[Step] = ()) -> None:
    """Say where everything is and what to do next.

    Args:
        places: Files and folders by what they hold; what does not exist is left out.
        steps: What to do next; left out of the jobs of a sweep.
    """
    there = {what: shown(place) for what, place in places.items() if place and Path(place).exists()}
    width = max(map(len, there), default=0)
    lines = [f"  {what:<{width}}  {place}" for what, place in there.items()]
    if steps and HydraConfig.get().mode != RunMode.MULTIRUN:
        lines.append("Next")
        lines += [f"  # {step.purpose}\n  {step.line}" for step in steps]
    print("", *lines, sep="\n", file=sys.stderr)


def shown(place: str | Path) -> str:
    """A path as the user would write it: relative inside the working directory."""
    path = Path(place).absolute()
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)


def call(command: str, *arguments: str) -> str:
    """The line that calls a command with Hydra's arguments, in the user's own configuration folders, too."""
    line = ["python", "-m", f"fastcomposer.cli.{command}", *_config_folders(), *arguments]
    return shlex.join(line)


def again(command: str, **changes: str | float) -> str:
    """The line that calls the present command once more, with some values changed or added."""
    task = HydraConfig.get().overrides.task
    kept = [given for given in task if _key(given) not in changes]
    return call(command, *kept, *(f"{key}={value}" for key, value in changes.items()))


def carried(*groups: str, given: Mapping[str, str] = DEFAULTS) -> list[str]:
    """What another command has to be told to work on the same: choices, and what the user changed in them.

    Args:
        groups: Names of groups, such as ``model``, or of single keys, such as ``data.root``.
        given: Choices that the other command makes by itself.
    """
    return carried_from(HydraConfig.get(), *groups, given=given)


def carried_from(hydra: HydraConf, *groups: str, given: Mapping[str, str] = DEFAULTS) -> list[str]:
    """The same, of a call whose configuration is composed but does not run.

    Args:
        hydra: Hydra's part of it.
        *groups: See :func:`carried`, as the last.
        given: See there.
    """
    found = []
    for group in groups:
        choice = hydra.runtime.choices.get(group)
        if choice is not None and choice != given.get(group):
            found.append(f"{group}={choice}")
        for override in hydra.overrides.task:
            key = _key(override)
            if (key == group and choice is None) or key.startswith(f"{group}."):
                found.append(override)
    return found


def value(text: str | Path) -> str:
    """A path or a sentence as a value on the command line, in Hydra's quotes where it needs them."""
    plain = shown(text) if isinstance(text, Path) else text
    if _PLAIN.fullmatch(plain) and plain.lower() not in _WORDS:
        return plain
    escaped = plain.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def opened(file: str | Path) -> str:
    """The line that shows a page in the browser."""
    return shlex.join(["python", "-m", "webbrowser", "-t", Path(file).absolute().as_uri()])


def draw(config: DictConfig, checkpoint: str | Path) -> list[Step]:
    """Draw somebody with trained weights, if there is a picture of anybody to draw."""
    example = _example(config)
    if example is None:
        return []
    prompt, references = example
    arguments = [*carried("model", "sampler"), f"checkpoint={value(Path(checkpoint))}", f"prompt={prompt}"]
    arguments.append(f"references=[{','.join(value(Path(name)) for name in references)}]")
    return [Step("draw people with it", call("generate", *arguments))]


def measure(checkpoint: str | Path) -> list[Step]:
    """Score what trained weights draw, on the benchmark that comes with the mini world."""
    if choice("model") != DEFAULTS["model"]:  # others need pictures of celebrities, which nobody may pass on
        return []
    name, output = value(Path(checkpoint)), value(f"outputs/evaluation/{Path(checkpoint).stem}")
    same = [*carried("model"), *people_from(HydraConfig.get())]
    line = call("evaluate", *same, f"checkpoint={name}", f"output={output}")
    return [Step("measure likeness and prompt on people it has never seen", line)]


def people_from(hydra: HydraConf) -> list[str]:
    """Where an evaluation finds the people of the mini world: beside the records, which shards have left.

    Args:
        hydra: Hydra's part of a configuration.
    """
    return [] if hydra.runtime.choices.get("data") == "streaming" else carried_from(hydra, "data.root")


def training(data: Sequence[str], *more: str) -> Step:
    """Train on data that was prepared.

    Args:
        data: Arguments that name the data.
        *more: Further ones.
    """
    mini = choice("model") == DEFAULTS["model"]
    given = {"model": "mini" if mini else "sd15"}
    recipe = "experiment=mini" if mini else "experiment=paper_1gpu"
    return Step("train on it", call("train", recipe, *carried("model", given=given), *data, *more))


def choice(group: str) -> str | None:
    """What was chosen of a group."""
    return HydraConfig.get().runtime.choices.get(group)


def _example(config: DictConfig) -> tuple[str, Sequence[str]] | None:
    """A prompt and references that exist: those drawn while training, or a held-out record."""
    samples = config.get("callbacks", {}).get("samples")
    if samples is not None:
        return samples.prompts[-1], samples.references[-1]
    root = config.data.get("root")
    if root is None or not Path(root).is_dir():
        return None
    from fastcomposer.data.records import RecordError, read_ids, record_path

    try:
        picture = record_path(root, read_ids(root, "test")[0], ".jpg")
    except RecordError:  # shards, or nobody is held out
        return None
    return "a person <|image|> on the beach", [str(picture)]


def _key(override: str) -> str:
    return override.partition("=")[0].lstrip("+~")


def _config_folders() -> list[str]:
    """Where the user's own configurations are, as the present call said it."""
    found = [given for given in HydraConfig.get().overrides.hydra if given.startswith("hydra.searchpath")]
    arguments = iter(sys.argv[1:])
    for argument in arguments:
        name, equals, folder = argument.partition("=")
        if name in _CONFIG_FOLDER:
            found.append(f"--config-dir={folder if equals else next(arguments)}")
    return found
