"""Checkpoints on full disks, and damaged ones."""

from __future__ import annotations

import io
import os
import pickle
import resource
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from small_training import saving

from fastcomposer.training.checkpoints import CheckpointFiles, check_complete, newest_complete, read_step
from fastcomposer.training.resuming import find_checkpoint
from fastcomposer.utils.errors import FaultError

Make = Callable[..., Any]


@contextmanager
def no_file_larger_than(size: int) -> Iterator[None]:
    """Let the system refuse larger files, as a full disk does."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def cut(file: Path, share: float) -> None:
    os.truncate(file, int(file.stat().st_size * share))


def turn_a_bit(file: Path) -> None:
    """Change the stored weights, which no length tells."""
    with zipfile.ZipFile(file) as archive:
        entry = max(archive.infolist(), key=lambda entry: entry.file_size)
    content = bytearray(file.read_bytes())
    content[entry.header_offset + 256 + entry.file_size // 2] ^= 1
    file.write_bytes(content)


@pytest.fixture
def trained(make_module: Make, fit: Make) -> Callable[..., dict[str, torch.Tensor]]:
    """Train with the checkpoints that the configuration asks for; returns the weights."""

    def run(folder: Path, steps: int, resume: str | None = None) -> dict[str, torch.Tensor]:
        module = make_module()
        checkpoint = find_checkpoint(resume, folder / "checkpoints")
        fit(module, steps, resume=checkpoint, **saving(folder, "checkpoint", "stop"))
        return {name: value.detach().clone() for name, value in module.state_dict().items()}

    return run


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("damage", [lambda f: cut(f, 0.0), lambda f: cut(f, 0.6), turn_a_bit])
def test_a_damaged_checkpoint_gives_way_to_the_one_before(
    damage: Callable[[Path], None], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for step in (2, 4):
        file = tmp_path / f"step={step:06d}.ckpt"
        CheckpointFiles().save_checkpoint({"global_step": step, "weights": torch.arange(1000.0)}, file)
    (tmp_path / "last.ckpt").symlink_to(file.name)
    assert newest_complete(tmp_path) == tmp_path / "last.ckpt"
    assert capsys.readouterr().err == ""
    damage(file)
    assert newest_complete(tmp_path) == tmp_path / "step=000002.ckpt"
    message = capsys.readouterr().err
    assert f"checkpoint {tmp_path}/last.ckpt is damaged" in message
    assert f"resuming from {tmp_path}/step=000002.ckpt, after step 2" in message


def test_where_none_is_whole_nothing_begins_anew(tmp_path: Path) -> None:
    assert newest_complete(tmp_path) is None
    (tmp_path / "last.ckpt").write_bytes(b"")
    with pytest.raises(FaultError, match=r"last\.ckpt is damaged.*resume=restart begins anew"):
        find_checkpoint("auto", tmp_path)
    with pytest.raises(FaultError, match=r"last\.ckpt is damaged or none"):
        find_checkpoint(str(tmp_path / "last.ckpt"), tmp_path)
    with pytest.raises(ValueError, match="holds an earlier run; resume=auto"):
        find_checkpoint(None, tmp_path)


def test_after_a_full_disk_and_a_damaged_file_the_training_is_the_same(trained: Make, tmp_path: Path) -> None:
    whole = trained(tmp_path / "whole", 6)
    trained(tmp_path / "run", 2)
    folder = tmp_path / "run" / "checkpoints"
    room = (folder / "last.ckpt").stat().st_size // 2
    with no_file_larger_than(room), pytest.raises(FaultError) as end:
        trained(tmp_path / "run", 4, "auto")
    message = str(end.value)
    assert "the checkpoint could not be saved: [Errno 27] File too large (" in message
    assert (
        f" MB free in {folder}): '{folder}/step=000004.ckpt'; complete and kept: {folder}/last.ckpt, "
        in message
    )
    assert message.endswith("make room, then resume=auto")
    assert {file.name for file in folder.iterdir()} == {"last.ckpt", "step=000002.ckpt"}
    trained(tmp_path / "run", 4, "auto")
    assert {file.name: read_step(file) for file in folder.iterdir()} == {
        "step=000002.ckpt": 2,
        "step=000004.ckpt": 4,
        "last.ckpt": 4,
    }
    for name in ("last.ckpt", "step=000004.ckpt"):
        cut(folder / name, 0.9)
    assert same(trained(tmp_path / "run", 6, "auto"), whole)
    assert read_step(folder / "step=000004.ckpt") == 4


def test_every_moment_of_a_full_disk(tmp_path: Path) -> None:
    """Wherever in the file the room ends, what was there stays and nothing is left beside it."""
    files, path = CheckpointFiles(), tmp_path / "last.ckpt"
    files.save_checkpoint({"global_step": 1}, path)
    state = {"global_step": 2, "weights": torch.arange(5000.0), "more": {f"{i}": i for i in range(50)}}
    stored = io.BytesIO()
    torch.save(state, stored)
    for room in range(0, len(stored.getvalue()), 499):
        with no_file_larger_than(room), pytest.raises(FaultError, match="could not be saved"):
            files.save_checkpoint(state, path)
        assert read_step(path) == 1
        assert [file.name for file in tmp_path.iterdir()] == ["last.ckpt"]
    files.save_checkpoint(state, path)
    check_complete(path)
    assert read_step(path) == 2


class _Malice:
    """Writes a file when it is unpickled."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> Any:
        return Path.touch, (self.file,)


@pytest.mark.parametrize("how", ["torch", "pickle"])
def test_checkpoints_of_strangers_run_nothing(how: str, tmp_path: Path) -> None:
    file, mark = tmp_path / "last.ckpt", tmp_path / "ran"
    content = {"global_step": 5, "state_dict": {}, "loops": _Malice(mark)}
    if how == "torch":
        torch.save(content, file)
    else:
        file.write_bytes(pickle.dumps(content))
    for resume in ("auto", str(file)):
        with pytest.raises(FaultError, match=r"last\.ckpt is damaged or none"):
            find_checkpoint(resume, tmp_path)
    assert not mark.exists()
    if how == "torch":  # it would have
        torch.load(file, weights_only=False)
        assert mark.exists()
