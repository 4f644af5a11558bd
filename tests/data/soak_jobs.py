"""The four long jobs of a soak: how each is called, and what must come out of it."""

from __future__ import annotations

import csv
import hashlib
import multiprocessing
import os
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import torch
from safetensors.torch import load_file
from toy_evaluation import Toy

from fastcomposer.faults import FaultError
from fastcomposer.training.checkpoints import read_step

OUTPUT = "run"
"""Folder of a job's results, inside the one that it is called in."""
_MEASURED = {"seconds", "peak_memory_bytes"}
_TIME = re.compile(rb'"updated_at": *"?[0-9.]+"?')


@dataclass(frozen=True)
class Job:
    """A command that goes on where it stopped.

    Attributes:
        name: What it is called here.
        command: Module of ``fastcomposer.cli``.
        arguments: Of the command.
        results: What it makes, by name: to be as in a run that nothing disturbed.
        done: Finished work, by name: to stay what it is, or, for numbers of steps, to grow.
        faults: What can happen to it.
    """

    name: str
    command: str
    arguments: tuple[str, ...]
    results: Callable[[Path], dict[str, Any]]
    done: Callable[[Path], dict[str, int]]
    faults: tuple[str, ...]

    def lost(self, before: dict[str, int], after: dict[str, int]) -> list[str]:
        """Finished work that is gone or was done again."""
        grows = self.name == "train"
        return [
            name
            for name, value in before.items()
            if name not in after or (after[name] < value if grows else after[name] != value)
        ]


def call(folder: str, command: str, arguments: tuple[str, ...], output: Any) -> None:
    """Call a command in a process of its own, whose output goes through a pipe: no file limit ends it."""
    os.dup2(output.fileno(), 1)
    os.dup2(output.fileno(), 2)
    sys.stdout = os.fdopen(1, "w", buffering=1, closefd=False)
    sys.stderr = os.fdopen(2, "w", buffering=1, closefd=False)
    multiprocessing.set_start_method("fork", force=True)  # as where no fork server started the process
    os.chdir(folder)
    torch.set_num_threads(1)
    sys.argv = [command, *arguments]
    import_module(f"fastcomposer.cli.{command}").main()


def jobs(world: Path, base: Path, toy: Toy, *, size: int = 1) -> tuple[Job, ...]:
    """The jobs, on tiny models and data.

    Args:
        world: Data folder.
        base: Base model.
        toy: Files of the evaluation.
        size: How long they are, 1 for seconds.
    """
    tiny = (f"model.base={base}", "model.resolution=32", "model.reference_size=56", "threads=1")
    train = (
        *tiny,
        "experiment=mini",
        f"data.root={world}",
        "data.module.batch_size=2",
        "data.module.num_workers=2",
        "method.vision_layers=1",
        "method.ema_decay=0.9",
        "~callbacks.samples",
        "~callbacks.progress",
        "~callbacks.throughput",  # no two are alike
        "callbacks.checkpoint.every_n_train_steps=2",
        "trainer.max_time=null",
        f"trainer.max_steps={15 * size}",
        "trainer.val_check_interval=5",
        "trainer.limit_val_batches=1",
        "trainer.log_every_n_steps=1",
        "+trainer.enable_progress_bar=false",
        f"hydra.run.dir={OUTPUT}",
        "resume=auto",
    )
    evaluation = (
        *toy.arguments("group_size=2", "scoring.batch_size=3", "threads=1", "benchmark.multi=null"),
        f"output={OUTPUT}",
    )
    rendering = (
        "data=avatars",
        f"data.root={OUTPUT}",
        f"data.prepare.num_train={40 * size}",
        "data.prepare.num_test=8",
        "data.prepare.num_workers=1",
        "data.prepare.reference_size=32",
        "data.prepare.scenes.num_identities=8",
    )
    sharding = (
        "data=avatars",
        f"data.root={world}",
        f"shards={OUTPUT}",
        "sharding.records_per_shard=2",
        "sharding.num_workers=1",
    )
    ends = ("kill", "term")
    return (
        Job("train", "train", train, _training, _steps, (*ends, "disk", "worker", "damage", "second")),
        Job("evaluate", "evaluate", evaluation, _scores, _files("*.png"), (*ends, "disk", "second")),
        Job("prepare", "prepare", rendering, _bytes, _files("*.json"), (*ends, "disk", "worker", "second")),
        Job("shards", "prepare", sharding, _bytes, _shards, (*ends, "disk", "worker", "second")),
    )


def _training(folder: Path) -> dict[str, Any]:
    """The weights, and the log's row of every step, of which there is one."""
    found: dict[str, Any] = {}
    for name, value in load_file(folder / OUTPUT / "fastcomposer.safetensors").items():
        found[name] = hashlib.sha256(value.numpy().tobytes()).hexdigest()
    with (folder / OUTPUT / "logs" / "metrics.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["train/loss"]]
    for number, row in enumerate(rows):
        found[f"row {number}"] = tuple(sorted(pair for pair in row.items() if pair[0] != "epoch"))
    return found


def _steps(folder: Path) -> dict[str, int]:
    """The steps of the newest checkpoint that can be read."""
    found = [0]
    for file in (folder / OUTPUT / "checkpoints").glob("*.ckpt"):
        try:
            found.append(read_step(file))
        except FaultError:
            continue
    return {"steps": max(found)}


def _scores(folder: Path) -> dict[str, Any]:
    """The scores of every picture; a group cut in two is drawn in other batches, so they may round."""
    found: dict[str, Any] = {}
    for file in sorted((folder / OUTPUT).glob("*/*/scores.parquet")):
        for number, line in enumerate(pq.read_table(file).to_pylist()):
            kept = {key: value for key, value in line.items() if key not in _MEASURED}
            found[f"{file.parent.name} {number}"] = kept
    return found


def _bytes(folder: Path) -> dict[str, Any]:
    """Every file but for when litdata says it was written; what is hidden is nobody's result."""
    files = [file for file in (folder / OUTPUT).rglob("*") if file.is_file()]
    return {
        str(file.relative_to(folder)): hashlib.sha256(_TIME.sub(b"", file.read_bytes())).hexdigest()
        for file in files
        if not any(part.startswith(".") for part in file.relative_to(folder).parts)
    }


def _files(pattern: str) -> Callable[[Path], dict[str, int]]:
    def times(folder: Path) -> dict[str, int]:
        return {str(file): file.stat().st_mtime_ns for file in (folder / OUTPUT).rglob(pattern)}

    return times


def _shards(folder: Path) -> dict[str, int]:
    """The shards whose index says that they are complete."""
    complete: dict[str, int] = {}
    for split in ("train", "test"):
        place = folder / OUTPUT / split
        everything = (place / "index.json").exists()
        for file in place.glob("*.bin"):
            number = file.stem.rpartition("-")[2]
            if everything or (place / f"{number}.index.json").exists():
                complete[str(file)] = file.stat().st_mtime_ns
    return complete
