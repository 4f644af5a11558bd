"""Checkpoint files: written completely or not at all, and checked before a training resumes from one."""

from __future__ import annotations

import os
import sys
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch
from lightning.pytorch.plugins.io import TorchCheckpointIO
from torch import Tensor

from fastcomposer.utils.errors import FaultError
from fastcomposer.utils.files import existing_file, write_atomically
from fastcomposer.utils.network_files import non_finite_names

_TRAINED = ("state_dict", "ema", "optimizer_states")


class CheckpointFiles(TorchCheckpointIO):
    """Writes a checkpoint beside its path, waits until the disk has it, and renames it.

    Whatever fails or is killed in between, the checkpoint before stays as it was. (Lightning writes through
    the folder of temporary files, from where another disk is reached by copying.)
    """

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None
    ) -> None:
        """Write a checkpoint, or name the file, the room on the disk, and the checkpoints that are left."""
        file = Path(path)
        try:
            write_atomically(file, lambda stream: _save(checkpoint, stream))
        except OSError as error:
            left = ", ".join(sorted(str(other) for other in file.parent.glob("*.ckpt")))
            kept = (
                f"complete and kept: {left}; make room, then resume=auto"
                if left
                else "there is no earlier one"
            )
            raise FaultError(f"the checkpoint could not be saved: {error}; {kept}") from error


class _Watched:
    """A stream that keeps the error of a write, of which torch only reports that there was one."""

    def __init__(self, stream: BinaryIO) -> None:
        self.stream, self.flush = stream, stream.flush
        self.error: OSError | None = None

    def write(self, data: Any) -> int:
        try:
            return self.stream.write(data)
        except OSError as error:
            self.error = error
            raise


def _save(checkpoint: dict[str, Any], raw: BinaryIO) -> None:
    stream = _Watched(raw)
    try:
        torch.save(checkpoint, stream)  # type: ignore[arg-type]
    except RuntimeError:
        if stream.error is None:
            raise
        raise stream.error from None
    raw.flush()
    os.fsync(raw.fileno())


def non_finite(checkpoint: Mapping[str, Any]) -> str:
    """Name the first weights, averages and optimizer states that hold NaN or infinity."""
    parts = (_tensors(checkpoint.get(part), part) for part in _TRAINED)
    return non_finite_names({name: tensor for part in parts for name, tensor in part})


def _tensors(content: Any, name: str) -> Iterator[tuple[str, Tensor]]:
    if isinstance(content, Tensor):
        yield name, content
    elif isinstance(content, Mapping | list | tuple):
        items = content.items() if isinstance(content, Mapping) else enumerate(content)
        for key, value in items:
            yield from _tensors(value, f"{name}.{key}")


def newest_complete(folder: Path) -> Path | None:
    """Find the checkpoint of most steps that is complete and finite; ``None`` if the folder has none at all.

    Newer ones that are not are named on standard error; it is a fault if none is.
    """
    steps, damaged = {}, {}
    for file in sorted(folder.glob("*.ckpt")):
        try:
            steps[file] = read_step(file)
        except FaultError as error:
            damaged[file] = str(error)
    for file in sorted(steps, key=lambda file: (steps[file], file.name == "last.ckpt"), reverse=True):
        try:
            check_complete(file)
        except FaultError as error:
            damaged[file] = str(error)
            continue
        for reason in damaged.values():
            print(f"{reason}; resuming from {file}, after step {steps[file]}", file=sys.stderr)
        return file
    if damaged:
        raise FaultError(f"{'; '.join(damaged.values())}; there is no other: resume=restart begins anew")
    return None


def read_step(file: Path) -> int:
    """Read how many steps a checkpoint has behind it."""
    return int(_read(file)["global_step"])


def read_settings(file: Path) -> dict[str, Any]:
    """Read the settings of a checkpoint's training; one that does not record them is refused."""
    settings: dict[str, Any] = _read(file).get("settings", {})
    if not settings:
        raise FaultError(
            f"checkpoint {file} does not record the settings it was trained with, so they cannot be compared "
            "with the present ones: resume=restart begins anew"
        )
    return settings


def check_complete(file: Path) -> None:
    """Read a checkpoint from end to end, and refuse wrong checksums, NaN and infinity."""
    content = _read(file)
    with zipfile.ZipFile(file) as archive:
        damaged = archive.testzip()
    if damaged is not None:
        raise FaultError(f"checkpoint {file} is damaged (wrong checksum of {damaged})")
    if names := non_finite(content):
        raise FaultError(f"checkpoint {file} holds numbers that are not finite ({names})")


def _read(file: Path) -> dict[str, Any]:
    """Open a checkpoint without running what a pickle may carry."""
    try:
        content: dict[str, Any] = torch.load(
            existing_file(file, "file"), map_location="cpu", weights_only=True, mmap=True
        )
        int(content["global_step"])
    except Exception as error:  # damaged bytes may raise anything in a decoder
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise FaultError(f"checkpoint {file} is damaged or none ({reason})") from None
    return content
