"""Records in shards: the same bytes in a few large files, in a folder or an object store.

:mod:`fastcomposer.data.shard_files` lists the files. Records are shuffled once, so that a shard holds records
from all over the split.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import struct
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeVar

import numpy as np

from fastcomposer.data.index import RecordIndex, RecordTable
from fastcomposer.data.records import ID_LISTS, RecordError, RecordFiles, read_files
from fastcomposer.data.shard_files import (
    MANIFEST,
    VERSION,
    ChunkChecks,
    ShardStore,
    catalogue_file,
    chunk_file,
    damaged,
    index_file,
    index_problem,
    litdata_index,
    record_checksum,
    sealed,
    unsealed,
)
from fastcomposer.utils.files import LOCK_NAME, is_leftover, remove_leftovers, write_atomically
from fastcomposer.utils.progress import tracked
from fastcomposer.utils.ranges import Count, Workers
from fastcomposer.utils.settings import differences
from fastcomposer.utils.workers import in_processes

Result = TypeVar("Result")

logger = logging.getLogger(__name__)

_TEMPORARY = (".shards-", ".tmp")
_ORDER_SEED = 0


# --- writing -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Shard:
    """A chunk to be written, with its checksums beside it."""

    root: Path
    folder: Path
    split: str
    number: int
    size: int
    record_ids: tuple[str, ...]

    @property
    def chunk(self) -> Path:
        return self.folder / chunk_file(self.split, self.number)

    @property
    def checks_file(self) -> Path:
        return self.chunk.with_suffix(".json")

    def checks(self) -> ChunkChecks | None:
        """Read the checksums; ``None`` if they are missing, damaged or of other records."""
        try:
            checks = ChunkChecks.read(self.checks_file)
        except (FileNotFoundError, ValueError):
            return None
        return checks if tuple(name for name, _ in checks.records) == self.record_ids else None

    def problem(self) -> tuple[int, str]:
        """Number of the shard, and what is wrong with it; empty if nothing is."""
        checks = self.checks()
        return self.number, "has no checksums" if checks is None else checks.problem(self.chunk) or ""

    def write(self) -> int:
        """Write the chunk and then its checksums, which mark it as complete; return its record count."""
        from litdata.streaming import Cache

        before, after = _TEMPORARY
        with TemporaryDirectory(dir=self.chunk.parent, prefix=before, suffix=after) as folder:
            cache = Cache(folder, chunk_size=self.size)
            checksums = []
            for number, record_id in enumerate(self.record_ids):
                files = read_files(self.root, record_id)
                # A tuple: litdata packs dictionaries by hundreds, and reading one waits for all of them.
                fields = (record_id.encode(), files.json, files.jpg, zlib.compress(files.npy))
                cache[number] = fields
                checksums.append(record_checksum(fields))
            cache.done()
            (made,) = Path(folder).glob("*.bin")
            checks = ChunkChecks.of(made, zip(self.record_ids, checksums, strict=True))
            made.replace(self.chunk)
        checks.write(self.checks_file)
        return len(self.record_ids)


def write_shards(
    root: str | Path,
    folder: str | Path,
    splits: Sequence[str] = ("train", "test"),
    records_per_shard: Count = 256,
    num_workers: Workers = 2,
    on_bad_record: str = "raise",
    restart: bool = False,
) -> int:
    """Write the records of a data folder as shards.

    Existing shards are verified and kept, so an interrupted call resumes, and a later one rewrites what is
    missing or damaged, and logs it. Files that are not of the shards are left alone.

    Args:
        root: Data folder in the published format.
        folder: Where to write, empty or with shards; to be copied into an object store as it is.
        splits: Splits to write: ``train``, ``test``, ``all``.
        records_per_shard: Records in one file; 256 of 1024 px take about 80 MB.
        num_workers: Processes; 0 writes in this one.
        on_bad_record: ``raise``, or ``skip`` to leave out records whose JSON is bad.
        restart: Whether to remove existing shards.

    Returns:
        The number of records written by this call.

    Raises:
        ValueError: If a setting is out of range, or the folder holds shards of something else, or other files
            and no shards.
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
    shards = {
        split: _divide(root, folder, table, split, records_per_shard) for split, table in tables.items()
    }
    _claim(folder, tables, shards, records_per_shard, restart)
    written = 0
    for split, table in tables.items():
        done = _write_chunks(shards[split], num_workers)
        _write_catalogue(shards[split], table, done)
        written += done
    return written


def _divide(root: Path, folder: Path, table: RecordTable, split: str, size: int) -> list[_Shard]:
    """Assign records to shards."""
    ids = list(dict.fromkeys(table.record_ids))
    order = np.random.default_rng(_ORDER_SEED).permutation(len(ids))
    stored = [ids[position] for position in order]
    parts = [tuple(stored[start : start + size]) for start in range(0, len(stored), size)]
    return [_Shard(root, folder, split, number, size, part) for number, part in enumerate(parts)]


