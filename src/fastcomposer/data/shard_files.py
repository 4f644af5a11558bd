"""The files that shards consist of, their checksums, and where a training gets them from.

A folder of shards, which may lie in an object store::

    <shards>/shards.json                  what they were made of
    <shards>/<split>.index.json           catalogue: what RecordIndex knows, and a checksum for each record
    <shards>/<split>/chunk-0-0.bin        some hundred records in litdata's format
    <shards>/<split>/chunk-0-0.json       size and checksum of that chunk, checksums of its records
    <shards>/<split>/index.json           litdata's own

Catalogue and checksum files carry a digest of themselves. litdata's index chooses the code that decodes a
record, pickle among it, so it is compared with the only one that shards of ours have before litdata reads it.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from fastcomposer.utils.files import write_atomically
from fastcomposer.utils.settings import differences, digest

VERSION = 2
MANIFEST = "shards.json"
_FIELDS = 4  # of a record: its id, JSON, image and compressed segment map


class DamagedShardsError(ValueError):
    """A file of shards is missing or damaged, which ``on_bad_record=skip`` does not skip."""


def chunk_file(split: str, number: int) -> str:
    """Return the name of a chunk."""
    return f"{split}/chunk-0-{number}.bin"


def index_file(split: str) -> str:
    """Return the name of litdata's index."""
    return f"{split}/index.json"


def catalogue_file(split: str) -> str:
    """Return the name of the catalogue."""
    return f"{split}.index.json"  # litdata fetches names that end so without starting threads of its own


def damaged(problem: str, location: str | Path) -> DamagedShardsError:
    """Make an error of a file's problem, with the command that repairs the shards at a location."""
    where, then = str(location), ""
    if is_remote(where):
        where, then = "<folder that they were copied from>", ", to be copied again"
    command = f"fastcomposer prepare data.root=<data folder> shards={where}"
    return DamagedShardsError(f"{problem}; {command} makes anew what is damaged{then}")


# --- checksums ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ChunkChecks:
    """Size in bytes and CRC-32 of a chunk; id and checksum of each of its records, where they are needed."""

    size: int
    crc32: int
    records: tuple[tuple[str, int], ...] = ()

    @classmethod
    def of(cls, chunk: Path, records: Iterable[tuple[str, int]] = ()) -> ChunkChecks:
        """Compute them of a file."""
        data = np.memmap(chunk, mode="r")
        return cls(data.size, zlib.crc32(data.data), tuple(records))

    @classmethod
    def read(cls, file: Path) -> ChunkChecks:
        """Read them from the file beside a chunk."""
        content = unsealed(file.read_bytes())
        try:
            records = tuple((name, checksum) for name, checksum in content["records"])
            return cls(content["bytes"], content["crc32"], records)
        except (LookupError, TypeError) as error:
            raise ValueError(f"is damaged: {error!r}") from None

    def write(self, file: Path) -> None:
        """Write what :meth:`read` reads."""
        data = sealed({"bytes": self.size, "crc32": self.crc32, "records": self.records})
        write_atomically(file, lambda stream: stream.write(data))

    def problem(self, chunk: Path) -> str | None:
        """What is wrong with a chunk; ``None`` if it is as it was written."""
        problem = size_problem(chunk, self.size)
        if problem is None and ChunkChecks.of(chunk).crc32 != self.crc32:
            return f"is damaged: its checksum is not {self.crc32:08x}"
        return problem


def size_problem(file: Path, size: int) -> str | None:
    """What is wrong with a file's size; ``None`` if it is right."""
    try:
        found = file.stat().st_size
    except FileNotFoundError:
        return "is missing"
    return None if found == size else f"is damaged: it has {found} bytes, not {size}"


def record_checksum(fields: Sequence[bytes]) -> int:
    """CRC-32 of a record's fields and their lengths."""
    checksum = zlib.crc32(repr([len(content) for content in fields]).encode())
    for content in fields:
        checksum = zlib.crc32(content, checksum)
    return checksum


def sealed(content: dict[str, Any]) -> bytes:
    """JSON that carries a digest of itself."""
    return (json.dumps(content | {"digest": digest(content)}) + "\n").encode()


def unsealed(data: bytes) -> dict[str, Any]:
    """The content of :func:`sealed`."""
    try:
        content = dict(json.loads(data))
        stored = content.pop("digest")
    except (ValueError, LookupError, TypeError, RecursionError) as error:
        raise ValueError(f"is damaged: {error!r}") from None
    if stored != digest(content):
        raise ValueError("is damaged: its content and its digest differ")
    return content


# --- litdata's index ---------------------------------------------------------------------------------------


def litdata_index(sizes: Sequence[int], records_per_shard: int, records: int) -> dict[str, Any]:
    """The index of a split, of so many bytes in each chunk and so many records."""
    leaf: dict[str, Any] = {"type": None, "context": None, "children_spec": []}
    record = {"type": "builtins.tuple", "context": "null", "children_spec": [leaf] * _FIELDS}
    config = {
        "chunk_bytes": None,
        "chunk_size": records_per_shard,
        "compression": None,
        "data_format": ["bytes"] * _FIELDS,
        "data_spec": json.dumps([1, record]),
        "encryption": None,
        "item_loader": "PyTreeLoader",
    }
    chunks = [
        {
            "chunk_bytes": size,
            "chunk_size": min(records_per_shard, records - number * records_per_shard),
            "dim": None,
            "filename": Path(chunk_file("", number)).name,
        }
        for number, size in enumerate(sizes)
    ]
    return {"chunks": chunks, "config": config}


