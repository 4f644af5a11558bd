"""The five long jobs of a soak: their calls and their results."""

from __future__ import annotations

import csv
import hashlib
import os
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from safetensors.torch import load_file
from small_training import small_training
from toy_evaluation import Toy

from fastcomposer.data.shards import ShardedRecords
from fastcomposer.training.checkpoints import read_step
from fastcomposer.utils.errors import FaultError

_VALIDATED = 5  # steps between validations
OUTPUT = "run"
"""Folder of a job's results, inside its working directory."""
WORLD = "world"
"""Folder of its data, beside that one."""
# Costs of an image: of two that share their steps one is sampled by itself if the other was done before.
_MEASURED = {"seconds", "peak_memory_bytes", "unet_calls"}
_STEP = re.compile(r"step=(\d+)")


@dataclass(frozen=True)
class Job:
    """A command that resumes where it stopped."""

    name: str
    command: str  # module of fastcomposer.cli
    arguments: Sequence[str]
    results: Callable[[Path], dict[str, Any]]  # by name: to be as in an undisturbed run
    done: Callable[[Path], dict[str, int]]  # finished work by name: must not change; numbers of steps grow
    progress: Callable[[Path], int]  # amount of finished work, quickly counted
    faults: tuple[str, ...]
    newest: tuple[str, ...] = ()  # patterns of files of which the newest is damaged

    def compare(self, before: dict[str, int], after: dict[str, int]) -> tuple[list[str], list[str]]:
        """Finished work that is gone, and work that was repeated."""
        if self.name == "train":
            return [f"step {n + 1}" for n in range(after["steps"], before["steps"])], []
        lost = [name for name in before if name not in after]
        return lost, [name for name, value in before.items() if after.get(name, value) != value]

    def amount(self, done: dict[str, int]) -> int:
        """Amount of finished work."""
        return done.get("steps", 0) if self.name == "train" else len(done)

    def newest_files(self, folder: Path) -> list[Path]:
        """Files that may be damaged, the newest last; links are not counted twice."""
        walked = os.walk(folder / OUTPUT)  # which passes over folders that a job removes meanwhile
        files = [Path(top, name) for top, _, names in walked for name in names]
        found = {file.resolve() for file in files if any(map(file.match, self.newest))}
        return sorted((file for file in found if file.exists()), key=lambda file: file.stat().st_mtime_ns)


def jobs(base: Path, toy: Toy, *, size: int = 1) -> tuple[Job, ...]:
    """The jobs, on tiny models and data; with ``size`` 1 each takes a second or two."""
    # Without what differs from run to run: samples, progress, throughput.
    training = f"""
        threads=1 data.module.batch_size=2 data.module.num_workers=2 hydra.run.dir={OUTPUT} resume=auto
        ~callbacks.samples ~callbacks.progress ~callbacks.throughput
        +callbacks.nan._target_=soak_callbacks.NanBurst callbacks.checkpoint.every_n_train_steps=2
        method.ema_decay=0.9 method.max_bad_steps=1 +trainer.enable_progress_bar=false
        trainer.max_steps={15 * size} trainer.val_check_interval={_VALIDATED} trainer.limit_val_batches=1
        trainer.log_every_n_steps=1
    """
    train = small_training(base, f"../{WORLD}", *training.split())
    evaluation = toy.arguments("group_size=2", "scoring.batch_size=3", "threads=1", f"output={OUTPUT}")
    evaluation = [*evaluation, *(["benchmark.multi=null"] if size == 1 else [])]
    rendering = f"""
        data=avatars data.root={OUTPUT} data.prepare.num_train={56 * size} data.prepare.num_test=8
        data.prepare.num_workers=1 data.prepare.reference_size=32 data.prepare.scenes.num_identities=8
    """.split()
    sharding = f"""
        data=avatars data.root=../{WORLD} shards={OUTPUT} sharding.records_per_shard=2 sharding.num_workers=1
    """.split()
    caching = f"""
        model.base={base} model.resolution=32 model.reference_size=56 data.root=../{WORLD} cache={OUTPUT}
        data.module.num_workers=0 precompute.records_per_file=2 precompute.batch_size=2 threads=1
    """.split()
    ends = ("kill", "term", "evict", "disk", "second")
    workers = ("outage", "worker")
    images, made, cut = _count("*.png", "*.parquet"), _count("*.json"), _count("chunk-*.bin", "chunk-*.json")
    return (
        Job(
            *("train", "train", train, _training, _steps, _step),
            (*ends, *workers, "record", "truncate", "unvalidated", "nan"),
            ("checkpoints/*.ckpt",),
        ),
        Job(
            *("evaluate", "evaluate", evaluation, _scores, _files("*.png"), images),
            (*ends, "truncate"),
            ("*.png", "*.parquet"),
        ),
        Job("prepare", "prepare", rendering, _bytes, _files("*.json"), made, (*ends, *workers)),
        Job(
            *("shards", "prepare", sharding, _sharded, _shards, cut),
            (*ends, *workers, "record", "shard"),
            ("*/*.bin",),
        ),
        Job(
            *(
                "cache",
                "prepare",
                caching,
                _bytes,
                _files("*.safetensors"),
                _count("*.safetensors"),
            ),
            (*ends, "cache"),
            ("*.safetensors",),
        ),
    )


