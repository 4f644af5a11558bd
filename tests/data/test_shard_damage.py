"""Damaged shards are named and repaired; other files stay, and an index that names code is refused."""

from __future__ import annotations

import json
import logging
import shutil
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from litdata.streaming.downloader import (
    LocalDownloaderWithCache,
    register_downloader,
    unregister_downloader,
)

from fastcomposer.data.record import RecordError
from fastcomposer.data.records import read_files, read_record, record_path, write_record
from fastcomposer.data.shard_files import DamagedShardsError, sealed, unsealed
from fastcomposer.data.shards import ShardedRecords, write_shards

CHUNK = "train/chunk-0-1.bin"


def write(folder: Path, place: Path, **settings: Any) -> int:
    return write_shards(folder, place, **{"records_per_shard": 3, "num_workers": 0, **settings})


def contents(place: Path) -> dict[str, bytes]:
    return {str(file.relative_to(place)): file.read_bytes() for file in place.rglob("*") if file.is_file()}


def read_all(place: Path | str, local: Path | None = None) -> dict[str, Any]:
    table = ShardedRecords(str(place), "train", local)
    return {record_id: table.files(record_id) for record_id in table.record_ids}


# --- other files -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("restart", [False, True])
@pytest.mark.parametrize("name", [".ssh/id", "project/.git/config", "train/chunk-0-0.bin", "notes.txt"])
def test_a_folder_with_other_files_is_refused_and_left_alone(
    folder: Path, tmp_path: Path, name: str, restart: bool
) -> None:
    file = tmp_path / "x" / name
    file.parent.mkdir(parents=True)
    file.write_text("mine")
    with pytest.raises(ValueError, match=rf"shards=.*/x holds '{name.split('/')[0]}' and no shards\.json"):
        write(folder, tmp_path / "x", restart=restart)
    assert contents(tmp_path / "x") == {name: b"mine"}


@pytest.mark.parametrize("settings", [{}, {"restart": True}, {"restart": True, "records_per_shard": 8}])
def test_what_lies_beside_shards_stays(folder: Path, shards: Path, settings: dict[str, Any]) -> None:
    names = [".ssh/id", "project/.git/config", "project/.x.tmp", "train/.git/config", "train/notes", "README"]
    for name in names:
        (shards / name).parent.mkdir(parents=True, exist_ok=True)
        (shards / name).write_text("mine")
    killed = shards / "train" / ".shards-abc.tmp"
    killed.mkdir()
    (killed / "chunk-0-1.bin").write_bytes(b"half")
    (shards / f".shards.json.{'0' * 32}.tmp").write_bytes(b"half")
    write(folder, shards, **settings)
    left = contents(shards)
    assert all(left.pop(name) == b"mine" for name in names)
    assert not [name for name in left if "tmp" in name]
    assert len([name for name in left if name.endswith(".bin")]) == (
        2 if "records_per_shard" in settings else 4
    )


# --- code in shards ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("config.data_format", ["bytes", "bytes", "bytes", "pickle"]),
        ("config.data_format", ["bytes"] * 5),
        ("config.data_spec", '[1, {"type": "os.path", "context": "null", "children_spec": []}]'),
        ("config.item_loader", "TokensLoader"),
        ("config.compression", "zstd"),
        ("config.encryption", {"algorithm": "rsa", "level": "chunk"}),
        ("config.format", "mds"),
        ("chunks.1.filename", "../../x"),
    ],
)
def test_an_index_that_asks_for_more_than_bytes_is_refused(
    shards: Path, tmp_path: Path, key: str, value: Any
) -> None:
    index = json.loads((shards / "train/index.json").read_bytes())
    changed = index["config"] if key.startswith("config") else index["chunks"][1]
    changed[key.split(".")[-1]] = value
    (shards / "train/index.json").write_text(json.dumps(index))
    with pytest.raises(DamagedShardsError, match=rf"train/index\.json .*{key}: "):
        ShardedRecords(f"local:{shards}", "train", tmp_path / "local")
    assert not (tmp_path / "local").exists()


# --- damage ------------------------------------------------------------------------------------------------


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-7])


