"""What frozen networks make of records, kept in a few large files: VAE moments and text states.

A folder holds::

    <folder>/cache.json                   what it was made from
    <folder>/part-00000.safetensors       some hundred records: both orientations' moments, one row of states
                                          for each caption, digests of what they were made from, checksums

States are kept for all tokens: those behind the end token differ from prompt to prompt, and the backbone
attends to them as well.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
import zlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from fastcomposer.data.record import LoadedRecord
from fastcomposer.data.sample_settings import SampleSettings
from fastcomposer.data.transforms import TargetTransform
from fastcomposer.utils.files import write_atomically
from fastcomposer.utils.settings import differences

logger = logging.getLogger(__name__)

_MANIFEST = "cache.json"
_VERSION = 3
_PART = re.compile(r"part-(\d{5,})\.safetensors")
_TABLES = ("digests", "captions", "input_ids", "moment_checks", "state_checks")
_PROBE_POINTS = 8
_PROBE_TOLERANCE = 2  # levels of 255, by which processors differ


class StaleCacheError(ValueError):
    """A cache is damaged or was made from something else; the message says what, and how to make it anew."""


@dataclass(frozen=True)
class Target:
    """What moments and text states of a record are made from."""

    record_id: str
    digest: bytes  # see content_digest
    pixel_values: Tensor  # (3, H, W) float in [-1, 1], not mirrored
    input_ids: Sequence[int]  # T token ids


@dataclass(frozen=True)
class CachePart:
    """The content of one file: N records with M captions."""

    ids: Sequence[str]  # names of the records
    digests: Tensor  # (N, 16) uint8, of what each was made from
    moments: Tensor  # (N, 2, 2C, h, w), of the target and of its mirror image
    captions: Tensor  # (N,) row of each record's caption
    input_ids: Tensor  # (M, T) token ids
    states: Tensor  # (M, T, d) that the backbone attends to
    pooled: Tensor  # (M, p) of the second text encoder; p is 0 where there is one alone
    bad: Mapping[str, str]  # why further records could not be read


def part_file(folder: str | Path, number: int) -> Path:
    """Where a part lies."""
    return Path(folder) / f"part-{number:05d}.safetensors"


def part_files(folder: str | Path) -> dict[int, Path]:
    """Existing parts, by number."""
    found = ((_PART.fullmatch(file.name), file) for file in sorted(Path(folder).glob("part-*.safetensors")))
    return {int(match[1]): file for match, file in found if match is not None}


def write_part(folder: str | Path, number: int, part: CachePart, made_from: Mapping[str, Any]) -> None:
    """Write a part atomically; ``made_from`` is that of :func:`describe_cache`."""
    names = ("digests", "moments", "captions", "input_ids", "states", "pooled")
    tensors = {name: getattr(part, name).cpu().contiguous() for name in names}
    moments, states = tensors["moments"], zip(tensors["states"], tensors["pooled"], strict=True)
    tensors["moment_checks"] = torch.tensor([[_checksum(half) for half in row] for row in moments])
    tensors["state_checks"] = torch.tensor([_checksum(*pair) for pair in states])
    records = json.dumps({"ids": list(part.ids), "bad": dict(part.bad), "made_from": made_from})
    tensors["checksum"] = torch.tensor(_tables_checksum(records, tensors))
    data = save(tensors, {"records": records})
    write_atomically(part_file(folder, number), lambda file: file.write(data))


def _checksum(*tensors: Tensor) -> int:
    """CRC-32 of the content of tensors in memory."""
    found = 0
    for tensor in tensors:
        found = zlib.crc32(tensor.contiguous().numpy().data, found)
    return found


def _tables_checksum(records: str, tensors: Mapping[str, Tensor]) -> int:
    return zlib.crc32(records.encode(), _checksum(*(tensors[name] for name in _TABLES)))


def read_part_records(file: Path) -> tuple[list[str], dict[str, str], dict[str, Any]]:
    """Read which records a part holds, which of its records were bad and why, and what it was made from."""
    with _naming_damage(file), safe_open(file, framework="pt") as part:
        records = json.loads(part.metadata()["records"])
        return records["ids"], records["bad"], records["made_from"]


class PartReader:
    """A part whose tables are in memory, as in :class:`CachePart`, and whose moments and states are on disk.

    Raises:
        FileNotFoundError: If it is not there.
        StaleCacheError: If the tables are damaged.
    """

    def __init__(self, file: Path) -> None:
        self._path = file
        with _naming_damage(file):
            self._file: Any = safe_open(file, framework="pt")
            records = self._file.metadata()["records"]
            tables = {name: self._file.get_tensor(name) for name in _TABLES}
            if _tables_checksum(records, tables) != self._file.get_tensor("checksum").item():
                raise ValueError("its tables have another checksum")
            content = json.loads(records)
            self.ids, self.bad, self.made_from = content["ids"], content["bad"], content["made_from"]
            self.digests, self.captions, self.input_ids, self._moment_checks, self._state_checks = (
                tables[name].numpy() for name in _TABLES
            )

    def read(self, row: int, *, flip: bool) -> dict[str, Tensor]:
        """Read and verify the moments and states of a record."""
        caption = int(self.captions[row])
        with _naming_damage(self._path):
            moments = self._file.get_slice("moments")[row : row + 1, int(flip)]
            states, pooled = (
                self._file.get_slice(name)[caption : caption + 1] for name in ("states", "pooled")
            )
            if _checksum(moments) != self._moment_checks[row, int(flip)]:
                raise ValueError(f"moments of record {self.ids[row]} have another checksum")
            if _checksum(states, pooled) != self._state_checks[caption]:
                raise ValueError(f"text states of record {self.ids[row]} have another checksum")
        found = {"latent_moments": moments, "text_embeds": states}
        return {**found, "pooled_text_embeds": pooled} if pooled.shape[1] else found


def verify_part(file: Path) -> PartReader:
    """Open a part, see :class:`PartReader` for errors, and compare all checksums."""
    part = PartReader(file)
    for row in range(len(part.ids)):
        for flip in (False, True):
            part.read(row, flip=flip)
    return part


@contextmanager
def _naming_damage(file: Path) -> Iterator[None]:
    """Turn errors of reading a part into a :class:`StaleCacheError` that names it and the remedy."""
    try:
        yield
    except (FileNotFoundError, StaleCacheError):
        raise
    except (SafetensorError, OSError, ValueError, LookupError, TypeError, RuntimeError) as error:
        raise StaleCacheError(f"{file} is damaged ({error}); {renewal(file.parent)} renews it") from None


def content_digest(image_file: bytes, caption: str) -> bytes:
    """Digest (16 bytes) of what moments and states of a record are made from."""
    digest = hashlib.blake2b(image_file, digest_size=16)
    digest.update(caption.encode())
    return digest.digest()


def describe_target(settings: SampleSettings) -> dict[str, Any]:
    """Describe how targets are made: resolution, decoding, and the crop by pixels of transformed noise."""
    side, rng = settings.resolution, np.random.default_rng(0)
    transform = TargetTransform(side)
    probe = []
    for shape in ((3, 2 * side, 3 * side), (3, 3 * side, 2 * side)):
        noise = torch.from_numpy(rng.integers(0, 256, shape, dtype=np.uint8))
        target, _ = transform(noise, np.zeros(shape[1:], dtype=np.uint8), [], flip=False)
        step = max(1, side // _PROBE_POINTS)
        probe.append(((target[:, ::step, ::step] + 1) * 127.5).round().flatten().to(torch.uint8))
    decoding = "whole"
    if settings.scaled_decoding:
        decoding = f"scaled, reference={settings.reference}"
        if settings.reference == "same_image":  # cut out of what is decoded for the target
            labels = None if settings.labels is None else sorted(settings.labels)
            decoding += f", reference_size={settings.reference_size}, labels={labels}"
    return {"resolution": side, "decoding": decoding, "crop": bytes(torch.cat(probe).tolist()).hex()}


def describe_cache(target: Mapping[str, Any], weights: Mapping[str, str], precision: str) -> dict[str, Any]:
    """Describe what a cache is made from: the target, digests of networks by name, the type of moments."""
    return {"version": _VERSION, "target": dict(target), "weights": dict(weights), "precision": precision}


def write_manifest(folder: str | Path, made_from: Mapping[str, Any]) -> None:
    """Write what a cache is made from, see :func:`describe_cache`."""
    data = (json.dumps(made_from, indent=2) + "\n").encode()
    write_atomically(Path(folder) / _MANIFEST, lambda file: file.write(data))


def check_manifest(folder: str | Path, made_from: Mapping[str, Any], restart: bool) -> None:
    """Refuse to continue a cache that was made from something else, and to remove files that are of none.

    A manifest that is missing or damaged while the parts were made from the same is written anew.

    Raises:
        StaleCacheError: With what differs.
    """
    path, parts = Path(folder) / _MANIFEST, part_files(folder)
    if not parts or (restart and path.exists()):
        return
    try:
        changes = cache_differences(read_manifest(folder), made_from)
        if not changes:
            return
        problem = (
            f"cache={folder} was made from something else: {'; '.join(changes)}; cache=<other> makes one "
            "beside it, restart=true makes it anew"
        )
    except FileNotFoundError:
        first = next(iter(parts.values())).name
        problem = f"cache={folder} holds {first} and no {_MANIFEST}; name another folder"
    except StaleCacheError as error:
        problem = str(error)
    if not _all_made_from(parts.values(), made_from):
        raise StaleCacheError(problem)
    logger.warning("%s is missing or damaged: written anew", path)


def _all_made_from(parts: Collection[Path], made_from: Mapping[str, Any]) -> bool:
    """Whether all parts that are readable, and at least one, were made from something."""
    found = []
    for file in parts:
        with suppress(StaleCacheError):
            found.append(read_part_records(file)[2])
    return bool(found) and not any(cache_differences(other, made_from) for other in found)


def cache_differences(stored: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[str]:
    """Differences between what two caches are made from, see :func:`describe_cache`."""
    changes = target_differences(stored["target"], wanted["target"])
    changes += differences(stored["weights"], wanted["weights"], "weights")
    return changes + differences(stored["precision"], wanted["precision"], "precision")


def clear(folder: str | Path) -> None:
    """Remove the files of a cache."""
    for file in (Path(folder) / _MANIFEST, *part_files(folder).values()):
        file.unlink(missing_ok=True)


def read_manifest(folder: str | Path) -> dict[str, Any]:
    """Read what a cache is made from, see :func:`describe_cache`."""
    path = Path(folder) / _MANIFEST
    if not path.exists():
        raise FileNotFoundError(f"data.module.cache: no cache at {folder}; {renewal(folder)} makes one")
    try:
        content = json.loads(path.read_bytes())
        version = content["version"]
        if version == _VERSION:  # every field that is compared later: a damaged file may lack any
            itemgetter("weights", "precision")(content)
            itemgetter("resolution", "decoding")(content["target"])
            bytes.fromhex(content["target"]["crop"])
    except (ValueError, LookupError, TypeError) as error:
        raise StaleCacheError(f"{path} is unreadable ({error!r}); {restart(folder)}") from None
    if version != _VERSION:
        raise StaleCacheError(f"{path} is of version {version}, not {_VERSION}; {restart(folder)}")
    return content


def target_differences(stored: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[str]:
    """Differences between how targets were made, see :func:`describe_target`."""
    settings = [{key: by[key] for key in ("resolution", "decoding")} for by in (stored, wanted)]
    if found := differences(settings[0], settings[1]):
        return found
    one, other = (
        np.frombuffer(bytes.fromhex(side["crop"]), np.uint8).astype(int) for side in (stored, wanted)
    )
    same = one.shape == other.shape and bool((abs(one - other) <= _PROBE_TOLERANCE).all())
    return [] if same else ["crop: images were resized or cropped in another way"]


def renewal(folder: str | Path) -> str:
    """Command that brings a cache up to date."""
    return f"fastcomposer prepare cache={folder}, with the model and data of the training,"


def restart(folder: str | Path) -> str:
    """What to do about a cache that cannot be brought up to date."""
    return f"{renewal(folder)} and restart=true makes it anew"


class StateCache:
    """Reads precomputed moments and states from a folder made by ``prepare cache=<folder>``.

    Raises:
        FileNotFoundError: If there is no cache.
        StaleCacheError: If it is of another version of the format.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder, self.manifest = Path(folder), read_manifest(folder)
        self._open: dict[int, PartReader] = {}

    @cached_property
    def _records(self) -> tuple[dict[str, tuple[int, int]], dict[str, str]]:
        """Part and row of each record; why others were bad."""
        rows: dict[str, tuple[int, int]] = {}
        bad: dict[str, str] = {}
        for number, file in part_files(self.folder).items():
            with _naming_damage(file):
                ids, reasons, made_from = read_part_records(file)
                changes = cache_differences(made_from, self.manifest)
            if changes:
                self._refuse([f"{file.name} was made from something else: {'; '.join(changes)}"])
            rows.update((record_id, (number, row)) for row, record_id in enumerate(ids))
            bad.update(reasons)
        return rows, bad

    def check_target(self, target: Mapping[str, Any]) -> None:
        """Refuse a cache of other targets, see :func:`describe_target`; all checks raise StaleCacheError."""
        self._refuse(target_differences(self.manifest["target"], target), restart(self.folder))

    def check_weights(self, weights: Mapping[str, str]) -> None:
        """Refuse a cache of networks with other digests, by name."""
        self._refuse(differences(self.manifest["weights"], weights, "weights"), restart(self.folder))

    def check_records(self, record_ids: Collection[str]) -> None:
        """Refuse a cache that lacks some records."""
        rows, bad = self._records
        missing = [record_id for record_id in record_ids if record_id not in rows and record_id not in bad]
        if missing:
            problem = f"{len(missing)} of {len(record_ids)} records are missing, {missing[0]} first"
            parts = part_files(self.folder)
            gaps = [number for number in range(max(parts, default=-1)) if number not in parts]
            self._refuse([problem + (f", and {part_file('', gaps[0])}" if gaps else "")])

    def read(self, loaded: LoadedRecord, input_ids: Sequence[int], *, flip: bool) -> dict[str, Tensor]:
        """Read the moments and text states of a sample."""
        record_id = loaded.record.record_id
        rows, bad = self._records
        if record_id not in rows:
            self._refuse([f"record {record_id} is missing ({bad.get(record_id, 'new')})"])
        number, row = rows[record_id]
        if number not in self._open:
            self._open[number] = PartReader(part_file(self.folder, number))
        part = self._open[number]
        if part.digests[row].tobytes() != content_digest(loaded.image_file, loaded.record.caption):
            self._refuse([f"image or caption of record {record_id} has changed"])
        if part.input_ids[part.captions[row]].tolist() != list(input_ids):
            self._refuse([f"the tokens of record {record_id} have changed"], restart(self.folder))
        return part.read(row, flip=flip)

    def _refuse(self, changes: Sequence[str], remedy: str | None = None) -> None:
        if changes:
            remedy = remedy or f"{renewal(self.folder)} renews it"
            raise StaleCacheError(f"data.module.cache={self.folder} is stale: {'; '.join(changes)}; {remedy}")

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_open": {}}  # open files stay with their process
