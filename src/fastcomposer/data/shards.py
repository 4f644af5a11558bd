"""Records in shards: the same bytes in a few large files, in a folder or an object store.

A place of shards holds, for each split, two data sets in litdata's format::

    <shards>/shards.json          what they were made of
    <shards>/<split>/             the records: JSON, picture and (compressed) segment map as they were
    <shards>/<split>.index/       the catalogue: what RecordIndex knows, in the order of the id list

Records lie in an order of their own, drawn once, so that a shard holds records from all over the split.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from fastcomposer.data.index import RecordIndex, RecordTable
from fastcomposer.data.records import (
    ID_LISTS,
    RecordError,
    RecordFiles,
    read_files,
    write_atomically,
)
from fastcomposer.runtime.files import remove_leftovers
from fastcomposer.runtime.progress import tracked
from fastcomposer.runtime.settings import differences
from fastcomposer.runtime.workers import in_processes

_MANIFEST = "shards.json"
_INDEX = "index.json"  # litdata's name
_VERSION = 1
_PAGE = 4096
_ORDER_SEED = 0
_LEAST_CACHE = 30 * 10**9  # litdata warns of less


# --- writing -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Shard:
    """One file to be written."""

    root: Path
    folder: Path
    number: int
    size: int
    record_ids: tuple[str, ...]


def write_shards(
    root: str | Path,
    folder: str | Path,
    splits: Sequence[str] = ("train", "test"),
    records_per_shard: int = 256,
    num_workers: int = 2,
    on_bad_record: str = "raise",
    restart: bool = False,
) -> int:
    """Write the records of a data folder as shards.

    Shards that are there are kept, so an interrupted call goes on where it stopped.

    Args:
        root: Data folder in the published format.
        folder: Where to; to be copied into an object store as it is.
        splits: Splits to write: ``train``, ``test``, ``all``.
        records_per_shard: Records in one file; 256 of 1024 px take about 80 MB.
        num_workers: Processes; 0 writes in this one.
        on_bad_record: ``raise``, or ``skip`` to leave out records whose JSON is bad.
        restart: Whether to forget what is there.

    Returns:
        How many records were written by this call.

    Raises:
        ValueError: If a setting is out of range, or the folder holds shards of something else.
        RecordError: If an id list is missing, or a record is bad under ``raise`` or lacks a file.
        FaultError: If one of the processes dies.
    """
    if records_per_shard < 1:
        raise ValueError(f"records_per_shard must be at least 1, not {records_per_shard}")
    unknown = [split for split in splits if split not in ID_LISTS]
    if unknown or not splits:
        raise ValueError(f"splits must be some of {', '.join(ID_LISTS)}, not {list(splits)}")
    root, folder = Path(root), Path(folder)
    tables = {split: RecordIndex(root, split, on_bad_record) for split in splits}
    _clear(folder, restart)
    _claim(folder, tables, records_per_shard)
    written = 0
    for split, table in tables.items():
        ids = list(dict.fromkeys(table.record_ids))
        order = np.random.default_rng(_ORDER_SEED).permutation(len(ids))
        stored = [ids[place] for place in order]
        parts = [tuple(stored[i : i + records_per_shard]) for i in range(0, len(stored), records_per_shard)]
        shards = [_Shard(root, folder / split, k, records_per_shard, part) for k, part in enumerate(parts)]
        written += _write_split(shards, split, num_workers)
        _write_catalogue(folder, split, table, stored, records_per_shard)
    return written


def _clear(folder: Path, everything: bool) -> None:
    """Remove what a killed writer left half made, or all that there is but hidden files."""
    remove_leftovers(folder)
    for leftover in [entry for entry in folder.glob("**/.*") if entry.is_dir()]:
        shutil.rmtree(leftover, ignore_errors=True)
    for entry in folder.glob("[!.]*") if everything else ():
        shutil.rmtree(entry) if entry.is_dir() else entry.unlink()


def _claim(folder: Path, tables: dict[str, RecordIndex], records_per_shard: int) -> None:
    """Refuse to mix shards of different records in one folder."""
    wanted: dict[str, Any] = {"version": _VERSION, "records_per_shard": records_per_shard}
    for split, table in tables.items():
        wanted[split] = hashlib.sha256("\n".join(table.record_ids).encode()).hexdigest()[:16]
    path = folder / _MANIFEST
    if path.exists():
        changes = differences(json.loads(path.read_bytes()), wanted)
        if changes:
            raise ValueError(
                f"shards={folder} holds shards of other records ({'; '.join(changes)}); "
                "shards=<other> writes beside them, restart=true writes them anew"
            )
    content = (json.dumps(wanted, indent=2) + "\n").encode()
    write_atomically(path, lambda file: file.write(content))


def _write_split(shards: Sequence[_Shard], split: str, num_workers: int) -> int:
    """Write the shards that are not there, and litdata's index when all are."""
    folder = shards[0].folder
    if (folder / _INDEX).exists():
        return 0
    todo = [shard for shard in shards if not _part_index(shard).exists()]
    title = f"shards of {split}"
    written = sum(tracked(in_processes(_write_shard, todo, num_workers), title, total=len(todo)))
    from litdata.streaming import Cache

    with TemporaryDirectory(dir=folder, prefix=".") as merged:  # merging takes the parts' indexes away
        for shard in shards:
            shutil.copy(_part_index(shard), merged)
        Cache(merged, chunk_size=shards[0].size).merge(len(shards))
        (Path(merged) / _INDEX).replace(folder / _INDEX)
    for shard in shards:
        _part_index(shard).unlink()
    return written