def flip(file: Path, place: int | None = None) -> None:
    data = bytearray(file.read_bytes())
    data[len(data) // 2 if place is None else place] ^= 0x10
    file.write_bytes(data)


def not_json(file: Path) -> None:
    file.write_bytes(b"<html>404</html>")


def other_fields(file: Path) -> None:
    file.write_text(json.dumps({"chunks": [], "config": {}, "version": 2}))


Damage = Callable[[Path], None]
CHUNK_DAMAGE = [cut, flip, Path.unlink]
FILE_DAMAGE = [cut, flip, Path.unlink, not_json, other_fields]
CASES = [
    *((CHUNK, damage) for damage in CHUNK_DAMAGE),
    *(("train/index.json", damage) for damage in FILE_DAMAGE),
    *(("train.index.json", damage) for damage in FILE_DAMAGE),
]
RESTS = [
    *(("shards.json", damage) for damage in (cut, flip, not_json, other_fields)),
    *(("train/chunk-0-1.json", damage) for damage in FILE_DAMAGE),
]


@pytest.mark.parametrize(("name", "damage"), CASES)
def test_damage_is_named_when_it_is_read_and_repaired_alone(
    folder: Path, shards: Path, name: str, damage: Damage, caplog: pytest.LogCaptureFixture
) -> None:
    before, times = contents(shards), {file: file.stat().st_mtime_ns for file in shards.rglob("*.*")}
    damage(shards / name)
    error = RecordError if (name, damage) == ("train.index.json", Path.unlink) else DamagedShardsError
    with pytest.raises(error, match=r".*fastcomposer prepare data\.root=<data folder> shards=") as caught:
        read_all(shards)
    assert f"{shards / name} " in str(caught.value) or error is RecordError
    with caplog.at_level(logging.WARNING):
        written = write(folder, shards)
    assert written == (3 if name == CHUNK else 0)
    assert contents(shards) == before
    assert f"{shards / name} " in caplog.text or damage is Path.unlink
    touched = {file.name for file, changed in times.items() if file.stat().st_mtime_ns != changed}
    pair = {"chunk-0-1.bin", "chunk-0-1.json"} if name == CHUNK else {Path(name).name}
    assert touched - {"shards.json"} == pair
    assert read_all(shards) == {i: read_files(folder, i) for i in read_all(shards)}
    caplog.clear()
    assert write(folder, shards) == 0
    assert not caplog.text


@pytest.mark.parametrize(("name", "damage"), RESTS)
def test_what_training_does_not_read_is_repaired_too(
    folder: Path, shards: Path, name: str, damage: Damage, caplog: pytest.LogCaptureFixture
) -> None:
    before = contents(shards)
    damage(shards / name)
    assert len(read_all(shards)) == 8
    with caplog.at_level(logging.WARNING):
        assert write(folder, shards) == (0 if name == "shards.json" else 3)
    assert "chunk-0-1.bin" in caplog.text or f"{shards / name} is damaged" in caplog.text
    assert contents(shards) == before


def test_no_flipped_byte_is_read(shards: Path) -> None:
    wanted, data = read_all(shards), (shards / CHUNK).read_bytes()
    table = ShardedRecords(str(shards), "train")
    ids = [name for name, shard in zip(table.record_ids, table.shards(), strict=True) if shard == 1]
    assert len(ids) == 3
    caught = 0
    for place in [*range(40), *range(40, len(data), 29)]:  # the table of offsets, and what follows
        flip(shards / CHUNK, place)
        table = ShardedRecords(str(shards), "train")
        for record_id in ids:
            try:
                assert table.files(record_id) == wanted[record_id]
            except DamagedShardsError as error:
                assert f"{shards / CHUNK} " in str(error) and record_id in str(error)
                caught += 1
        (shards / CHUNK).write_bytes(data)
    assert caught > 150


def test_a_chunk_that_disappears_is_named_at_once(shards: Path) -> None:
    table = ShardedRecords(str(shards), "train")
    table.files(table.record_ids[0])
    for chunk in (shards / "train").glob("*.bin"):
        chunk.unlink()
    start = time.monotonic()
    with pytest.raises(DamagedShardsError, match=r"chunk-0-\d\.bin is missing"):
        table.files(table.record_ids[0])
    assert time.monotonic() - start < 20, "litdata has waited for it"
    with pytest.raises(DamagedShardsError, match=r"chunk-0-0\.bin is missing, .*chunk-0-1\.bin is missing"):
        ShardedRecords(str(shards), "train")


def test_skipping_bad_records_skips_no_damage(shards: Path, streamed: Callable[..., Any]) -> None:
    flip(shards / CHUNK)
    data = streamed(on_bad_record="skip")
    data.setup("fit")
    with pytest.raises(DamagedShardsError, match=rf"{CHUNK} is damaged: record \d+ "):
        [data.train_dataset[index] for index in range(8)]


def test_further_chunks_and_a_kill_before_the_checksums_change_nothing(folder: Path, shards: Path) -> None:
    before = contents(shards)
    shutil.copy(shards / CHUNK, shards / "train/chunk-0-9.bin")
    (shards / "train.index.json").unlink()
    (shards / "train/chunk-0-1.json").unlink()
    assert write(folder, shards) == 3
    assert contents(shards) == before | {"train/chunk-0-9.bin": before[CHUNK]}
    assert len(read_all(shards)) == 8


def test_shards_of_another_version_are_refused(folder: Path, shards: Path) -> None:
    content = unsealed((shards / "train.index.json").read_bytes())
    (shards / "train.index.json").write_bytes(sealed({**content, "version": 1}))
    with pytest.raises(ValueError, match=r"data\.root=.*version 1, not 2.*prepare .*shards=.*restart=true"):
        ShardedRecords(str(shards), "train")
    assert write(folder, shards, restart=True) == 10
    assert len(read_all(shards)) == 8


def test_a_damaged_manifest_hides_no_shards_of_other_records(folder: Path, shards: Path) -> None:
    before = contents(shards)
    not_json(shards / "shards.json")
    with pytest.raises(ValueError, match="holds shards of other records"):
        write(folder, shards, records_per_shard=4)
    assert {**contents(shards), "shards.json": before["shards.json"]} == before


def test_repair_takes_changed_records_as_they_are(folder: Path, shards: Path) -> None:
    record_id = ShardedRecords(str(shards), "train").record_ids[2]
    loaded = read_record(folder, record_id)
    write_record(folder, loaded.record, loaded.image[::-1].copy(), loaded.segment_map)
    for chunk in (shards / "train").glob("*.bin"):
        cut(chunk)
    assert write(folder, shards) == 8
    assert read_all(shards)[record_id].jpg == record_path(folder, record_id, ".jpg").read_bytes()


# --- object stores -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("damage", CHUNK_DAMAGE)
def test_damage_in_a_store_is_named(shards: Path, tmp_path: Path, damage: Damage) -> None:
    damage(shards / CHUNK)
    with pytest.raises(DamagedShardsError, match=rf"^local:{shards}/{CHUNK} is .*copied again"):
        read_all(f"local:{shards}", tmp_path / "local")
    kept = {file.name for file in (tmp_path / "local").rglob("*.bin")}
    assert "chunk-0-1.bin" not in kept


@pytest.mark.parametrize("damage", CHUNK_DAMAGE)
def test_a_damaged_copy_is_fetched_anew(shards: Path, tmp_path: Path, damage: Damage) -> None:
    table = ShardedRecords(f"local:{shards}", "train", tmp_path / "local")
    wanted = {record_id: table.files(record_id) for record_id in table.record_ids}
    (copy,) = (tmp_path / "local").rglob("chunk-0-1.bin")
    damage(copy)
    assert {record_id: table.files(record_id) for record_id in table.record_ids} == wanted
    assert read_all(f"local:{shards}", tmp_path / "local") == wanted
    if damage is not flip:  # a flipped byte may lie where nobody reads
        assert copy.read_bytes() == (shards / CHUNK).read_bytes()


class _Failing(LocalDownloaderWithCache):
    """A store whose client has errors of its own for one chunk."""

    def download_file(self, remote_filepath: str, local_filepath: str) -> None:
        if remote_filepath.endswith(CHUNK):
            raise RuntimeError("404 when calling HeadObject")
        super().download_file(remote_filepath.removeprefix("toy://"), local_filepath)


def test_an_error_of_a_store_names_the_chunk(shards: Path, tmp_path: Path) -> None:
    register_downloader("toy://", _Failing)
    try:
        with pytest.raises(OSError, match=rf"^toy://{shards}/{CHUNK} cannot be downloaded: 404"):
            read_all(f"toy://{shards}", tmp_path / "local")
    finally:
        unregister_downloader("toy://")


def test_readers_share_what_one_of_them_downloads(shards: Path, tmp_path: Path) -> None:
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(read_all, [f"local:{shards}"] * 4, [tmp_path / "local"] * 4))
    assert found == [read_all(shards)] * 4
    files = [file.name for file in (tmp_path / "local").rglob("*") if file.is_file()]
    chunks = [f"chunk-0-{number}.bin" for number in range(3)]
    assert sorted(name for name in files if not name.endswith(".lock")) == [*chunks, "index.json"]
