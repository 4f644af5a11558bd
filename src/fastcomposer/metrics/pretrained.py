"""Loading of the networks that extractors are made of."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def load_pretrained(
    cls: Any, place: str | Path, key: str, subfolder: str = "", unused: tuple[str, ...] = ()
) -> Any:
    """Load a network for inference: float32, no dropout, no gradients.

    Args:
        cls: A model class of transformers or diffusers.
        place: Folder, or hub id.
        key: Name of the setting that ``place`` comes from, for messages.
        subfolder: Folder inside ``place``.
        unused: What the names of weights that may be missing start with.

    Raises:
        FileNotFoundError: If there is no such network.
        ValueError: If the file lacks weights, which would stay random.
    """
    try:
        network, info = cls.from_pretrained(place, subfolder=subfolder, output_loading_info=True)
    except OSError as error:
        where = f"{subfolder}/ of it" if subfolder else "it"
        raise FileNotFoundError(
            f"{key}={place}: {where} holds no {cls.__name__} (config.json and weights): {error}"
        ) from error
    missing = sorted(name for name in map(str, info["missing_keys"]) if not name.startswith(unused))
    if missing:
        listed = ", ".join(missing[:12]) + (" …" if len(missing) > 12 else "")
        raise ValueError(f"{key}={place}: {cls.__name__} lacks {len(missing)} weights: {listed}")
    return network.float().eval().requires_grad_(False)
