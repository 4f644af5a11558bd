"""Say what a machine lacks for a command: ``fastcomposer doctor experiment=paper``."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from fastcomposer.cli.common import CONFIG_FOLDER, command, message_of, renamed
from fastcomposer.cli.help import show_help

_NAME = "doctor"
_JSON = ("--json", "json=true", "json=True")
_STYLES = {"ok": "green", "warning": "yellow", "missing": "red"}


def main() -> None:
    """Compose the configuration of a command, and say what is missing; status 1 where it could not start."""
    arguments = sys.argv[1:]
    if show_help(_NAME, CONFIG_FOLDER, arguments):
        return
    if "--cfg" in arguments or "-c" in arguments:
        command(_NAME)(lambda config: None)()
        return
    as_json = any(argument in _JSON for argument in arguments)
    name, rest = split_call([argument for argument in arguments if argument not in _JSON])
    try:
        from hydra.core.hydra_config import HydraConfig

        from fastcomposer.doctor.examine import examine

        config = composed(name, rest)
        found = examine(name, config, HydraConfig.get().runtime.choices.get("model", "mini"))
    except Exception as error:
        message = message_of(error) or _composition(error)
        if message is None:
            raise
        print(f"error: {message}", file=sys.stderr)
        sys.exit(1)
    ready = all(one.state != "missing" for one in found)
    if as_json:
        content = {"command": name, "ready": ready, "findings": [asdict(one) for one in found]}
        print(json.dumps(content, indent=2))
    else:
        _show(name, found, ready)
    sys.exit(0 if ready else 1)


def split_call(arguments: Sequence[str]) -> tuple[str, list[str]]:
    """The command that is examined, ``train`` where none is named, and its overrides."""
    if arguments and arguments[0].isidentifier():
        return arguments[0], list(arguments[1:])
    return "train", list(arguments)


def composed(name: str, overrides: Sequence[str]) -> dict[str, Any]:
    """The configuration of a command in plain values, without making the folder of its run."""
    from hydra import compose, initialize_config_dir
    from hydra.core.hydra_config import HydraConfig
    from omegaconf import OmegaConf

    from fastcomposer.cli import evaluate, score
    from fastcomposer.utils.texts import keep_texts

    if name in ("evaluate", "score"):
        alias = evaluate.ALIAS if name == "evaluate" else score.ALIAS
        overrides = [renamed(one, *alias) for one in overrides]
    with initialize_config_dir(str(CONFIG_FOLDER), version_base="1.3"):
        folder = "hydra.runtime.output_dir=${hydra.run.dir}"
        config = compose(name, [*overrides, folder], return_hydra_config=True)
    HydraConfig.instance().set_config(config)
    config = OmegaConf.masked_copy(config, [str(key) for key in config if key != "hydra"])
    keep_texts(config)
    plain: Any = OmegaConf.to_container(config, resolve=True)
    return plain


def _composition(error: Exception) -> str | None:
    from hydra.errors import HydraException

    return str(error) if isinstance(error, HydraException) else None


def _show(name: str, found: Sequence[Any], ready: bool) -> None:
    from rich.console import Console
    from rich.text import Text

    console = Console(soft_wrap=True, highlight=False)
    for topic in dict.fromkeys(one.topic for one in found):
        console.print(topic, style="bold")
        for one in (one for one in found if one.topic == topic):
            state = Text(f"  {one.state:<8}", style=_STYLES[one.state])
            console.print(state, Text(": ".join(filter(None, (one.name, one.detail)))))
            if one.remedy:
                console.print(Text(f"           → {one.remedy}"))
    lacking = sum(one.state == "missing" for one in found)
    print(f"{name} can start." if ready else f"{name} cannot start: {lacking} missing.")


if __name__ == "__main__":
    main()
