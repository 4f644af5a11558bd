"""Finding and loading of the networks that extractors are made of."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from fastcomposer.utils.network_files import check_finite, naming_damage

FACENET_FILES = {
    "vggface2": "20180402-114759-vggface2.pt",
    "casia-webface": "20180408-102900-casia-webface.pt",
}
"""Names of published InceptionResnetV1 weights to their files."""
_FACENET_RELEASE = "https://github.com/timesler/facenet-pytorch/releases/download/v2.2.9"
INCEPTION_FILES = {"inception-2015-12-05": "weights-inception-2015-12-05-6726825d.pth"}
"""Names of published Inception weights to their files."""
_INCEPTION_RELEASE = "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0"


def load_pretrained(cls: Any, source: str | Path, key: str, subfolder: str = "") -> Any:
    """Load a network for inference: float32, no dropout, no gradients.

    Args:
        cls: A model class of transformers or diffusers.
        source: Folder, or hub id.
        key: Name of the setting that ``source`` comes from, for messages.
        subfolder: Folder inside ``source``.

    Raises:
        FileNotFoundError: If there is no such network.
        ValueError: If the file lacks weights, which would stay random.
    """
    try:
        with naming_damage(f"{key}:", source):
            network, info = cls.from_pretrained(source, subfolder=subfolder, output_loading_info=True)
    except OSError as error:
        where = f"{subfolder}/ of it" if subfolder else "it"
        raise FileNotFoundError(
            f"{key}={source}: {where} holds no {cls.__name__} (config.json and weights): {error}"
        ) from error
    missing = sorted(map(str, info["missing_keys"]))
    if missing:
        listed = ", ".join(missing[:12]) + (" …" if len(missing) > 12 else "")
        raise ValueError(f"{key}={source}: {cls.__name__} lacks {len(missing)} weights: {listed}")
    check_finite(network.state_dict(), f"{key}:", source)
    return network.float().eval().requires_grad_(False)


def find_weights(
    weights: str | Path, files: Mapping[str, str], release: str, key: str, download: bool = False
) -> Path:
    """Find a file of published weights in the places where libraries keep them.

    Args:
        weights: A name among ``files``, or a file.
        files: Names of weights to names of their files.
        release: Address of the folder that they are published in.
        key: Setting that holds ``weights`` and ``download``, for messages.
        download: Whether a named file that is not there may be downloaded.

    Raises:
        FileNotFoundError: If it is not there, with where it belongs, or could not be downloaded.
    """
    name = files.get(str(weights))
    if name is None:
        file = Path(weights).expanduser()
        if not file.is_file():
            raise FileNotFoundError(f"{key}.weights={weights}: neither a file nor one of {', '.join(files)}")
        return file
    # facenet-pytorch looks into the first, torch.hub into the second.
    hub = Path(torch.hub.get_dir())
    folders = [hub.parent / "checkpoints", hub / "checkpoints"]
    for folder in folders:
        if (folder / name).is_file():
            return folder / name
    url = f"{release}/{name}"
    if not download:
        raise FileNotFoundError(
            f"{key}.weights={weights}: {name} is neither in {folders[0]} nor in {folders[1]}: put it into "
            f"one of them (it is at {url}), give its path, or set {key}.download=true"
        )
    folders[0].mkdir(parents=True, exist_ok=True)
    try:
        torch.hub.download_url_to_file(url, str(folders[0] / name), progress=False)
    except OSError as error:
        raise FileNotFoundError(
            f"{key}.weights={weights}: {url} cannot be downloaded ({error}): put {name} into {folders[0]}"
        ) from error
    return folders[0] / name


def find_facenet_weights(weights: str | Path, download: bool = False) -> Path:
    """Find the file of InceptionResnetV1's weights.

    Args:
        weights: A name of :data:`FACENET_FILES`, or a file.
        download: Whether a named file that is not there may be downloaded.

    Raises:
        FileNotFoundError: If it is not there, or could not be downloaded.
    """
    return find_weights(weights, FACENET_FILES, _FACENET_RELEASE, "metrics.faces", download)


def find_inception_weights(weights: str | Path, download: bool = False) -> Path:
    """Find the file of Inception's weights, a name of :data:`INCEPTION_FILES` or a file, as faces' above."""
    return find_weights(weights, INCEPTION_FILES, _INCEPTION_RELEASE, "metrics.features", download)
