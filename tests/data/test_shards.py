"""Shards give the samples of the folder that they were made of."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from toy_records import LEFT, RIGHT, add_record, equal

from fastcomposer.batch import SubjectBatch
from fastcomposer.data.datamodule import StreamingDataModule, SubjectDataModule
from fastcomposer.data.records import RecordError, record_path, write_ids
from fastcomposer.data.samplers import ShardSampler
from fastcomposer.data.shards import ShardedRecords, write_shards

Build = Callable[..., StreamingDataModule]


@pytest.fixture
def mapped(folder: Path, tokenizer: Any) -> Callable[..., SubjectDataModule]:
    """Builds data modules over the folder."""

    def build(**changes: Any) -> SubjectDataModule:
        return SubjectDataModule(folder, tokenizer, 2, resolution=24, reference_size=24, **changes)

    return build


def batches(data: SubjectDataModule, count: int = 6) -> list[SubjectBatch]:
    loader = data.train_dataloader()
    found: list[SubjectBatch] = []
    while len(found) < count:
        loader.sampler.set_epoch(len(found) // len(loader))  # type: ignore[attr-defined]
        found += list(loader)
    return found[:count]


@pytest.mark.parametrize("reference", ["same_image", "other_image"])
def test_samples_and_their_order_equal_the_folder_s(mapped: Build, streamed: Build, reference: str) -> None:
    folder, shards = mapped(reference=reference), streamed(reference=reference)
    one, other = batches(folder), batches(shards)
    assert len(one) == 6
    assert all(equal(a, b) for a, b in zip(one, other, strict=True))
    assert not equal(one[0], one[1])
    (one_val,), (other_val,) = list(folder.val_dataloader()), list(shards.val_dataloader())
    assert equal(one_val, other_val)


def test_an_object_store_gives_the_same(
    mapped: Build, streamed: Build, shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "3")  # the world size does not change what a process reads
    local = tmp_path / "local"
    stored = streamed(f"local:{shards}", local=local, reference="other_image")
    pairs = zip(batches(mapped(reference="other_image")), batches(stored), strict=True)
    assert all(equal(a, b) for a, b in pairs)
    kept = {file.name for file in local.glob("train/**/*.bin")}
    assert kept == {file.name for file in (shards / "train").glob("*.bin")}


def test_a_window_changes_the_order_and_no_sample(mapped: Build, streamed: Build, shards: Path) -> None:
    data = mapped()
    data.setup("fit")
    samples = {data.train_dataset[i].record_ids: data.train_dataset[i] for i in range(8)}  # type: ignore[index]
    read = batches(streamed(window=1, batch_size=1), 8)
    assert len({batch.record_ids for batch in read}) == 8
    assert all(equal(samples[batch.record_ids], batch) for batch in read)
    table = ShardedRecords(str(shards), "train")
    numbers = dict(zip(table.record_ids, table.shards(), strict=True))
    turns = [int(numbers[batch.record_ids[0]]) for batch in read]
    assert sum(a != b for a, b in pairwise(turns)) == 2  # three shards, one by one
    assert sorted(turns) == [0, 0, 0, 1, 1, 1, 2, 2]


def test_windows_mix_whole_shards() -> None:
    shards = np.arange(24) // 4
    alone = ShardSampler(range(24), 4, shards=shards, window=2, seed=3)
    order = alone.order(0)
    assert sorted(order) == list(range(24))
    assert [len(set(shards[order[i : i + 8]])) for i in (0, 8, 16)] == [2, 2, 2]
    assert list(order) != list(alone.order(1))
    assert list(order[:8]) != sorted(order[:8])
    later = ShardSampler(range(24), 4, shards=shards, window=2, seed=3, position=lambda: 2)
    assert [index for _, index in later][:16] == [index for _, index in alone][8:]


def test_writing_resumes(folder: Path, shards: Path, tmp_path: Path) -> None:
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


def test_missing_shards_are_named(folder: Path, streamed: Build, tmp_path: Path) -> None:
    with pytest.raises(RecordError, match=r"no shards of split 'train' there .*prepare data\.root="):
        streamed(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="window must be at least 1 shard, not 0"):
        streamed(window=0)
    with pytest.raises(ValueError, match="splits must be some of train, test, all"):
        write_shards(folder, tmp_path / "x", splits=["val"])
    with pytest.raises(ValueError, match="records_per_shard must be at least 1"):
        write_shards(folder, tmp_path / "x", records_per_shard=0)
    shutil.rmtree(folder)
    for number, segment in enumerate((LEFT, RIGHT)):
        plain = segment.__class__(segment.id, segment.bbox, 5, segment.label)
        add_record(folder, f"{number:07d}", plain)
    write_ids(folder, "train", ["0000000", "0000001"])
    write_shards(folder, tmp_path / "nobody", splits=["train"], num_workers=0)
    with pytest.raises(ValueError, match="reference=other_image needs segments with an identity"):
        streamed(tmp_path / "nobody", reference="other_image", val_split=None)
