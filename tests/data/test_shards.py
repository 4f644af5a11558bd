"""Shards give the samples of the folder that they were made of."""

from __future__ import annotations

import shutil
from dataclasses import fields
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from toy_records import LEFT, RIGHT, add_record

from fastcomposer.batch import SubjectBatch
from fastcomposer.data.datamodule import StreamingDataModule, SubjectDataModule
from fastcomposer.data.index import RecordIndex
from fastcomposer.data.records import RecordError, read_files, record_path, write_ids
from fastcomposer.data.samplers import ShardSampler
from fastcomposer.data.shards import ShardedRecords, write_shards


@pytest.fixture
def shards(folder: Path, tmp_path: Path) -> Path:
    """The ten records in shards of three."""
    place = tmp_path / "shards"
    assert write_shards(folder, place, records_per_shard=3, num_workers=0) == 10
    return place


def module(kind: type[SubjectDataModule], root: Any, tokenizer: Any, **changes: Any) -> SubjectDataModule:
    settings: dict[str, Any] = {"resolution": 24, "reference_size": 24, "batch_size": 2}
    return kind(root, **({"tokenizer": tokenizer} | settings | changes))


def equal(one: SubjectBatch, other: SubjectBatch) -> bool:
    pairs = [(getattr(one, f.name), getattr(other, f.name)) for f in fields(SubjectBatch)]
    return all(torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b for a, b in pairs)