def index_problem(data: bytes, wanted: dict[str, Any]) -> str | None:
    """What differs between an index and the one that the shards must have; ``None`` if nothing does."""
    try:
        found = json.loads(data)
        changes = differences(found["config"], wanted["config"], "config")
        changes += [key for key in found if key not in wanted]
        if len(found["chunks"]) != len(wanted["chunks"]):
            changes.append(f"{len(found['chunks'])} chunks, not {len(wanted['chunks'])}")
        for number, pair in enumerate(zip(found["chunks"], wanted["chunks"], strict=False)):
            changes += differences(*pair, f"chunks.{number}")
    except (ValueError, LookupError, TypeError, RecursionError) as error:
        return f"is damaged: {error!r}"
    return f"is not the index of these shards ({'; '.join(changes[:3])})" if changes else None


# --- where they lie ----------------------------------------------------------------------------------------


def is_remote(location: str) -> bool:
    """Whether shards lie in an object store; ``local:<folder>`` is a folder that is treated as one."""
    return "://" in location or location.startswith("local:")


class ShardStore:
    """The files of a split, in a folder or in an object store whose chunks are kept on a local disk."""

    def __init__(self, location: str, split: str, local: str | Path | None) -> None:
        self.location, self.split, self.local = location.rstrip("/"), split, local
        self.remote = is_remote(location)
        self.folder = Path(location) / split
        if self.remote:
            from litdata.utilities.dataset_utilities import get_default_cache_dir

            key = hashlib.sha256(self.location.encode()).hexdigest()[:16]
            self.folder = Path(local or get_default_cache_dir()) / split / key

    def read(self, name: str) -> bytes:
        """Read a small file."""
        if not self.remote:
            return (Path(self.location) / name).read_bytes()
        with TemporaryDirectory() as folder:
            return self._download(name, Path(folder)).read_bytes()

    def check(self, chunks: Sequence[ChunkChecks]) -> None:
        """Look for all chunks in a folder, and on a local disk for room for those of an object store."""
        if self.remote:
            self._check_room(sum(chunk.size for chunk in chunks))
            return
        files = [self.folder / Path(chunk_file("", number)).name for number in range(len(chunks))]
        pairs = zip(files, chunks, strict=True)
        problems = [f"{file} {found}" for file, chunk in pairs if (found := size_problem(file, chunk.size))]
        if problems:
            more = [f"and {len(problems) - 3} more"] if len(problems) > 3 else []
            raise damaged(", ".join([*problems[:3], *more]), self.location)

    def _check_room(self, size: int) -> None:
        kept = sum(file.stat().st_size for file in self.folder.glob("*.bin"))
        folder = self.folder
        while not folder.exists():
            folder = folder.parent
        room = shutil.disk_usage(folder).free + kept
        if size > room:
            raise ValueError(
                f"data.module.local={self.local}: split {self.split!r} of {self.location} takes "
                f"{size / 1e9:.1f} GB, but there is room for {room / 1e9:.1f} GB; name a larger disk's"
            )

    def fetch(self, number: int, checks: ChunkChecks, anew: bool = False) -> None:
        """Make sure that a chunk is a local file of the right size. Downloads are verified."""
        name = chunk_file(self.split, number)
        file = self.folder / Path(name).name
        if not self.remote:
            problem = size_problem(file, checks.size)
            if problem is not None:
                raise damaged(f"{file} {problem}", self.location)
        elif anew or size_problem(file, checks.size) is not None:
            self._keep(name, file, checks, anew)

    def _keep(self, name: str, file: Path, checks: ChunkChecks, anew: bool) -> None:
        """Download a chunk, unless another process has just done so."""
        from filelock import FileLock

        self.folder.mkdir(parents=True, exist_ok=True)
        before = _identity(file)
        with FileLock(file.with_name(f".{file.name}.lock")):
            if size_problem(file, checks.size) is None and not (anew and _identity(file) == before):
                return
            with TemporaryDirectory(dir=self.folder, prefix=".") as folder:
                try:
                    fetched = self._download(name, Path(folder))
                except FileNotFoundError:
                    raise damaged(f"{self.location}/{name} is missing", self.location) from None
                problem = checks.problem(fetched)
                if problem is not None:
                    raise damaged(f"{self.location}/{name} {problem}", self.location)
                fetched.replace(file)

    def _download(self, name: str, folder: Path) -> Path:
        from litdata.streaming.downloader import get_downloader

        remote, file = f"{self.location}/{name}", folder / Path(name).name
        try:
            get_downloader(self.location, str(folder), []).download_file(remote, str(file))
        except FileNotFoundError:
            raise
        except Exception as error:  # whatever the store's client raises
            raise OSError(f"{remote} cannot be downloaded: {error}") from error
        if not file.exists():  # some clients raise nothing
            raise FileNotFoundError(f"{remote} is missing")
        return file


def _identity(file: Path) -> tuple[int, int] | None:
    """Identify a file, as opposed to one that replaces it."""
    try:
        status = file.stat()
    except FileNotFoundError:
        return None
    return status.st_ino, status.st_mtime_ns
