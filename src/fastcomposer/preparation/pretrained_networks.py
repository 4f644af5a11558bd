"""Networks of transformers that come with their own preprocessing."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any


def load_with_processor(
    network: Any, processor: Any, model: str | Path, key: str, unused: Collection[str] = ()
) -> tuple[Any, Any]:
    """Load a network for inference in float32, and its processor.

    Args:
        network: An auto class of transformers.
        processor: Auto class of its preprocessing.
        model: Folder or hub id.
        key: Setting that ``model`` comes from, for messages.
        unused: Names of weights that may be missing because nothing is computed with them.

    Raises:
        FileNotFoundError: If there is no such model.
        ValueError: If weights are missing, which would stay random.
    """
    try:
        loaded, info = network.from_pretrained(model, output_loading_info=True)
        prepare = processor.from_pretrained(model)
    except (OSError, ValueError) as error:
        raise FileNotFoundError(
            f"{key}={model}: no folder or hub id with a model for {network.__name__} and its preprocessing: "
            f"{error}"
        ) from error
    missing = sorted(set(map(str, info["missing_keys"])) - set(unused))
    if missing:
        raise ValueError(f"{key}={model}: {len(missing)} weights are missing: {', '.join(missing[:12])}")
    return loaded.float().eval().requires_grad_(False), prepare
