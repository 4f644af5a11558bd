"""Data that a configuration reads: whether records, cache, shards and references are complete and fit."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from fastcomposer.data.index import RecordIndex, RecordTable, describe_records
from fastcomposer.data.records import record_path
from fastcomposer.doctor.finding import Finding
from fastcomposer.evaluation.benchmark import Benchmark, find_subjects, load_benchmarks, read_definition
from fastcomposer.evaluation.other_benchmarks import load_multihuman, load_multiid, load_xverse
from fastcomposer.utils.assets import asset

TOPIC = "data"
_DEFAULTS: Mapping[str, Any] = {
    "train_split": "train",
    "val_split": "test",
    "cache": None,
    "local": None,
    "on_bad_record": "raise",
    "min_subjects": 0,
    "labels": ["person"],
}
"""What the data module takes where a configuration leaves it out."""


def data_module(node: Mapping[str, Any], processes: int, prepare: str, faces: bool) -> Iterator[Finding]:
    """Both splits of a folder or of shards, and the cache.

    Args:
        node: ``data.module``.
        processes: That share an epoch, of which each fills a batch at least.
        prepare: Command that makes the folder.
        faces: Whether the training needs annotated faces.
    """
    node = {**_DEFAULTS, **node}
    shards = "Streaming" in node["_target_"]
    splits = [split for split in (node["train_split"], node["val_split"]) if split is not None]
    tables: dict[str, RecordTable] = {}
    yield from _read(tables, lambda split: _table(node, split, shards), node["root"], splits, prepare)
    labels = node["labels"]
    counts = {name: describe_records(table, labels) for name, table in tables.items()}
    shown = ", ".join(f"{one['records']} records to {name}" for name, one in counts.items())
    if shown:
        yield Finding(TOPIC, "data.root", "ok", f"{node['root']}: {shown}")
    train = counts.get(node["train_split"])
    if train is not None:
        yield from _fit(node, train, processes, tables[node["train_split"]], faces and not shards)
    if node["cache"] is not None:
        yield _cache(node, tables)


def record_folder(root: str | Path, splits: Sequence[str], prepare: str) -> Iterator[Finding]:
    """The records of a folder, whatever is made of them."""
    tables: dict[str, RecordTable] = {}
    yield from _read(tables, lambda split: RecordIndex(root, split, "skip"), root, splits, prepare)
    for split, table in tables.items():
        yield Finding(TOPIC, "data.root", "ok", f"{root}: {len(table.record_ids)} records of split {split}")


def _read(
    tables: dict[str, RecordTable],
    read: Callable[[str], RecordTable],
    root: str | Path,
    splits: Sequence[str],
    prepare: str,
) -> Iterator[Finding]:
    """Fill in the tables of splits, and find what is bad in them."""
    for split in splits:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            try:
                tables[split] = read(split)
            except (ValueError, OSError) as error:
                yield Finding(TOPIC, "data.root", "missing", str(error), prepare)
                continue
        yield from (Finding(TOPIC, "data.root", "warning", str(one.message), prepare) for one in caught)
        if isinstance(tables[split], RecordIndex) and (gone := _without_pixels(root, tables[split])):
            listed = ", ".join(gone[:3]) + " …" * (len(gone) > 3)
            detail = f"{len(gone)} files of split {split} are missing in {root}: {listed}"
            yield Finding(TOPIC, "data.root", "missing", detail, prepare, tuple(gone))


def _table(node: Mapping[str, Any], split: str, shards: bool) -> RecordTable:
    if not shards:
        return RecordIndex(node["root"], split, node["on_bad_record"])
    from fastcomposer.data.shards import ShardedRecords

    return ShardedRecords(str(node["root"]), split, node["local"])


def _without_pixels(root: str | Path, table: RecordTable) -> list[str]:
    files = (record_path(root, name, suffix) for name in table.record_ids for suffix in (".jpg", ".npy"))
    return [str(file.relative_to(root)) for file in files if not file.is_file()]


def _fit(
    node: Mapping[str, Any], train: Mapping[str, Any], processes: int, table: RecordTable, faces: bool
) -> Iterator[Finding]:
    """Whether the records are what the settings ask for."""
    if not train["subjects"]:
        detail = f"no segment in {node['root']} has a coco_label in {node['labels']}"
        yield Finding(TOPIC, "data.module.labels", "missing", detail, "name the labels of your segments")
    if node["reference"] == "other_image" and not train["identities"]:
        detail = f"other_image, but no segment in {node['root']} has an identity"
        yield Finding(TOPIC, "data.module.reference", "missing", detail, "use reference=same_image")
    if train["records"] < node["batch_size"] * processes:
        detail = f"{train['records']} records do not fill {node['batch_size']} on {processes} process(es)"
        yield Finding(TOPIC, "data.module.batch_size", "missing", detail, "lower it")
    if faces and not table.has_faces():
        remedy = f"fastcomposer prepare data.root={node['root']} faces=true"
        yield Finding(TOPIC, "identity", "missing", "the records have no annotated faces", remedy)


def _cache(node: Mapping[str, Any], tables: Mapping[str, RecordTable]) -> Finding:
    from fastcomposer.data.cache_files import PartReader, StateCache, describe_target, part_files
    from fastcomposer.data.sample_settings import SampleSettings

    names = {field.name for field in fields(SampleSettings)} & node.keys() - {"augmentation"}
    key, least = "data.module.cache", node["min_subjects"]
    try:
        cache = StateCache(node["cache"])
        cache.check_target(describe_target(SampleSettings(**{name: node[name] for name in names})))
        for file in part_files(node["cache"]).values():
            PartReader(file)  # compares the checksum of its tables
        for table in tables.values():
            fit = [name for name in table.record_ids if table.num_subjects(name, node["labels"]) >= least]
            cache.check_records(fit)
    except (ValueError, OSError) as error:
        return Finding(TOPIC, key, "missing", str(error), f"fastcomposer prepare cache={node['cache']}")
    return Finding(TOPIC, key, "ok", str(node["cache"]))


def benchmark(node: Mapping[str, Any]) -> Iterator[Finding]:
    """The references of every subject of a benchmark."""
    folder, images, key = asset(node["folder"]), node["images"], "benchmark.images"
    try:
        words = read_definition(folder / "single_subject.json").subjects or {}
    except (ValueError, OSError) as error:
        yield Finding(TOPIC, "benchmark.folder", "missing", str(error))
        return
    lacking = {}
    root = Path(images)
    for name, word in words.items():
        try:
            find_subjects({name: word}, root, node.get("celeba_identities", False))
        except (ValueError, OSError) as error:
            lacking[name] = str(error)
    if lacking:
        files = tuple(f"{name}/" if node.get("celeba_identities") else f"{name}.jpg" for name in lacking)
        given = "no value" if images == "???" else images
        detail = f"{given}: no references {', '.join(files)} ({next(iter(lacking.values()))})"
        yield Finding(TOPIC, key, "missing", detail, f"put them into {key}=<folder>", files)
    else:
        yield Finding(TOPIC, key, "ok", f"{images}: {len(words)} people")


OTHERS: Mapping[str, Callable[..., list[Benchmark]]] = {
    f"{load.__module__}.{load.__name__}": load for load in (load_multiid, load_xverse, load_multihuman)
}
"""Loaders of others' benchmarks by target."""