def _claim(
    folder: Path,
    tables: dict[str, RecordIndex],
    shards: dict[str, list[_Shard]],
    records_per_shard: int,
    restart: bool,
) -> None:
    """Refuse a folder with other files or shards of other records; write the manifest."""
    splits = {}
    for split, table in tables.items():
        digest = hashlib.sha256("\n".join(table.record_ids).encode()).hexdigest()[:16]
        splits[split] = {"records": digest, "shards": len(shards[split])}
    wanted = {"version": VERSION, "records_per_shard": records_per_shard, "splits": splits}
    path = folder / MANIFEST
    files = [] if path.exists() or not folder.exists() else folder.iterdir()
    others = sorted(file.name for file in files if file.name != LOCK_NAME and not is_leftover(file))
    if others:
        raise ValueError(
            f"shards={folder} holds {others[0]!r} and no {MANIFEST}: shards are written into an empty "
            "folder, or where there are some; name another one"
        )
    try:
        stored = dict(json.loads(path.read_bytes())) if path.exists() else wanted
    except (ValueError, TypeError, RecursionError):
        stored = {}
    if restart:
        for split in ID_LISTS:
            for file in (folder / index_file(split), folder / catalogue_file(split)):
                file.unlink(missing_ok=True)
            for file in folder.glob(chunk_file(split, 0).replace("-0.bin", "-*.*")):
                file.unlink()
    elif stored != wanted:
        changes = differences(stored, wanted)
        # A damaged manifest is not refused: checksums beside the chunks name their records.
        stand = [shard for of_split in shards.values() for shard in of_split if shard.checks_file.exists()]
        if not stand or not all(shard.checks() for shard in stand):
            raise ValueError(
                f"shards={folder} holds shards of other records ({'; '.join(changes)}); "
                "shards=<other> writes beside them, restart=true writes them anew"
            )
        logger.warning("%s is damaged (%s): written anew", path, "; ".join(changes))
    content = (json.dumps(wanted, indent=2) + "\n").encode()
    write_atomically(path, lambda file: file.write(content))


def _write_chunks(shards: Sequence[_Shard], num_workers: int) -> int:
    """Write the chunks that are missing or damaged; returns how many records they have."""
    folder, split = shards[0].folder, shards[0].split
    (folder / split).mkdir(exist_ok=True)
    for leftover in (folder / split).glob("*".join(_TEMPORARY)):
        shutil.rmtree(leftover)
    remove_leftovers(folder, shared=True)
    remove_leftovers(folder / split, shared=True)
    finished = (folder / catalogue_file(split)).exists()
    stand = list(shards) if finished else [shard for shard in shards if shard.checks_file.exists()]
    found = _in_turns(_Shard.problem, stand, f"shards of {split} verified", num_workers)
    for number, problem in sorted(found):
        if problem:
            logger.warning("%s %s: made anew", shards[number].chunk, problem)
    sound = {number for number, problem in found if not problem}
    todo = [shard for shard in shards if shard.number not in sound]
    return sum(_in_turns(_Shard.write, todo, f"shards of {split}", num_workers))


def _in_turns(
    function: Callable[[_Shard], Result], shards: Sequence[_Shard], title: str, num_workers: int
) -> list[Result]:
    """Call a function for every shard, with a progress bar."""
    if not shards:
        return []
    return list(tracked(in_processes(function, shards, num_workers), title, total=len(shards)))


def _write_catalogue(shards: Sequence[_Shard], table: RecordTable, written: int) -> None:
    """Write what is known of a split's records and where each lies, and litdata's index."""
    folder, split, size = shards[0].folder, shards[0].split, shards[0].size
    chunks = [ChunkChecks.read(shard.checks_file) for shard in shards]
    records = [record for chunk in chunks for record in chunk.records]
    positions = {name: (position, checksum) for position, (name, checksum) in enumerate(records)}
    content = {
        "version": VERSION,
        "records_per_shard": size,
        "chunks": [[chunk.size, chunk.crc32] for chunk in chunks],
        "records": [[name, *positions[name], table.segments[name]] for name in table.record_ids],
    }
    index = litdata_index([chunk.size for chunk in chunks], size, len(records))
    wanted = {
        folder / index_file(split): (json.dumps(index) + "\n").encode(),
        folder / catalogue_file(split): sealed(content),  # last: it says that the split is complete
    }
    for path, data in wanted.items():
        if path.exists() and path.read_bytes() == data:
            continue
        if path.exists() and not written:
            logger.warning("%s is damaged: written anew", path)
        write_atomically(path, lambda file, data=data: file.write(data))  # type: ignore[misc]


