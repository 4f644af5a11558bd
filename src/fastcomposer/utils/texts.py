r"""Free text in configurations, in which OmegaConf must not resolve ``${interpolations}``."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from omegaconf import AnyNode, DictConfig, ListConfig, OmegaConf

TEXTS = ("prompt", "negative_prompt", "template", "initial_word", "rare_token", "note")
"""Keys of texts."""
COLLECTIONS = ("prompts", "templates", "labels", "class_words")
"""Keys of lists and mappings of texts, unless they are interpolations themselves."""
_BEGIN = re.compile(r"(\\*)\$\{")


class Text(str):
    """A string in which OmegaConf finds no ``${``, also in the new nodes that Hydra makes to instantiate."""

    __slots__ = ()

    def __contains__(self, part: object) -> bool:
        return part != "${" and super().__contains__(part)  # type: ignore[operator]

    def __reduce__(self) -> tuple[type[str], tuple[str]]:
        return str, (str(self),)


def as_data(value: Any) -> Any:
    """Wrap plain values for a configuration, so that it resolves no string in them."""
    if isinstance(value, str):
        return AnyNode(Text(value), flags={"allow_objects": True}) if "${" in value else value
    if isinstance(value, Mapping):
        return OmegaConf.create({key: as_data(entry) for key, entry in value.items()})
    if isinstance(value, Sequence):
        return OmegaConf.create([as_data(entry) for entry in value])
    return value


def plain(config: DictConfig) -> dict[str, Any]:
    """A configuration in plain values, all interpolations resolved except in texts."""

    def unwrapped(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: unwrapped(entry) for key, entry in value.items()}
        if isinstance(value, list):
            return [unwrapped(entry) for entry in value]
        return str(value) if isinstance(value, Text) else value

    return unwrapped(OmegaConf.to_container(config, resolve=True))


def given_overrides(hydra: Any) -> list[str]:
    """Overrides of a call as Hydra's part of the configuration has them, unresolved."""
    overrides: Any = OmegaConf.to_container(hydra.overrides.task)
    return overrides


def escaped(text: str) -> str:
    r"""Write a text so that OmegaConf reads it back as it is: ``\${`` in place of ``${``."""
    return _BEGIN.sub(r"\1\1\\${", text)


def keep_texts(config: DictConfig | ListConfig, inside: bool = False) -> None:
    r"""Mark texts of a composed configuration (``inside``: all strings) in place, so that none is resolved.

    ``\${``, as OmegaConf escapes it, becomes ``${``; an unescaped one stays.
    """
    keys: Any = list(config.keys()) if isinstance(config, DictConfig) else range(len(config))
    for key in keys:
        node: Any = config._get_node(key)
        if isinstance(node, DictConfig | ListConfig):
            if key != "hydra" and not (node._is_interpolation() or node._is_none() or node._is_missing()):
                keep_texts(node, inside or key in COLLECTIONS)
        elif (inside or key in TEXTS) and isinstance(node._value(), str) and "${" in node._value():
            text = _BEGIN.sub(lambda found: found[1][: len(found[1]) // 2] + "${", node._value())
            config[key] = as_data(text)
