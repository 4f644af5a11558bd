"""Checkpoint files: written whole or not at all, and checked before a training goes on from one."""

from __future__ import annotations

import os
import sys
import zipfile
from pathlib import Path
from typing import Any, BinaryIO

import torch
from lightning.pytorch.plugins.io import TorchCheckpointIO

from fastcomposer.runtime.faults import FaultError
from fastcomposer.runtime.files import disk_error


class CheckpointFiles(TorchCheckpointIO):
    """Writes a checkpoint beside its place, waits until the disk has it, and renames it.

    What fails or is killed in between leaves the checkpoint before as it was. (Lightning's own way goes
    through the folder of temporary files, from where another disk is reached by copying.)
    """

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None
    ) -> None:
        """Write a checkpoint.

        Args:
            checkpoint: The state of everything.
            path: The file.
            storage_options: None are known.

        Raises:
            FaultError: If the disk does not take it, with the file, the room on the disk, and what is left.
        """
        if storage_options is not None:
            raise TypeError("storage_options: checkpoints are written to local folders, which have none")
        file = Path(path)
        temporary = file.with_name(f".{file.name}.tmp")
        file.parent.mkdir(parents=True, exist_ok=True)
        try:
            with temporary.open("wb") as raw:
                _save(checkpoint, raw)
            temporary.replace(file)
        except OSError as error:
            temporary.unlink(missing_ok=True)
            raise FaultError(_unsaved(file, error)) from error


class _Watched:
    """A stream that keeps the error of a write, of which torch only says that there was one."""

    def __init__(self, stream: BinaryIO) -> None:
        self.stream = stream
        self.error: OSError | None = None

    def write(self, data: Any) -> int:
        try:
            return self.stream.write(data)
        except OSError as error:
            self.error = error
            raise

    def flush(self) -> None:
        self.stream.flush()


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


def _unsaved(file: Path, error: OSError) -> str:
    left = sorted(str(other) for other in file.parent.glob("*.ckpt"))
    kept = (
        f"whole and kept: {', '.join(left)}; make room, then resume=auto"
        if left
        else "there is no earlier one"
    )
    return f"the checkpoint could not be saved: {disk_error(error, file)}; {kept}"


def newest_whole(folder: Path) -> Path | None:
    """Find the checkpoint that a run goes on from: of those that are whole, the one of most steps.

    Says on standard error which newer ones are damaged.

    Args:
        folder: Where the run keeps its checkpoints.

    Returns:
        The file, ``None`` if there is none.

    Raises:
        FaultError: If all are damaged.
    """
    steps, damaged = {}, {}
    for file in sorted(folder.glob("*.ckpt")):
        try:
            steps[file] = read_step(file)
        except FaultError as error:
            damaged[file] = str(error)
    for file in sorted(steps, key=lambda file: (steps[file], file.name == "last.ckpt"), reverse=True):
        try:
            check_whole(file)
        except FaultError as error:
            damaged[file] = str(error)
            continue
        for reason in damaged.values():
            print(f"{reason}; going on from {file}, after step {steps[file]}", file=sys.stderr)
        return file
    if damaged:
        raise FaultError(f"{'; '.join(damaged.values())}; no other is there: resume=restart begins anew")
    return None


def read_step(file: Path) -> int:
    """Read how many steps a checkpoint has behind it, without running anything that a pickle may carry.

    Raises:
        FaultError: If it cannot be read.
    """
    try:
        return int(torch.load(file, map_location="cpu", weights_only=True, mmap=True)["global_step"])
    except Exception as error:  # damaged bytes may raise anything in a decoder
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise FaultError(f"checkpoint {file} is damaged or none ({reason})") from None


def check_whole(file: Path) -> None:
    """Read a checkpoint from end to end and compare it with its checksums.

    Raises:
        FaultError: If it is damaged.
    """
    read_step(file)
    with zipfile.ZipFile(file) as archive:
        damaged = archive.testzip()
    if damaged is not None:
        raise FaultError(f"checkpoint {file} is damaged (wrong checksum of {damaged})")