# --- reading -----------------------------------------------------------------------------------------------


class ShardedRecords(RecordTable):
    """Reads the records of a split from shards.

    Chunks in an object store are downloaded when one of their records is read, and kept; a damaged copy is
    downloaded anew. Sizes of chunks in a folder are compared at once, the checksum of a record on every read.

    Args:
        location: Folder, or URL that litdata reads: ``s3://``, ``gs://``, ``azure://``, ``hf://``, ``r2://``.
        split: ``train``, ``test`` or ``all``.
        local: Folder to keep downloaded chunks in; litdata's own by default.

    Raises:
        RecordError: If there are no shards of the split.
        DamagedShardsError: If a file is missing or damaged, or litdata's index is not that of the shards.
        ValueError: If they are of another version, or do not fit onto the disk.
    """

    location: str

    def __init__(self, location: str, split: str, local: str | Path | None = None) -> None:
        self.location, self.split = location, split
        self._store = ShardStore(location, split, local)
        content = self._read_catalogue()
        rows = content["records"]
        self.record_ids = tuple(name for name, _, _, _ in rows)
        self.bad_records = {}
        self.segments = {name: tuple((s[0], s[1], s[2]) for s in found) for name, _, _, found in rows}
        self._positions = {name: (position, checksum) for name, position, checksum, _ in rows}
        self._chunks = [ChunkChecks(size, checksum) for size, checksum in content["chunks"]]
        self.records_per_shard = int(content["records_per_shard"])
        self._reader: tuple[int, Any] = (0, None)
        self._check_index()
        self._store.check(self._chunks)

    def shards(self) -> np.ndarray:
        """Number of the shard of each record, (N,), in the order of :attr:`record_ids`."""
        return np.array([self._positions[name][0] for name in self.record_ids]) // self.records_per_shard

    def files(self, record_id: str) -> RecordFiles:
        """Read the files of a record."""
        # Network errors are not caught: they do not make a record bad.
        position, checksum = self._positions[record_id]
        fields = self._fields(position)
        if record_checksum(fields) != checksum and self._store.remote:
            fields = self._fields(position, anew=True)
        if record_checksum(fields) != checksum:
            number = position // self.records_per_shard
            file = f"{self._store.location}/{chunk_file(self.split, number)}"
            raise damaged(f"{file} is damaged: record {record_id} has another checksum", self.location)
        _, content, image, segment_map = fields
        return RecordFiles(content, image, zlib.decompress(segment_map))

    def _fields(self, position: int, anew: bool = False) -> tuple[bytes, ...]:
        """Read what lies at a position, damaged or not; empty where it is not even readable."""
        number = position // self.records_per_shard
        self._store.fetch(number, self._chunks[number], anew)
        if anew or self._reader[0] != os.getpid():
            self._reader = (os.getpid(), self._open())
        try:
            # Copies: what litdata hands out are views of a file that it closes.
            return tuple(map(bytes, self._reader[1][position]))
        except (struct.error, ValueError, RuntimeError):  # sizes inside the chunk are damaged
            self._reader = (0, None)  # it does not recover
            return ()

    def _open(self) -> Any:
        """Return litdata's reader of this process."""
        from litdata import StreamingDataset
        from litdata.streaming.resolver import Dir

        # Neighbours of a record are not asked for next.
        return StreamingDataset(Dir(path=str(self._store.folder)), batch_decode=0)

    def _read_catalogue(self) -> dict[str, Any]:
        name = catalogue_file(self.split)
        try:
            data = self._store.read(name)
        except OSError as error:
            raise RecordError(
                f"data.root={self.location}: no shards of split {self.split!r} there ({error}); "
                "fastcomposer prepare data.root=<data folder> shards=<folder> writes them"
            ) from error
        try:
            content = unsealed(data)
        except ValueError as error:
            raise damaged(f"{self._store.location}/{name} {error}", self.location) from None
        if content["version"] != VERSION:
            raise ValueError(
                f"data.root={self.location}: shards of version {content['version']}, not {VERSION}; "
                "fastcomposer prepare data.root=<data folder> shards=<folder> restart=true writes them anew"
            )
        return content

    def _check_index(self) -> None:
        """Refuse an index that would have litdata do anything but split a record into bytes."""
        name, records = index_file(self.split), len(self._positions)
        wanted = litdata_index([chunk.size for chunk in self._chunks], self.records_per_shard, records)
        try:
            data = self._store.read(name)
        except FileNotFoundError:
            raise damaged(f"{self._store.location}/{name} is missing", self.location) from None
        problem = index_problem(data, wanted)
        if problem is not None:
            raise damaged(f"{self._store.location}/{name} {problem}", self.location)
        if self._store.remote:
            write_atomically(self._store.folder / Path(name).name, lambda file: file.write(data))

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_reader": (0, None)}
