"""``--help`` without Hydra's own, which takes three times as long."""

from __future__ import annotations

import string
from collections.abc import Sequence
from pathlib import Path

from hydra import compose, initialize_config_dir
from hydra.errors import HydraException
from omegaconf import OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException


def show_help(config_name: str, config_folder: Path, arguments: Sequence[str]) -> bool:
    """Print what Hydra prints for ``--help``; returns ``False`` for calls that are left to Hydra."""
    overrides = [argument for argument in arguments if argument not in ("--help", "-h")]
    if len(overrides) == len(arguments) or any(override.startswith("-") for override in overrides):
        return False
    try:
        with initialize_config_dir(str(config_folder), version_base="1.3"):
            config = compose(config_name, overrides, return_hydra_config=True)
        template = string.Template(config.hydra.help.template)
    except (HydraException, OmegaConfBaseException):
        return False
    with open_dict(config):
        del config.hydra
    groups: dict[str, list[str]] = {}
    for file in sorted(config_folder.rglob("*/*.yaml")):
        group = file.parent.relative_to(config_folder).as_posix()
        if not group.startswith("hydra"):
            groups.setdefault(group, []).append(file.stem)
    listed = "".join(f"{group}: {', '.join(choices)}\n" for group, choices in sorted(groups.items()))
    print(template.substitute(APP_CONFIG_GROUPS=listed, CONFIG=OmegaConf.to_yaml(config)))
    return True
