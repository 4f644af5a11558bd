"""``--help``, in a part of the time that Hydra takes for it."""

from __future__ import annotations

import string
from collections.abc import Iterator, Sequence
from pathlib import Path

from hydra import compose, initialize_config_dir
from hydra.errors import HydraException
from omegaconf import OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

_ASKED = ("--help", "-h")


def show_help(config_name: str, config_folder: Path, arguments: Sequence[str]) -> bool:
    """Print what Hydra prints for ``--help``, where overrides alone go with it.

    For every group that it lists, Hydra copies all that its plugins have registered.

    Args:
        config_name: Name of the command's file.
        config_folder: Where configurations are.
        arguments: Of the command line.

    Returns:
        Whether it did. Hydra has to where other options are given, and says best what is wrong with
        overrides.
    """
    overrides = [argument for argument in arguments if argument not in _ASKED]
    if len(overrides) == len(arguments) or any(override.startswith("-") for override in overrides):
        return False
    try:
        with initialize_config_dir(str(config_folder), version_base="1.3"):
            config = compose(config_name, overrides, return_hydra_config=True)
        template = config.hydra.help.template
    except (HydraException, OmegaConfBaseException):
        return False
    with open_dict(config):
        del config.hydra
    groups = "".join(f"{group}: {', '.join(choices)}\n" for group, choices in sorted(_groups(config_folder)))
    print(string.Template(template).substitute(APP_CONFIG_GROUPS=groups, CONFIG=OmegaConf.to_yaml(config)))
    return True


def _groups(config_folder: Path) -> Iterator[tuple[str, list[str]]]:
    """Each group of the commands' own with its choices."""
    for folder in filter(Path.is_dir, config_folder.rglob("*")):
        group = folder.relative_to(config_folder).as_posix()
        choices = sorted(file.stem for file in folder.glob("*.yaml"))
        if choices and not group.startswith("hydra"):
            yield group, choices
