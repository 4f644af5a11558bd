"""The released checkpoint's layout: one file with every network under its published names.

Format (PAPER.md, checkpoint format): ``unet.* vae.* text_encoder.* image_encoder.* postfuse_module.*`` as
written with diffusers 0.16 and transformers 4.25. Two things differ today: the attention of the VAE is named
otherwise, and ``position_ids`` are no longer stored.
"""

from __future__ import annotations

import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from fastcomposer.models.source import existing_file

# Published prefix to the name of the component.
_COMPONENTS = {
    "unet": "unet",
    "vae": "vae",
    "text_encoder": "text_encoder",
    "image_encoder": "image_encoder",
    "postfuse_module": "fusion",
}
_VAE_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
_VAE_OLD = re.compile(r"(.*\.attentions\.\d+\.)(query|key|value|proj_attn)(\.(?:weight|bias))")
_VAE_NEW = re.compile(r"(.*\.attentions\.\d+\.)(to_q|to_k|to_v|to_out\.0)(\.(?:weight|bias))")
_POSITION_IDS = {
    "text_encoder.embeddings.position_ids": "text_encoder.embeddings.position_embedding.weight",
    "image_encoder.vision_model.embeddings.position_ids": (
        "image_encoder.vision_model.embeddings.position_embedding.weight"
    ),
}


def read_checkpoint(path: str | Path) -> dict[str, Tensor]:
    """Read a checkpoint file without running anything that a pickle may carry.

    Args:
        path: ``.safetensors`` file, or a file written by ``torch.save``.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is no checkpoint, or holds more than tensors.
    """
    file = existing_file(path, "checkpoint")
    try:
        if file.suffix == ".safetensors":
            return load_file(file)
        # Only the zip format can be mapped into memory instead of being read twice.
        mmap = zipfile.is_zipfile(file)
        state = torch.load(file, map_location="cpu", weights_only=True, mmap=mmap)
    except (UnpicklingError, SafetensorError, RuntimeError, EOFError) as error:
        raise ValueError(f"checkpoint {file} cannot be read as a file of weights: {error}") from error
    if not isinstance(state, Mapping) or not all(isinstance(value, Tensor) for value in state.values()):
        raise ValueError(f"checkpoint {file} is no mapping of names to tensors")
    return dict(state)


def load_published(modules: Mapping[str, nn.Module], state: Mapping[str, Tensor], origin: str) -> None:
    """Copy a state in the published layout into today's components.

    Args:
        modules: ``unet``, ``vae``, ``text_encoder``, ``image_encoder`` and ``fusion``.
        state: Published name to tensor.
        origin: Where the state comes from, for messages.

    Raises:
        ValueError: If names are missing or unexpected, or shapes differ; all of them are listed. Positions
            other than 0, 1, 2 … are unexpected.
    """
    _refuse_second_encoder(modules)
    current = {
        _current_name(name): tensor
        for name, tensor in state.items()
        if name not in _POSITION_IDS or not torch.equal(tensor, _positions(tensor.shape[-1]))
    }
    load_exact(modules, current, f"checkpoint {origin} does not fit the base model")


def published_state(modules: Mapping[str, nn.Module]) -> dict[str, Tensor]:
    """The components' weights under their published names: the inverse of :func:`load_published`.

    Raises:
        ValueError: If there are two text encoders, for which the layout has no names.
    """
    _refuse_second_encoder(modules)
    state: dict[str, Tensor] = {}
    for prefix, component in _COMPONENTS.items():
        for name, tensor in modules[component].state_dict().items():
            if component == "vae":
                name = _renamed(_VAE_NEW, {new: old for old, new in _VAE_ATTENTION.items()}, name)
            state[f"{prefix}.{name}"] = tensor.detach().contiguous()
    for name, embedding in _POSITION_IDS.items():
        state[name] = _positions(state[embedding].shape[0])
    return state


def write_published(modules: Mapping[str, nn.Module], path: str | Path) -> Path:
    """Write the components in the released layout, for programs that read the released checkpoint.

    Args:
        modules: See :func:`load_published`.
        path: File to write, replaced at once when complete; ``.safetensors``, or any other name for
            ``torch.save``.
    """
    file = Path(path).expanduser()
    file.parent.mkdir(parents=True, exist_ok=True)
    state = {name: tensor.cpu() for name, tensor in published_state(modules).items()}
    temporary = file.with_name(f"{file.name}.tmp")
    if file.suffix == ".safetensors":
        save_file(state, temporary)
    else:
        torch.save(state, temporary)
    return temporary.replace(file)


def load_exact(
    modules: Mapping[str, nn.Module], state: Mapping[str, Tensor], problem: str, only: set[str] | None = None
) -> None:
    """Copy ``component.parameter`` tensors into components, all or none.

    Args:
        modules: Component name to module.
        state: Full name to tensor.
        problem: How the message starts if they do not fit.
        only: Full names that are expected; ``None`` for all of the components' own.

    Raises:
        ValueError: If names are missing or unexpected, or shapes differ; all of them are listed.
    """
    own = {f"{part}.{name}": value for part in modules for name, value in modules[part].state_dict().items()}
    if only is not None:
        own = {name: value for name, value in own.items() if name in only}
    lines = [f"missing: {name}" for name in own if name not in state]
    lines += [f"unexpected: {name}" for name in state if name not in own]
    lines += [
        f"shape: {name} is {tuple(state[name].shape)}, the model has {tuple(value.shape)}"
        for name, value in own.items()
        if name in state and state[name].shape != value.shape
    ]
    if lines:
        raise ValueError(f"{problem}:\n  " + "\n  ".join(lines))
    with torch.no_grad():
        for name, value in own.items():
            value.copy_(state[name])


def _positions(count: int) -> Tensor:
    return torch.arange(count)[None]


def _refuse_second_encoder(modules: Mapping[str, nn.Module]) -> None:
    if "text_encoder_2" in modules:
        raise ValueError(
            "the released layout has one text encoder and this model has two: keep it with "
            "save_trained_weights, or with to_pipeline().save_pretrained"
        )


def _current_name(name: str) -> str:
    prefix, _, rest = name.partition(".")
    component = _COMPONENTS.get(prefix, prefix)
    return f"{component}.{_renamed(_VAE_OLD, _VAE_ATTENTION, rest) if component == 'vae' else rest}"


def _renamed(pattern: re.Pattern[str], names: Mapping[str, str], name: str) -> str:
    match = pattern.fullmatch(name)
    return name if match is None else match[1] + names[match[2]] + match[3]
