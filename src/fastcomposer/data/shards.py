"""Records in shards: the same bytes in a few large files, in a folder or an object store.

:mod:`fastcomposer.data.shard_files` says which files these are. Records lie in an order of their own, drawn
once, so that a shard holds records from all over the split.
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
from fastcomposer.data.records import (
    ID_LISTS,
    RecordError,
    RecordFiles,
    read_files,
    write_atomically,
)
from fastcomposer.data.shard_files import (
    MANIFEST,
    VERSION,
    ChunkChecks,
    ShardStore,
    catalogue_file,
    checks_file,
    chunk_file,
    damaged,
    file_checksum,
    index_file,
    index_problem,
    litdata_index,
    read_checks,
    record_checksum,
    sealed,
    unsealed,
    write_checks,
)
from fastcomposer.utils.files import LOCK_NAME, is_leftover, remove_leftovers_in
from fastcomposer.utils.progress import tracked
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
    def checks(self) -> Path:
        return self.folder / checks_file(self.split, self.number)


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

    Shards that are there are verified and kept, so an interrupted call goes on where it stopped, and a later
    one makes anew what is missing or damaged, and logs it. Files that are not of the shards are left alone.

    Args:
        root: Data folder in the published format.
        folder: Where to, empty or with shards; to be copied into an object store as it is.
        splits: Splits to write: ``train``, ``test``, ``all``.
        records_per_shard: Records in one file; 256 of 1024 px take about 80 MB.
        num_workers: Processes; 0 writes in this one.
        on_bad_record: ``raise``, or ``skip`` to leave out records whose JSON is bad.
        restart: Whether to remove the shards that are there.

    Returns:
        How many records were written by this call.

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
    """Say which records go into which shard."""
    ids = list(dict.fromkeys(table.record_ids))
    order = np.random.default_rng(_ORDER_SEED).permutation(len(ids))
    stored = [ids[place] for place in order]
    parts = [tuple(stored[start : start + size]) for start in range(0, len(stored), size)]
    return [_Shard(root, folder, split, number, size, part) for number, part in enumerate(parts)]


def _claim(
    folder: Path,
    tables: dict[str, RecordIndex],
    shards: dict[str, list[_Shard]],
    records_per_shard: int,
    restart: bool,
) -> None:
    """Refuse a folder with other files or shards of other records; say what the shards are made of."""
    splits = {
        split: {"records": _digest(table.record_ids), "shards": len(shards[split])}
        for split, table in tables.items()
    }
    wanted = {"version": VERSION, "records_per_shard": records_per_shard, "splits": splits}
    path = folder / MANIFEST
    if not path.exists() and (others := _other_files(folder)):
        raise ValueError(
            f"shards={folder} holds {others[0]!r} and no {MANIFEST}: shards are written into an empty "
            "folder, or where there are some; name another one"
        )
    stored = _read_manifest(path) if path.exists() else wanted
    if restart:
        for name in _listed(stored) + _listed(wanted):
            (folder / name).unlink(missing_ok=True)
    elif stored != wanted:
        changes = differences(stored.get("version"), VERSION, "version") or differences(stored, wanted)
        _refuse_others(path, changes, shards)
    content = (json.dumps(wanted, indent=2) + "\n").encode()
    write_atomically(path, lambda file: file.write(content))


def _read_manifest(path: Path) -> dict[str, Any]:
    """What shards are made of; nothing where that is unreadable."""
    try:
        return dict(json.loads(path.read_bytes()))
    except (ValueError, TypeError, RecursionError):
        return {}


def _listed(manifest: dict[str, Any]) -> list[str]:
    """All files of the shards that a manifest describes; none where it is damaged."""
    try:
        counts = {split: int(manifest["splits"][split]["shards"]) for split in manifest["splits"]}
    except (ValueError, LookupError, TypeError):
        return []
    names = []
    for split in set(ID_LISTS) & set(counts):
        for number in range(counts[split]):
            names += [chunk_file(split, number), checks_file(split, number)]
        names += [index_file(split), catalogue_file(split)]
    return names


def _other_files(folder: Path) -> list[str]:
    """What lies in a folder that is not of a run that was killed before it wrote a shard."""
    if not folder.exists():
        return []
    return sorted(path.name for path in folder.iterdir() if path.name != LOCK_NAME and not is_leftover(path))


def _refuse_others(manifest: Path, changes: list[str], shards: dict[str, list[_Shard]]) -> None:
    """Refuse shards of other records, but not a damaged manifest: checksums beside the chunks tell which."""
    stand = [shard for of_split in shards.values() for shard in of_split if shard.checks.exists()]
    if not stand or not all(_checks(shard) for shard in stand):
        raise ValueError(
            f"shards={manifest.parent} holds shards of other records ({'; '.join(changes)}); "
            "shards=<other> writes beside them, restart=true writes them anew"
        )
    logger.warning("%s is damaged (%s): written anew", manifest, "; ".join(changes))


def _digest(record_ids: Sequence[str]) -> str:
    return hashlib.sha256("\n".join(record_ids).encode()).hexdigest()[:16]


def _write_chunks(shards: Sequence[_Shard], num_workers: int) -> int:
    """Write the chunks that are missing or damaged; returns how many records they have."""
    folder, split = shards[0].folder, shards[0].split
    (folder / split).mkdir(exist_ok=True)
    for leftover in (folder / split).glob("*".join(_TEMPORARY)):
        shutil.rmtree(leftover)
    remove_leftovers_in(folder)
    remove_leftovers_in(folder / split)
    finished = (folder / catalogue_file(split)).exists()
    stand = list(shards) if finished else [shard for shard in shards if shard.checks.exists()]
    found = _in_turns(_problem, stand, f"shards of {split} verified", num_workers)
    for number, problem in sorted(found):
        if problem:
            logger.warning("%s %s: made anew", shards[number].chunk, problem)
    sound = {number for number, problem in found if not problem}
    todo = [shard for shard in shards if shard.number not in sound]
    return sum(_in_turns(_write_shard, todo, f"shards of {split}", num_workers))


def _in_turns(
    function: Callable[[_Shard], Result], shards: Sequence[_Shard], title: str, num_workers: int
) -> list[Result]:
    """Call a function for every shard, and show how far it is."""
    if not shards:
        return []
    return list(tracked(in_processes(function, shards, num_workers), title, total=len(shards)))


def _checks(shard: _Shard) -> ChunkChecks | None:
    """Read the checksums of a shard; ``None`` if they are missing, damaged or of other records."""
    try:
        checks = read_checks(shard.checks)
    except (FileNotFoundError, ValueError):
        return None
    return checks if tuple(name for name, _ in checks.records) == shard.record_ids else None


def _problem(shard: _Shard) -> tuple[int, str]:
    """Number of a shard, and what is wrong with it; empty if nothing is."""
    checks = _checks(shard)
    return shard.number, "has no checksums" if checks is None else checks.problem(shard.chunk) or ""


def _write_shard(shard: _Shard) -> int:
    """Write one chunk and then its checksums, which say that it is complete."""
    from litdata.streaming import Cache

    before, after = _TEMPORARY
    with TemporaryDirectory(dir=shard.chunk.parent, prefix=before, suffix=after) as folder:
        cache = Cache(folder, chunk_size=shard.size)
        checksums = []
        for number, record_id in enumerate(shard.record_ids):
            files = read_files(shard.root, record_id)
            # A tuple, because litdata packs dictionaries by hundreds, which one of them has to wait for.
            fields = (record_id.encode(), files.json, files.jpg, zlib.compress(files.npy))
            cache[number] = fields
            checksums.append(record_checksum(fields))
        cache.done()
        (made,) = Path(folder).glob("*.bin")
        records = tuple(zip(shard.record_ids, checksums, strict=True))
        checks = ChunkChecks(made.stat().st_size, file_checksum(made), records)
        made.replace(shard.chunk)
    write_atomically(shard.checks, lambda file: file.write(write_checks(checks)))
    return len(shard.record_ids)


def _write_catalogue(shards: Sequence[_Shard], table: RecordTable, written: int) -> None:
    """Write what is known of a split's records and where each lies, and litdata's index."""
    folder, split, size = shards[0].folder, shards[0].split, shards[0].size
    chunks = [read_checks(shard.checks) for shard in shards]
    records = [record for chunk in chunks for record in chunk.records]
    places = {name: (place, checksum) for place, (name, checksum) in enumerate(records)}
    content = {
        "version": VERSION,
        "records_per_shard": size,
        "chunks": [[chunk.size, chunk.crc32] for chunk in chunks],
        "records": [[name, *places[name], table.segments[name]] for name in table.record_ids],
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

    Those in an object store are downloaded chunk by chunk when a record of theirs is asked for, and kept.
    Sizes of chunks in a folder are compared at once, the checksum of a record whenever it is read. A copy of
    a chunk that has become damaged is downloaded anew.

    Args:
        place: Folder, or URL that litdata reads: ``s3://``, ``gs://``, ``azure://``, ``hf://``, ``r2://``.
        split: ``train``, ``test`` or ``all``.
        local: Folder to keep downloaded chunks in; litdata's own by default.

    Raises:
        RecordError: If there are no shards of the split.
        DamagedShardsError: If a file is missing or damaged, or litdata's index is not that of the shards.
        ValueError: If they are of another version, or do not fit onto the disk.
    """

    place: str

    def __init__(self, place: str, split: str, local: str | Path | None = None) -> None:
        self.place, self.split = place, split
        self._store = ShardStore(place, split, local)
        content = self._read_catalogue()
        rows = content["records"]
        self.record_ids = tuple(name for name, _, _, _ in rows)
        self.bad_records = {}
        self.segments = {name: tuple((s[0], s[1], s[2]) for s in found) for name, _, _, found in rows}
        self._places = {name: (place, checksum) for name, place, checksum, _ in rows}
        self._chunks = [ChunkChecks(size, checksum) for size, checksum in content["chunks"]]
        self.records_per_shard = int(content["records_per_shard"])
        self._reader: tuple[int, Any] = (0, None)
        self._check_index()
        self._store.check(self._chunks)

    def shards(self) -> np.ndarray:
        """Number of the shard of each record, (N,), in the order of :attr:`record_ids`."""
        return np.array([self._places[name][0] for name in self.record_ids]) // self.records_per_shard

    def files(self, record_id: str) -> RecordFiles:
        """Read the files of a record.

        Raises:
            DamagedShardsError: If the record is damaged, or its chunk is missing.
        """
        # An error of the network stays what it is: a record is not bad because of it.
        place, checksum = self._places[record_id]
        fields = self._fields(place)
        if record_checksum(fields) != checksum and self._store.remote:
            fields = self._fields(place, anew=True)
        if record_checksum(fields) != checksum:
            number = place // self.records_per_shard
            file = f"{self._store.place}/{chunk_file(self.split, number)}"
            raise damaged(f"{file} is damaged: record {record_id} has another checksum", self.place)
        _, content, image, segment_map = fields
        return RecordFiles(content, image, zlib.decompress(segment_map))

    def image_and_caption(self, record_id: str) -> tuple[bytes, str]:
        """See :class:`RecordTable`."""
        files = self.files(record_id)
        return files.jpg, str(json.loads(files.json)["caption"])

    def _fields(self, place: int, anew: bool = False) -> tuple[bytes, ...]:
        """Read what lies at a place, damaged or not; empty where it is not even readable."""
        number = place // self.records_per_shard
        self._store.fetch(number, self._chunks[number], anew)
        if anew or self._reader[0] != os.getpid():
            self._reader = (os.getpid(), self._open())
        try:
            # Copies: what litdata hands out are views of a file that it closes.
            return tuple(map(bytes, self._reader[1][place]))
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
            self._refuse_version(self._stored_version())
            raise RecordError(
                f"data.root={self.place}: no shards of split {self.split!r} there ({error}); "
                "fastcomposer prepare data.root=<data folder> shards=<folder> writes them"
            ) from error
        try:
            content = unsealed(data)
        except ValueError as error:
            raise damaged(f"{self._store.place}/{name} {error}", self.place) from None
        self._refuse_version(content["version"])
        return content

    def _stored_version(self) -> Any:
        """Version that the manifest names; our own where there is none."""
        try:
            return json.loads(self._store.read(MANIFEST))["version"]
        except (OSError, ValueError, LookupError, TypeError):
            return VERSION

    def _refuse_version(self, version: Any) -> None:
        if version != VERSION:
            raise ValueError(
                f"data.root={self.place}: shards of version {version}, not {VERSION}, whose records have "
                "checksums; fastcomposer prepare data.root=<data folder> shards=<folder> "
                "restart=true writes them anew"
            )

    def _check_index(self) -> None:
        """Refuse an index that would have litdata do anything but split a record into bytes."""
        name, records = index_file(self.split), len(self._places)
        wanted = litdata_index([chunk.size for chunk in self._chunks], self.records_per_shard, records)
        try:
            data = self._store.read(name)
        except FileNotFoundError:
            raise damaged(f"{self._store.place}/{name} is missing", self.place) from None
        problem = index_problem(data, wanted)
        if problem is not None:
            raise damaged(f"{self._store.place}/{name} {problem}", self.place)
        if self._store.remote:
            write_atomically(self._store.folder / Path(name).name, lambda file: file.write(data))

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_reader": (0, None)}