def _part_index(shard: _Shard) -> Path:
    return shard.folder / f"{shard.number}.{_INDEX}"


def _write_shard(shard: _Shard) -> int:
    """Write one file and then its index, which says that it is complete."""
    from litdata.streaming import Cache

    shard.folder.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=shard.folder, prefix=".") as folder:
        cache = Cache(folder, chunk_size=shard.size, writer_chunk_index=shard.number)
        for number, record_id in enumerate(shard.record_ids):
            files = read_files(shard.root, record_id)
            # A tuple, because litdata packs dictionaries by hundreds, which one of them has to wait for.
            cache[number] = (record_id.encode(), files.json, files.jpg, zlib.compress(files.npy))
        cache.done()
        for file in Path(folder).glob("*.bin"):
            file.replace(shard.folder / file.name)
        (index,) = Path(folder).glob(f"*.{_INDEX}")
        index.replace(_part_index(shard))
    return len(shard.record_ids)


def _write_catalogue(
    folder: Path, split: str, table: RecordTable, stored: Sequence[str], records_per_shard: int
) -> None:
    """Write what is known of a split's records, and where each lies."""
    from litdata.streaming import Cache

    final = folder / f"{split}.index"
    if final.exists():
        return
    places = {record_id: place for place, record_id in enumerate(stored)}
    rows = [[name, places[name], table.segments[name]] for name in table.record_ids]
    about = {"pages": -(-len(rows) // _PAGE), "records_per_shard": records_per_shard}
    size = sum(file.stat().st_size for file in (folder / split).glob("*.bin"))
    with TemporaryDirectory(dir=folder, prefix=".") as made:
        cache = Cache(f"{made}/pages", chunk_bytes=1 << 26)
        cache[0] = json.dumps({"version": _VERSION, **about, "bytes": size}).encode()
        for number, start in enumerate(range(0, len(rows), _PAGE), start=1):
            cache[number] = json.dumps(rows[start : start + _PAGE]).encode()
        cache.done()
        cache.merge()
        (Path(made) / "pages").replace(final)


# --- reading -----------------------------------------------------------------------------------------------


class ShardedRecords(RecordTable):
    """Reads the records of a split from shards.

    Those in an object store are downloaded shard by shard when a record of theirs is asked for, and kept.

    Args:
        place: Folder, or URL that litdata reads: ``s3://``, ``gs://``, ``azure://``, ``hf://``, ``r2://``.
        split: ``train``, ``test`` or ``all``.
        local: Folder to keep downloaded shards in; litdata's own by default.

    Raises:
        RecordError: If there are no shards of the split.
        ValueError: If they are of another version, or do not fit onto the disk.
    """

    place: str

    def __init__(self, place: str, split: str, local: str | Path | None = None) -> None:
        self.place, self.split, self.local, self.size = place, split, local, 0
        try:
            catalogue = self._open(f"{split}.index")
            about = json.loads(bytes(catalogue[0]))
        except Exception as error:  # whatever the store's client raises
            raise RecordError(
                f"data.root={place}: no shards of split {split!r} there ({error}); "
                "python -m fastcomposer.cli.prepare data.root=<data folder> shards=<folder> writes them"
            ) from error
        if about["version"] != _VERSION:
            raise ValueError(f"data.root={place}: shards of version {about['version']}, not {_VERSION}")
        rows = [row for page in range(1, about["pages"] + 1) for row in json.loads(bytes(catalogue[page]))]
        self.record_ids = tuple(name for name, _, _ in rows)
        self.bad_records = {}
        self.segments = {name: tuple((s[0], s[1], s[2]) for s in found) for name, _, found in rows}
        self._places = {name: number for name, number, _ in rows}
        self.size, self.records_per_shard = int(about["bytes"]), int(about["records_per_shard"])
        self._reader: tuple[int, Any] = (0, None)
        if "://" in place:
            self._check_disk()

    def shards(self) -> np.ndarray:
        """Number of the shard of each record, (N,), in the order of :attr:`record_ids`."""
        return np.array([self._places[name] for name in self.record_ids]) // self.records_per_shard

    def files(self, record_id: str) -> RecordFiles:
        """Read the files of a record."""
        # An error of the network stays what it is: a record is not bad because of it.
        # Copies: what litdata hands out may be views of a file that it closes.
        item = map(bytes, self._records()[self._places[record_id]])
        name, content, picture, segment_map = item
        if (found := name.decode()) != record_id:
            raise RecordError(f"{self.place}/{self.split}: {found} is where {record_id} should be")
        return RecordFiles(content, picture, zlib.decompress(segment_map))

    def picture_and_caption(self, record_id: str) -> tuple[bytes, str]:
        """See :class:`RecordTable`."""
        files = self.files(record_id)
        return files.jpg, str(json.loads(files.json)["caption"])

    def _records(self) -> Any:
        """Return litdata's reader of this process."""
        if self._reader[0] != os.getpid():
            self._reader = (os.getpid(), self._open(self.split))
        return self._reader[1]

    def _open(self, name: str) -> Any:
        from litdata import StreamingDataset

        reader = StreamingDataset(
            f"{self.place.rstrip('/')}/{name}",
            cache_dir=None if self.local is None else str(Path(self.local) / name),
            max_cache_size=max(2 * self.size, _LEAST_CACHE),  # never forget a shard: there is room for all
            batch_decode=0,  # neighbours of a record are not asked for next
        )
        reader[0:0]  # from a slice on, it keeps the shards that it downloads
        return reader

    def _check_disk(self) -> None:
        """Refuse shards that would push each other off the disk."""
        folder = Path(self.local or Path.home())
        while not folder.exists():
            folder = folder.parent
        kept = sum(file.stat().st_size for file in Path(self.local or "/nowhere").glob("**/*.bin"))
        room = shutil.disk_usage(folder).free + kept
        if self.size > room:
            raise ValueError(
                f"data.module.local={self.local}: split {self.split!r} of {self.place} takes "
                f"{self.size / 1e9:.1f} GB, but there is room for {room / 1e9:.1f} GB; name a larger disk's"
            )

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_reader": (0, None)}
