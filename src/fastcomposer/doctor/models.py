"""Networks that a configuration reads: which of their files are there, and where the others belong."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from fastcomposer.doctor.finding import Finding, State
from fastcomposer.models.base_files import (
    BACKBONES,
    TOKENIZER,
    base_parts,
    find_weights_file,
    image_encoder_folder,
    is_single_file,
    local_folder,
    missing_files,
    without_t5,
)
from fastcomposer.utils.assets import asset

TOPIC = "networks"
BASE_KEYS = frozenset(("base", "image_encoder", "architecture", "weights"))
"""Keys of every mapping that names a base model."""
Reader = Iterator[Finding]


def base_model(key: str, node: Mapping[str, Any], safety_checker: bool = False) -> Reader:
    """A base model and its image encoder; see :func:`~fastcomposer.models.loading.open_source`."""
    base, variant = node["base"], node.get("variant")
    architecture = None if node["architecture"] is None else asset(node["architecture"])
    if node["weights"] == "random" or is_single_file(base):
        yield from _architecture(architecture)
        if node["weights"] == "random":
            return
        there = Path(base).expanduser().is_file()
        remedy = "" if there else f"put the file at {Path(base).expanduser().absolute()}"
        yield Finding(TOPIC, "model.base", "ok" if there else "missing", str(base), remedy)
        encoder, subfolder = image_encoder_folder(node["image_encoder"] or None, str(architecture), {})
        yield pretrained("model.image_encoder", encoder, [subfolder], first=TOKENIZER)
        return
    index = _index(local_folder(base)) or _index(architecture)
    index = index if node.get("t5", True) else without_t5(index)
    encoder, subfolder = image_encoder_folder(node["image_encoder"], str(base), index)
    parts = base_parts(index, safety_checker)
    if encoder != str(base):
        parts = [part for part in parts if part != "image_encoder"]
        yield pretrained("model.image_encoder", encoder, [subfolder])
    yield pretrained("model.base", base, parts, variant, first=[("model_index.json",)])


def _architecture(folder: Path | None) -> Reader:
    if folder is None or not (folder / "model_index.json").is_file():
        yield Finding(TOPIC, "model.architecture", "missing", str(folder), "name a folder of configurations")
    else:
        yield Finding(TOPIC, "model.architecture", "ok", str(folder))


def pretrained(
    key: str,
    source: str | Path,
    parts: Sequence[str],
    variant: str | None = None,
    first: Sequence[Sequence[str]] = (),
) -> Finding:
    """Parts of a folder or hub id, and files at its top, each with what may stand in its place."""
    folder = local_folder(source)
    some = [names for names in first if not any(folder and (folder / name).is_file() for name in names)]
    files = [names[0] for names in some]
    files += [name for part in parts for name in missing_files(folder, part, variant)]
    if not files:
        return Finding(TOPIC, key, "ok", str(source))
    detail = f"{source} lacks {', '.join(files)}"
    if Path(source).expanduser().is_dir() or str(source).startswith(("/", ".", "~")):
        return Finding(TOPIC, key, "missing", detail, f"put them into {source}", tuple(files))
    if str(source).startswith("data/"):  # of this repository
        return Finding(
            TOPIC, key, "missing", detail, f"call it in the clone, or {key}=<its path>", tuple(files)
        )
    from huggingface_hub.constants import HF_HUB_CACHE

    remedy = f"`hf download {source}` puts them into {HF_HUB_CACHE}; or {key}=<folder that has them>"
    state: State = "warning" if _on_the_hub(str(source), files[0]) else "missing"
    return Finding(TOPIC, key, state, detail, remedy, tuple(files))


@cache
def _on_the_hub(source: str, file: str) -> bool:
    """Whether the hub answers and gives a file, so that loading downloads it."""
    from huggingface_hub import get_hf_file_metadata, hf_hub_url

    try:
        get_hf_file_metadata(hf_hub_url(source, file), timeout=3)
    except Exception:  # offline, no such repository, no access: the reason is the same for a run
        return False
    return True


def named_weights(key: str, node: Mapping[str, Any], find: Any) -> Finding:
    """Weights that torch's cache holds by name, by a function ``find(weights, download)``."""
    try:
        return Finding(TOPIC, key, "ok", str(find(node["weights"])))
    except FileNotFoundError as error:
        state: State = "warning" if node.get("download") else "missing"
        return Finding(TOPIC, key, state, str(error))


