"""What frozen networks make of records, read from files instead of computed in every step."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from safetensors import safe_open
from torch import Tensor

from fastcomposer.data.cache_files import (
    StaleCacheError,
    cache_differences,
    checksum,
    content_digest,
    naming_damage,
    part_file,
    part_files,
    read_manifest,
    read_part_records,
    read_tables,
    renewal,
    restart,
    target_differences,
)
from fastcomposer.data.records import LoadedRecord
from fastcomposer.utils.settings import differences


class StateCache:
    """Reads precomputed moments and states.

    Args:
        folder: Made by ``prepare cache=<folder>``.

    Raises:
        FileNotFoundError: If there is no cache.
        StaleCacheError: If it is of another version of the format.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        manifest = read_manifest(folder)
        if manifest is None:
            raise FileNotFoundError(f"data.module.cache: no cache at {folder}; {renewal(folder)} makes one")
        self.manifest = manifest
        self._open: dict[int, _OpenPart] = {}

    @cached_property
    def _records(self) -> tuple[dict[str, tuple[int, int]], dict[str, str]]:
        """Part and row of each record; why others were bad."""
        places: dict[str, tuple[int, int]] = {}
        bad: dict[str, str] = {}
        for number, file in part_files(self.folder).items():
            with naming_damage(file):
                ids, reasons, made_from = read_part_records(file)
                changes = cache_differences(made_from, self.manifest)
            if changes:
                self._refuse([f"{file.name} was made from something else: {'; '.join(changes)}"])
            places.update((record_id, (number, row)) for row, record_id in enumerate(ids))
            bad.update(reasons)
        return places, bad

    def check_target(self, target: Mapping[str, Any]) -> None:
        """Refuse a cache of targets that were made otherwise.

        Args:
            target: See :func:`~fastcomposer.data.cache_files.describe_target`.

        Raises:
            StaleCacheError: With what differs.
        """
        self._refuse(target_differences(self.manifest["target"], target), restart(self.folder))

    def check_weights(self, weights: Mapping[str, str]) -> None:
        """Refuse a cache of other networks.

        Args:
            weights: Digests by name, as the cache was made with.

        Raises:
            StaleCacheError: With what differs.
        """
        self._refuse(differences(self.manifest["weights"], weights, "weights"), restart(self.folder))

    def check_records(self, record_ids: Collection[str]) -> None:
        """Refuse a cache that lacks some records.

        Raises:
            StaleCacheError: With how many and the first of them.
        """
        places, bad = self._records
        missing = [record_id for record_id in record_ids if record_id not in places and record_id not in bad]
        if missing:
            problem = f"{len(missing)} of {len(record_ids)} records are missing, {missing[0]} first"
            parts = part_files(self.folder)
            gaps = [number for number in range(max(parts, default=-1)) if number not in parts]
            self._refuse([problem + (f", and {part_file('', gaps[0])}" if gaps else "")])

    def read(self, loaded: LoadedRecord, input_ids: Sequence[int], *, flip: bool) -> dict[str, Tensor]:
        """Read what a batch may carry of a record.

        Args:
            loaded: The record.
            input_ids: Token ids of the sample.
            flip: Whether the sample is mirrored.

        Returns:
            ``latent_moments`` (1, 2C, h, w), ``text_embeds`` (1, 77, d) and, of a second text encoder,
            ``pooled_text_embeds`` (1, p).

        Raises:
            StaleCacheError: If the record has changed since, is not there, or is damaged.
        """
        record_id = loaded.record.record_id
        places, bad = self._records
        if record_id not in places:
            self._refuse([f"record {record_id} is missing ({bad.get(record_id, 'new')})"])
        number, row = places[record_id]
        if number not in self._open:
            self._open[number] = _OpenPart(part_file(self.folder, number))
        part = self._open[number]
        tables = part.tables
        if tables.digests[row].tobytes() != content_digest(loaded.image_file, loaded.record.caption):
            self._refuse([f"image or caption of record {record_id} has changed"])
        caption = int(tables.captions[row])
        if tables.input_ids[caption].tolist() != list(input_ids):
            self._refuse([f"the tokens of record {record_id} have changed"], restart(self.folder))
        return part.read(row, flip=flip)

    def _refuse(self, changes: Sequence[str], remedy: str | None = None) -> None:
        if changes:
            remedy = remedy or f"{renewal(self.folder)} renews it"
            raise StaleCacheError(f"data.module.cache={self.folder} is stale: {'; '.join(changes)}; {remedy}")

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_open": {}}  # open files stay with their process


class _OpenPart:
    """A part of which tables are in memory and moments and states on disk."""

    def __init__(self, file: Path) -> None:
        self._path = file
        with naming_damage(file):
            self._file = safe_open(file, framework="pt")
            self.tables = read_tables(self._file)
            self._moments, self._states, self._pooled = map(
                self._file.get_slice, ("moments", "states", "pooled")
            )

    def read(self, row: int, *, flip: bool) -> dict[str, Tensor]:
        """Read and verify what a batch may carry of a record."""
        tables, caption = self.tables, int(self.tables.captions[row])
        with naming_damage(self._path):
            moments = self._moments[row : row + 1, int(flip)]
            states, pooled = (held[caption : caption + 1] for held in (self._states, self._pooled))
            if checksum(moments) != tables.moment_checks[row, int(flip)]:
                raise ValueError(f"moments of record {tables.ids[row]} have another checksum")
            if checksum(states, pooled) != tables.state_checks[caption]:
                raise ValueError(f"text states of record {tables.ids[row]} have another checksum")
        found = {"latent_moments": moments, "text_embeds": states}
        return {**found, "pooled_text_embeds": pooled} if pooled.shape[1] else found