def other_benchmark(node: Mapping[str, Any]) -> Finding:
    """The lists and images of another benchmark."""
    key = "benchmark.images"
    try:
        people = {subject.id for one in _load_other(node) for subject in one.subjects}
    except (ValueError, OSError) as error:
        detail = str(error).removeprefix(f"{key}: ")
        return Finding(TOPIC, key, "missing", detail, f"put its files into {key}=<folder>")
    return Finding(TOPIC, key, "ok", f"{node['images']}: {len(people)} people")


def _load_other(node: Mapping[str, Any]) -> list[Benchmark]:
    return OTHERS[node["_target_"]](**{key: value for key, value in node.items() if key != "_target_"})


def num_cases(node: Mapping[str, Any]) -> int:
    """Images of a method in a benchmark whose references are there."""
    if node["_target_"] in OTHERS:
        return sum(len(one.cases) for one in _load_other(node))
    from fastcomposer.evaluation.benchmark import Subset

    if "people" in node:  # rendered when the benchmark is loaded
        prompts, part = read_definition(asset(node["folder"]) / "single_subject.json").prompts, node["part"]
        most = part["prompts_per_category"]
        each = sum(len(listed[:most]) for listed in prompts.values()) * part["images_per_prompt"]
        return len(node["people"]["numbers"]) * each
    chosen: dict[str, Any] = {key: node[key] for key in ("seed", "celeba_identities") if key in node}
    for name in ("single", "multi"):
        counts = node[name]
        chosen[name] = counts and Subset(**{k: v for k, v in counts.items() if k != "_target_"})
    return sum(len(one.cases) for one in load_benchmarks(node["folder"], node["images"], **chosen))


def existing(key: str, paths: list[str], remedy: str) -> Finding:
    """Files or folders that have to be there."""
    paths = [*dict.fromkeys(paths)]
    gone = [str(path) for path in paths if not Path(path).expanduser().exists()]
    if gone:
        return Finding(TOPIC, key, "missing", f"no such file: {', '.join(gone)}", remedy, tuple(gone))
    return Finding(TOPIC, key, "ok", f"{len(paths)} files")