def checkpoint(key: str, path: str | None) -> Finding:
    """Trained weights, the folder of a run or a saved pipeline."""
    if path is None:
        return Finding(
            TOPIC, key, "missing", "null", f"name trained weights: {key}=<file or folder of a run>"
        )
    if (Path(path) / "model_index.json").is_file():
        return Finding(TOPIC, key, "ok", str(path))
    try:
        return Finding(TOPIC, key, "ok", str(find_weights_file(Path(path).expanduser())))
    except FileNotFoundError as error:
        return Finding(TOPIC, key, "missing", str(error), f"train it, or {key}=<other>")


def _index(folder: Path | None) -> dict[str, Any]:
    return _json(folder, "model_index.json")


def _json(folder: Path | None, name: str) -> dict[str, Any]:
    try:
        return dict(json.loads((folder / name).read_bytes())) if folder is not None else {}
    except (OSError, ValueError, TypeError):
        return {}


# --- sizes -------------------------------------------------------------------------------------------------


def parameters(model: Mapping[str, Any]) -> dict[str, int]:
    """Numbers of each network: of headers of weights where they are there, else of the architecture."""
    architecture = None if model["architecture"] is None else asset(model["architecture"])
    known = _json(architecture, "parameters.json")
    base = None if model["weights"] == "random" else local_folder(model["base"])
    encoder, subfolder = image_encoder_folder(model["image_encoder"], str(model["base"]), _index(base))
    texts = ["text_encoder", "text_encoder_2"] + (["text_encoder_3"] if model["t5"] else [])
    parts = (*BACKBONES, "vae", *texts)
    found = {name: known.get(name, 0) if base is None else _numbers(base / name) for name in parts}
    folder = None if model["weights"] == "random" else local_folder(encoder)
    vision = known.get("image_encoder", 0) if folder is None else _numbers(folder / subfolder)
    config = _json(architecture and architecture / "image_encoder", "config.json")
    if folder is not None:
        config = _json(folder / subfolder, "config.json")
    config = config.get("vision_config", config)
    width, inner = config.get("hidden_size", 0), config.get("intermediate_size", 0)
    # Attention, perceptron and two norms of a transformer layer.
    layer = 4 * (width * width + width) + 2 * width * inner + inner + width + 4 * width
    return {**found, "image_encoder": vision, "vision_layer": layer}


def lora_parameters(model: Mapping[str, Any], settings: Mapping[str, Any] | None) -> int:
    """Numbers of the adapters of ``method.lora``; 0 without the backbone's configuration.

    Raises:
        ValueError: If ``method.lora.targets`` names a layer that the backbone does not have.
    """
    import torch

    from fastcomposer.models.families import family_of_base
    from fastcomposer.models.lora import LoRASettings, lora_parts, set_lora

    folder = None if model["weights"] == "random" else local_folder(model["base"])
    folder = folder or (None if model["architecture"] is None else asset(model["architecture"]))
    family = family_of_base(_index(folder))  # its network is built without weights
    if not (config := _json(folder and folder / family.NAME, "config.json")):
        return 0
    lora = LoRASettings(**{key: value for key, value in (settings or {}).items() if key != "_target_"})
    with torch.device("meta"):
        backbone = family.NETWORK.from_config(config)
        set_lora(backbone, lora.resolved(family.LORA_TARGETS))
    return sum(value.numel() for part in lora_parts(backbone) for value in part.parameters())


def _numbers(folder: Path) -> int:
    """Count the numbers in a folder's weights by their headers; without CLIP's text half."""
    from safetensors import SafetensorError, safe_open

    total = 0
    files = sorted(folder.glob("*.safetensors"))
    variants = [file for file in files if file.name.count(".") == 1]
    for file in variants or files[:1]:
        try:
            with safe_open(file, "numpy") as opened:
                for name in opened.keys():  # noqa: SIM118, no mapping
                    size = 1
                    for side in opened.get_slice(name).get_shape():
                        size *= side
                    both = name.startswith(("text_model.", "text_projection")) and _has_vision(opened)
                    total += 0 if both else size
        except (SafetensorError, OSError):
            continue
    return total


def _has_vision(opened: Any) -> bool:
    return "visual_projection.weight" in opened.keys()  # noqa: SIM118