# --- results -----------------------------------------------------------------------------------------------


def _training(folder: Path) -> dict[str, Any]:
    """The weights, and the log's row of every step and of every validation, of which there is one each."""
    weights = load_file(folder / OUTPUT / "fastcomposer.safetensors")
    found: dict[str, Any] = {name: _digest(value.numpy().tobytes()) for name, value in weights.items()}
    with (folder / OUTPUT / "logs" / "metrics.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["train/loss"] or row["val/denoise_loss"]]
    rest = [tuple(sorted(pair for pair in row.items() if pair[0] != "epoch")) for row in rows]
    names = (f"{'step' if row['train/loss'] else 'validation after step'} {row['step']}" for row in rows)
    return found | _once(names, rest)


def unvalidated(folder: Path) -> bool:
    """Whether the newest checkpoint is of a step with a validation that the log does not have."""
    step = _step(folder)
    if not step or step % _VALIDATED:
        return False
    try:
        with (folder / OUTPUT / "logs" / "metrics.csv").open() as file:
            return not any(
                row.get("val/denoise_loss") and int(row["step"]) == step - 1 for row in csv.DictReader(file)
            )
    except OSError:
        return True


def _scores(folder: Path) -> dict[str, Any]:
    """Each image and its scores; an interrupted group is sampled in other batches, so they may round."""
    found: dict[str, Any] = dict.fromkeys(_files("*.png")(folder), True)
    for file in sorted((folder / OUTPUT).glob("*/*/scores.parquet")):
        lines = pq.read_table(file).to_pylist()
        names = [f"scores of {file.parent.name} {line['case']}" for line in lines]
        kept = [{key: value for key, value in line.items() if key not in _MEASURED} for line in lines]
        found |= _once(names, kept)
    return found


def _bytes(folder: Path) -> dict[str, Any]:
    """Every file that is not hidden."""
    files = [file for file in (folder / OUTPUT).rglob("*") if file.is_file()]
    return {
        str(file.relative_to(folder)): _digest(file.read_bytes())
        for file in files
        if not any(part.startswith(".") for part in file.relative_to(folder).parts)
    }


def _sharded(folder: Path) -> dict[str, Any]:
    """Every file, and every record as it is read from the shards."""
    found = _bytes(folder)
    for split in ("train", "test"):
        shards = ShardedRecords(str(folder / OUTPUT), split)
        files = [shards.files(name) for name in shards.record_ids]
        contents = [_digest(record.json + record.jpg + record.npy) for record in files]
        found |= _once((f"record {name}" for name in shards.record_ids), contents)
    return found


def _once(names: Iterable[str], values: Iterable[Any]) -> dict[str, Any]:
    """Values by name; a name that occurs twice gets a suffix."""
    found: dict[str, Any] = {}
    for name, value in zip(names, values, strict=True):
        while name in found:
            name = f"{name} again"
        found[name] = value
    return found


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


# --- progress ----------------------------------------------------------------------------------------------


def _steps(folder: Path) -> dict[str, int]:
    """The steps of the newest checkpoint that can be read."""
    found = [0]
    for file in (folder / OUTPUT / "checkpoints").glob("*.ckpt"):
        try:
            found.append(read_step(file))
        except FaultError:
            continue
    return {"steps": max(found)}


def _step(folder: Path) -> int:
    """The steps of the newest checkpoint, by its name."""
    names = " ".join(file.name for file in (folder / OUTPUT / "checkpoints").glob("*.ckpt"))
    return max(map(int, _STEP.findall(names)), default=0)


def _files(pattern: str) -> Callable[[Path], dict[str, int]]:
    def times(folder: Path) -> dict[str, int]:
        found = (folder / OUTPUT).rglob(pattern)
        return {str(file.relative_to(folder)): file.stat().st_mtime_ns for file in found}

    return times


def _count(*patterns: str) -> Callable[[Path], int]:
    def count(folder: Path) -> int:
        """Number of files; folders come and go meanwhile."""
        names = [name for _, _, files in os.walk(folder / OUTPUT) for name in files if name[0] != "."]
        return sum(Path(name).match(pattern) for name in names for pattern in patterns)

    return count


def _shards(folder: Path) -> dict[str, int]:
    """The shards beside which their checksums lie, which come last."""
    complete = _files("chunk-*.bin")(folder)
    return {name: time for name, time in complete.items() if (folder / name).with_suffix(".json").exists()}
