"""Worlds, caches and shards from the command line."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from fastcomposer.cli import prepare, train

Run = Callable[..., tuple[int, str, str]]


def test_prepare_writes_a_world(run: Run) -> None:
    call = [
        "data.root=world",
        "data.prepare.num_train=3",
        "data.prepare.num_test=2",
        "data.prepare.num_workers=0",
    ]
    status, out, err = run(prepare, *call)
    assert status == 0, err
    assert "5 records made" in out
    assert len(list(Path("world").rglob("*.jpg"))) == 5
    status, _, err = run(prepare, *call, "data.prepare.scenes.seed=1")
    assert status == 1
    assert "holds another world" in err


def test_train_from_shards_and_a_cache(run: Run, settings: list[str], world: Path, small_base: Path) -> None:
    made = [
        f"model.base={small_base}",
        "model.resolution=32",
        "model.reference_size=56",
        f"data.root={world}",
    ]
    status, out, err = run(prepare, *made, "cache=cache", "precompute.records_per_file=16")
    assert status == 0, err
    assert out.endswith("data.module.cache=cache\n")
    assert len(list(Path("cache").glob("part-*.safetensors"))) == 3
    status, out, err = run(prepare, *made, "shards=shards", "sharding.num_workers=0")
    assert status == 0, err
    assert out.endswith("32 records written; data=streaming data.root=shards\n")
    streamed = [*settings, "data=streaming", "data.root=shards", "data.module.reference=other_image"]
    streamed += ["data.module.cache=cache", "~callbacks.samples"]
    status, _, err = run(train, *streamed)
    assert status == 0, err
    assert torch.load("outputs/mini/checkpoints/last.ckpt", weights_only=True)["global_step"] == 3
    status, _, err = run(train, *streamed, "name=other", "model.resolution=64")
    assert status == 1
    assert "data.module.cache=cache is stale: resolution: 32, not 64; fastcomposer prepare" in err


@pytest.mark.slow
def test_two_processes_fill_the_cache_of_one(tmp_path: Path, world: Path, small_base: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "fastcomposer.cli.prepare",
        f"model.base={small_base}",
        f"data.root={world}",
    ]
    command += ["model.resolution=32", "model.reference_size=56", "precompute.records_per_file=7"]
    ddp = ["trainer.strategy=ddp", "trainer.devices=2"]
    for name, options in (("one", []), ("two", ddp), ("two", ddp)):  # the second time there is nothing to do
        subprocess.run([*command, *options, f"cache={name}"], cwd=tmp_path, check=True)
    files = sorted((tmp_path / "one").iterdir())
    assert len(files) == 7  # 24 and 8 records, and what they were made from
    for file in files:
        other = tmp_path / "two" / file.name
        if file.suffix != ".safetensors":
            assert other.read_bytes() == file.read_bytes()
            continue
        one, two = load_file(file), load_file(other)
        assert one.keys() == two.keys()
        for name, value in one.items():  # products of matrices may round differently in another process
            torch.testing.assert_close(two[name], value, rtol=1e-5, atol=1e-5)
