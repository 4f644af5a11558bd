"""The released checkpoint's layout: one file with every network under its published names.

Format (docs/method.md, Files): ``unet.* vae.* text_encoder.* image_encoder.* postfuse_module.*`` as
written with diffusers 0.16 and transformers 4.25. Two things differ today: the attention of the VAE is named
otherwise, and ``position_ids`` are no longer stored.
"""

from __future__ import annotations

import re
import zipfile
from collections.abc import Container, Iterable, Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from fastcomposer.models.lora import plain_name
from fastcomposer.utils.files import existing_file, save_atomically, write_atomically
from fastcomposer.utils.network_files import non_finite_names

# Published prefix to the name of the component.
_COMPONENTS = {name: name for name in ("unet", "vae", "text_encoder", "image_encoder")}
_COMPONENTS["postfuse_module"] = "fusion"
_VAE_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
_VAE_OLD = re.compile(r"(.*\.attentions\.\d+\.)(query|key|value|proj_attn)(\.(?:weight|bias))")
_VAE_NEW = re.compile(r"(.*\.attentions\.\d+\.)(to_q|to_k|to_v|to_out\.0)(\.(?:weight|bias))")
_ONLY_PUBLISHED = ("vae", "text_encoder", "postfuse_module")
_OBJECT = re.compile(r"GLOBAL (\S+)")
_POSITION_IDS = {
    f"{part}.position_ids": f"{part}.position_embedding.weight"
    for part in ("text_encoder.embeddings", "image_encoder.vision_model.embeddings")
}


def read_checkpoint(path: str | Path) -> dict[str, Tensor]:
    """Read a checkpoint of tensors alone; errors are those of :func:`existing_file`, :func:`read_saved`."""
    state = read_saved(existing_file(path, "checkpoint"), "checkpoint")
    if not isinstance(state, Mapping) or not all(isinstance(value, Tensor) for value in state.values()):
        raise ValueError(f"checkpoint {path} is no mapping of names to tensors")
    return dict(state)


def read_saved(file: Path, what: str) -> Any:
    """Read a ``.safetensors`` file, or one of ``torch.save`` without running anything that it may carry.

    Args:
        file: The file.
        what: Name of the file, for messages.

    Raises:
        ValueError: If it cannot be read, or holds objects of other classes than those of plain data.
    """
    existing_file(file, what)
    try:
        if file.suffix == ".safetensors":
            return load_file(file)
        # Only the zip format can be mapped into memory instead of being read twice.
        return torch.load(file, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(file))
    except (UnpicklingError, SafetensorError, RuntimeError, EOFError) as error:
        found = _OBJECT.search(str(error))
        reason = str(error).partition("\n")[0]
        if isinstance(error, UnpicklingError):  # torch's own message is advice to run code
            reason = "it is neither .safetensors nor a file of tensors by torch.save"
        if found is not None:
            reason = (
                f"it holds objects of the class {found[1]}, which could run code and are never unpickled: "
                "take the .safetensors file of the same weights"
            )
        raise ValueError(f"{what} {file} cannot be read as a file of weights: {reason}") from error


def is_published(file: Path) -> bool:
    """Whether a file of weights is in the released layout; errors are those of :func:`read_saved`."""
    try:
        if file.suffix == ".safetensors":
            with safe_open(file, "pt") as opened:
                return has_published_names(opened.keys())
    except SafetensorError as error:
        raise ValueError(f"checkpoint {file} cannot be read as a file of weights: {error}") from error
    content = read_saved(file, "checkpoint")
    return isinstance(content, Mapping) and has_published_names(content)


def has_published_names(names: Iterable[Any]) -> bool:
    """Whether names are those of the released layout; a training's weights call the fusion otherwise."""
    prefixes = {str(name).partition(".")[0] for name in names}
    return "fusion" not in prefixes and any(prefix in prefixes for prefix in _ONLY_PUBLISHED)