def batches(data: SubjectDataModule, count: int = 6) -> list[SubjectBatch]:
    loader = data.train_dataloader()
    found: list[SubjectBatch] = []
    while len(found) < count:
        loader.sampler.set_epoch(len(found) // len(loader))  # type: ignore[attr-defined]
        found += list(loader)
    return found[:count]


@pytest.mark.parametrize("reference", ["same_image", "other_image"])
def test_samples_and_their_order_are_the_folder_s(
    folder: Path, shards: Path, tokenizer: Any, reference: str
) -> None:
    mapped = module(SubjectDataModule, folder, tokenizer, reference=reference)
    streamed = module(StreamingDataModule, shards, tokenizer, reference=reference)
    one, other = batches(mapped), batches(streamed)
    assert len(one) == 6
    assert all(equal(a, b) for a, b in zip(one, other, strict=True))
    assert not equal(one[0], one[1])
    (one_val,), (other_val,) = list(mapped.val_dataloader()), list(streamed.val_dataloader())
    assert equal(one_val, other_val)


def test_an_object_store_gives_the_same(
    folder: Path, shards: Path, tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "3")  # what a process is of changes nothing of what it reads
    local = tmp_path / "local"
    streamed = module(StreamingDataModule, f"local:{shards}", tokenizer, local=local, reference="other_image")
    mapped = module(SubjectDataModule, folder, tokenizer, reference="other_image")
    assert all(equal(a, b) for a, b in zip(batches(mapped), batches(streamed), strict=True))
    kept = {file.name for file in local.glob("train/**/*.bin")}
    assert kept == {file.name for file in (shards / "train").glob("*.bin")}


def test_a_window_changes_the_order_and_no_sample(folder: Path, shards: Path, tokenizer: Any) -> None:
    mapped = module(SubjectDataModule, folder, tokenizer)
    mapped.setup("fit")
    samples = {mapped.train_dataset[i].record_ids: mapped.train_dataset[i] for i in range(8)}  # type: ignore[index]
    streamed = module(StreamingDataModule, shards, tokenizer, window=1, batch_size=1)
    drawn = batches(streamed, 8)
    assert len({batch.record_ids for batch in drawn}) == 8
    assert all(equal(samples[batch.record_ids], batch) for batch in drawn)
    table = ShardedRecords(str(shards), "train")
    numbers = dict(zip(table.record_ids, table.shards(), strict=True))
    turns = [int(numbers[batch.record_ids[0]]) for batch in drawn]
    assert sum(a != b for a, b in pairwise(turns)) == 2  # three shards, one by one
    assert sorted(turns) == [0, 0, 0, 1, 1, 1, 2, 2]


def test_windows_mix_whole_shards_and_processes_share_the_order() -> None:
    shards = np.arange(24) // 4
    alone = ShardSampler(range(24), 4, shards=shards, window=2, seed=3)
    order = alone.order(0)
    assert sorted(order) == list(range(24))
    assert [len(set(shards[order[i : i + 8]])) for i in (0, 8, 16)] == [2, 2, 2]
    assert list(order) != list(alone.order(1))
    assert list(order[:8]) != sorted(order[:8])
    pair = [
        ShardSampler(range(24), 2, shards=shards, window=2, seed=3, num_replicas=2, rank=rank)
        for rank in range(2)
    ]
    whole = [index for _, index in alone]
    shares = [[index for _, index in sampler] for sampler in pair]
    for batch in range(6):
        together = {index for share in shares for index in share[2 * batch : 2 * batch + 2]}
        assert together == set(whole[4 * batch : 4 * batch + 4])
    later = ShardSampler(range(24), 4, shards=shards, window=2, seed=3, position=lambda: 2)
    assert [index for _, index in later][:16] == whole[8:]


def test_writing_goes_on_where_it_stopped(folder: Path, shards: Path, tmp_path: Path) -> None:
    content = {file.relative_to(shards): file.read_bytes() for file in shards.rglob("*.bin")}
    assert write_shards(folder, shards, records_per_shard=3, num_workers=0) == 0
    other = tmp_path / "other"
    lost = record_path(folder, "0000002", ".npy")
    kept = lost.read_bytes()
    lost.unlink()
    with pytest.raises(RecordError, match=r"0000002\.npy: segment map: file is missing"):
        write_shards(folder, other, records_per_shard=3, num_workers=0)
    lost.write_bytes(kept)
    before = {file: file.stat().st_mtime_ns for file in other.rglob("*.bin")}
    written = write_shards(folder, other, records_per_shard=3, num_workers=0)
    assert written == 10 - 3 * len(before)
    assert {file: file.stat().st_mtime_ns for file in before} == before
    assert {file.relative_to(other): file.read_bytes() for file in other.rglob("*.bin")} == content
    assert not list(other.rglob(".*"))
    with pytest.raises(ValueError, match=r"records_per_shard: 3, not 4.*restart=true"):
        write_shards(folder, other, records_per_shard=4, num_workers=0)
    write_ids(folder, "train", ["0000001"])
    with pytest.raises(ValueError, match="holds shards of other records"):
        write_shards(folder, other, records_per_shard=3, num_workers=0)
    assert write_shards(folder, other, records_per_shard=4, num_workers=0, restart=True) == 3


def test_shards_hold_what_the_folder_holds(folder: Path, shards: Path) -> None:
    table, index = ShardedRecords(str(shards), "train"), RecordIndex(folder, "train")
    assert table.record_ids == index.record_ids
    assert table.segments == index.segments
    assert table.by_identity() == index.by_identity()
    for record_id in table.record_ids:
        assert table.files(record_id) == read_files(folder, record_id)
        assert table.image_and_caption(record_id) == index.image_and_caption(record_id)


def test_bad_records_are_met_as_in_the_folder(folder: Path, tokenizer: Any, tmp_path: Path) -> None:
    record_path(folder, "0000003", ".jpg").write_bytes(b"no image")
    place = tmp_path / "shards"
    write_shards(folder, place, records_per_shard=3, num_workers=0)
    data = module(StreamingDataModule, place, tokenizer, on_bad_record="skip")
    data.setup("fit")
    assert data.train_dataset is not None
    assert data.train_dataset[3].record_ids == ("0000004",)
    assert "0000003.jpg: image: unreadable" in str(data.train_dataset.target(3))


def test_what_is_not_there_is_named(folder: Path, shards: Path, tokenizer: Any, tmp_path: Path) -> None:
    with pytest.raises(RecordError, match=r"no shards of split 'train' there .*prepare data\.root="):
        module(StreamingDataModule, tmp_path / "nowhere", tokenizer)
    with pytest.raises(ValueError, match="window must be at least 1 shard, not 0"):
        module(StreamingDataModule, shards, tokenizer, window=0)
    with pytest.raises(ValueError, match="splits must be some of train, test, all"):
        write_shards(folder, tmp_path / "x", splits=["val"])
    with pytest.raises(ValueError, match="records_per_shard must be at least 1"):
        write_shards(folder, tmp_path / "x", records_per_shard=0)
    shutil.rmtree(folder)
    for number, segment in enumerate((LEFT, RIGHT)):
        plain = segment.__class__(segment.id, segment.bbox, 5, segment.label)
        add_record(folder, f"{number:07d}", plain)
    write_ids(folder, "train", ["0000000", "0000001"])
    place = tmp_path / "nobody"
    write_shards(folder, place, splits=["train"], num_workers=0)
    with pytest.raises(ValueError, match="reference=other_image needs segments with an identity"):
        module(StreamingDataModule, place, tokenizer, reference="other_image", val_split=None)
