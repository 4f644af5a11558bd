"""Where the files of a model are, found without loading anything."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fastcomposer.utils.files import existing_file

DEFAULT_IMAGE_ENCODER = "openai/clip-vit-large-patch14"
WEIGHTS_NAME = "fastcomposer.safetensors"
_LORA_NAME = "pytorch_lora_weights.safetensors"  # diffusers' own
PUBLISHED_NAME = "pytorch_model.bin"
TOKENIZER: list[tuple[str, ...]] = [("vocab.json", "tokenizer.json"), ("merges.txt", "tokenizer.json")]
"""Files of a tokenizer, each with what may stand in its place."""
_FILES: Mapping[str, list[tuple[str, ...]]] = {
    "tokenizer": TOKENIZER,
    "tokenizer_3": [("tokenizer.json", "spiece.model")],
    "scheduler": [("scheduler_config.json",)],
    "feature_extractor": [("preprocessor_config.json",)],
}
_HUB_ID = re.compile(r"[\w-][\w.-]*(/[\w.-]+)?")
_SINGLE_FILES = (".safetensors", ".ckpt")
BACKBONES = ("unet", "transformer")
"""Folders that hold a base's denoising network."""
_OF_DIFFUSERS = ("vae", *BACKBONES, "fusion", "detector", "embedder", "training_embedder")


def declares(index: Mapping[str, Any], component: str) -> bool:
    """Whether a ``model_index.json`` names a component."""
    return bool((index.get(component) or (None,))[0])


def without_t5(index: Mapping[str, Any]) -> dict[str, Any]:
    """A ``model_index.json`` without the T5 encoder and its tokenizer."""
    return {**index, "text_encoder_3": (None, None), "tokenizer_3": (None, None)}


def is_single_file(base: str | Path) -> bool:
    """Whether a base is named as a single file, rather than as a folder or hub id."""
    return Path(base).suffix in _SINGLE_FILES and not Path(base).expanduser().is_dir()


def folder_or_hub_id(path: str | Path, what: str) -> str:
    """The path of an existing folder, or something that may be a hub id."""
    folder = Path(path).expanduser()
    if folder.is_dir():
        return str(folder)
    if isinstance(path, Path) or folder.exists() or not _HUB_ID.fullmatch(path):
        raise FileNotFoundError(f"{what} {folder}: there is no such folder")
    return path


def image_encoder_folder(encoder: str | None, configs: str, index: Mapping[str, Any]) -> tuple[str, str]:
    """Folder or hub id of the image encoder, and its folder inside; ``None``: the base's or the default."""
    if encoder is None:
        own = declares(index, "image_encoder")
        return (configs, "image_encoder") if own else (DEFAULT_IMAGE_ENCODER, "")
    return encoder, "image_encoder" if (Path(encoder) / "image_encoder").is_dir() else ""


def find_weights_file(path: Path) -> Path:
    """Find the file that :func:`load_trained_weights` reads; ``FileNotFoundError`` if there is none."""
    if not path.is_dir():
        return existing_file(path, "checkpoint")
    names = (WEIGHTS_NAME, "checkpoints/last.ckpt", PUBLISHED_NAME)
    for name in names:
        if (path / name).exists():
            return existing_file(path / name, "checkpoint")
    raise FileNotFoundError(f"checkpoint {path}: none of {', '.join(names)} is in this folder")


def lora_file(weights: Path) -> Path:
    """File of the LoRA that belongs to a file of weights, beside it."""
    return weights.with_name(_LORA_NAME if weights.name == WEIGHTS_NAME else f"{weights.stem}.{_LORA_NAME}")


def local_folder(source: str | Path) -> Path | None:
    """An existing folder, or that of a hub id in the hub's cache; ``None`` if neither is there."""
    folder = Path(source).expanduser()
    if folder.is_dir():
        return folder
    if not _HUB_ID.fullmatch(str(source)):
        return None
    from huggingface_hub import try_to_load_from_cache

    found = (try_to_load_from_cache(str(source), name) for name in ("model_index.json", "config.json"))
    return next((Path(file).parent for file in found if isinstance(file, str)), None)


def base_parts(index: Mapping[str, Any], safety_checker: bool = False) -> list[str]:
    """Folders of a base that loading reads; of an unknown one those of Stable Diffusion 1."""
    names = ("text_encoder", "text_encoder_2", "text_encoder_3")
    texts = [name for name in names if declares(index, name)] or ["text_encoder"]
    tokenizers = [name.replace("text_encoder", "tokenizer") for name in texts]
    checker = ("safety_checker", "feature_extractor") if safety_checker else ()
    found = [name for name in ("image_encoder", "fusion", *checker) if declares(index, name)]
    backbone = next((name for name in BACKBONES if declares(index, name)), BACKBONES[0])
    return ["scheduler", "vae", backbone, *texts, *tokenizers, *found]


def missing_files(folder: Path | None, part: str, variant: str | None = None) -> list[str]:
    """Files that a part of a model lacks, relative to the folder; all of them without one.

    Of alternatives, such as shards or ``.bin``, the plain ``.safetensors`` is named.
    """
    kind, here = part.rpartition("/")[2], None if folder is None else folder / part
    middle = "" if variant is None else f".{variant}"
    stem = "diffusion_pytorch_model" if kind in _OF_DIFFUSERS else "model"
    wanted = _FILES.get(kind.removesuffix("_2"), [("config.json",), (f"{stem}{middle}.safetensors",)])
    weights = [] if here is None else [*here.glob(f"*{middle}.safetensors"), *here.glob(f"*{middle}.bin")]
    weights += [] if here is None else here.glob(f"*{middle}-*")  # shards
    return [
        f"{part}/{some[0]}".removeprefix("/")
        for some in wanted
        if here is None
        or not (any((here / name).is_file() for name in some) or (weights and some[0].startswith(stem)))
    ]