def load_published(modules: Mapping[str, nn.Module], state: Mapping[str, Tensor], origin: str) -> None:
    """Copy a state in the published layout, of the file ``origin``, into components: :func:`load_exact`.

    Positions other than 0, 1, 2 … are unexpected.
    """
    refuse_second_encoder(modules)
    load_exact(modules, current_state(state), f"checkpoint {origin} does not fit the base model")


def current_state(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A published state under today's names, ``component.parameter``, without ``position_ids`` in order."""
    return {
        _current_name(name): tensor
        for name, tensor in state.items()
        if name not in _POSITION_IDS or not torch.equal(tensor, _positions(tensor.shape[-1]))
    }


def published_state(modules: Mapping[str, nn.Module]) -> dict[str, Tensor]:
    """The components' weights under their published names: the inverse of :func:`load_published`."""
    refuse_second_encoder(modules)
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
    """Write the components of :func:`load_published` in the released layout, replacing a file when complete.

    A path that ends with ``.safetensors`` gets that format, any other is written by ``torch.save``.
    """
    file = Path(path).expanduser()
    state = {name: tensor.cpu() for name, tensor in published_state(modules).items()}
    if file.suffix == ".safetensors":
        save_atomically(file, lambda temporary: save_file(state, temporary))
    else:
        write_atomically(file, lambda stream: torch.save(state, stream))
    return file


def load_exact(
    modules: Mapping[str, nn.Module], state: Mapping[str, Tensor], problem: str, only: set[str] | None = None
) -> set[str]:
    """Copy ``component.parameter`` tensors into components, all or none.

    Args:
        modules: Component name to module.
        state: Full name to tensor; see :func:`~fastcomposer.models.lora.plain_name`.
        problem: Start of the message if they do not fit.
        only: Full names that are expected; ``None`` for all of the components.

    Returns:
        Full names of the tensors that changed.

    Raises:
        ValueError: If names are missing or unexpected, or shapes differ; all of them are listed.
    """
    states = {part: module.state_dict() for part, module in modules.items()}
    own = {plain_name(f"{part}.{name}"): value for part in states for name, value in states[part].items()}
    if only is not None:
        own = {name: value for name, value in own.items() if name in only}
    lines = [f"missing: {name}" for name in own if name not in state]
    lines += [f"unexpected: {name}" for name in state if name not in own]
    lines += [
        f"shape: {name} is {tuple(state[name].shape)}, the model has {tuple(value.shape)}"
        for name, value in own.items()
        if name in state and state[name].shape != value.shape
    ]
    lines += [
        f"type: {name} is {state[name].dtype}, the model has {value.dtype}"
        for name, value in own.items()
        if name in state and state[name].is_floating_point() != value.is_floating_point()
    ]
    if names := non_finite_names(state):
        lines.append(f"not finite: {names}")
    if lines:
        raise ValueError(f"{problem}:\n  " + "\n  ".join(lines))
    changed = set()
    with torch.no_grad():
        for name, value in own.items():
            new = state[name].to(value)
            if not torch.equal(value, new):
                changed.add(name)
            value.copy_(new)
    return changed


def refuse_second_encoder(modules: Container[str]) -> None:
    """Refuse two text encoders by ``ValueError``: the layout has names for one."""
    if "text_encoder_2" in modules:
        raise ValueError(
            "the released layout has one text encoder and this model has two: keep it with "
            "save_trained_weights, or with to_pipeline().save_pretrained"
        )


def _positions(count: int) -> Tensor:
    return torch.arange(count)[None]


def _current_name(name: str) -> str:
    prefix, _, rest = name.partition(".")
    component = _COMPONENTS.get(prefix, prefix)
    return f"{component}.{_renamed(_VAE_OLD, _VAE_ATTENTION, rest) if component == 'vae' else rest}"


def _renamed(pattern: re.Pattern[str], names: Mapping[str, str], name: str) -> str:
    match = pattern.fullmatch(name)
    return name if match is None else match[1] + names[match[2]] + match[3]
