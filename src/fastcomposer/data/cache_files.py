"""What frozen networks make of records, kept in a few large files: VAE moments and text states.

A folder holds::

    <folder>/cache.json                   what it was made from
    <folder>/part-00000.safetensors       some hundred records: both orientations' moments, one row of states
                                          for each caption, and digests of what they were made from

States are kept for all 77 tokens: those behind the end token differ from prompt to prompt, and the U-Net
attends to them as well.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from fastcomposer.data.transforms import TargetTransform
from fastcomposer.runtime.files import write_atomically
from fastcomposer.runtime.settings import differences

_MANIFEST = "cache.json"
_VERSION = 2
_PROBE_POINTS = 8
_PROBE_TOLERANCE = 2  # levels of 255, by which processors differ


class StaleCacheError(ValueError):
    """A cache was made from something else; the message names what changed and how to make it anew."""


@dataclass(frozen=True)
class Target:
    """What moments and text states of a record are made from.

    Attributes:
        record_id: Name of the record.
        digest: See :func:`content_digest`.
        pixel_values: (3, H, W) float in [-1, 1], not mirrored.
        input_ids: 77 token ids.
    """

    record_id: str
    digest: bytes
    pixel_values: Tensor
    input_ids: Sequence[int]


@dataclass(frozen=True)
class CachePart:
    """The content of one file: N records with M captions.

    Attributes:
        ids: Names of the records.
        digests: (N, 16) uint8, of what each was made from.
        moments: (N, 2, 2C, h, w), of the target and of its mirror image.
        captions: (N,) row of each record's caption.
        input_ids: (M, 77) token ids.
        states: (M, 77, d) that the U-Net attends to.
        pooled: (M, p) of the second text encoder; p is 0 where there is one alone.
        bad: Why further records of this part could not be read.
    """

    ids: Sequence[str]
    digests: Tensor
    moments: Tensor
    captions: Tensor
    input_ids: Tensor
    states: Tensor
    pooled: Tensor
    bad: Mapping[str, str] = field(default_factory=dict)


def part_file(folder: str | Path, number: int) -> Path:
    """Where a part lies."""
    return Path(folder) / f"part-{number:05d}.safetensors"


def write_part(folder: str | Path, number: int, part: CachePart) -> None:
    """Write a part, whole or not at all."""
    names = ("digests", "moments", "captions", "input_ids", "states", "pooled")
    tensors = {name: getattr(part, name).cpu().contiguous() for name in names}
    metadata = {"records": json.dumps({"ids": list(part.ids), "bad": dict(part.bad)})}
    write_atomically(part_file(folder, number), lambda file: file.write(save(tensors, metadata)))


def read_part_records(file: Path) -> tuple[list[str], dict[str, str], np.ndarray]:
    """Read which records a part holds, which of its records were bad and why, and the digests.

    Raises:
        FileNotFoundError: If it is not there.
        StaleCacheError: If it is damaged.
    """
    with naming_damage(file), safe_open(file, framework="pt") as part:
        records = json.loads(part.metadata()["records"])
        return records["ids"], records["bad"], part.get_tensor("digests").numpy()


@contextmanager
def naming_damage(file: Path) -> Iterator[None]:
    """Name a part that cannot be read, and say how to mend it.

    Raises:
        StaleCacheError: If reading it failed inside the block.
    """
    try:
        yield
    except FileNotFoundError:
        raise
    except (SafetensorError, OSError, ValueError, LookupError, TypeError) as error:
        raise StaleCacheError(f"{file} is damaged ({error}); {renewal(file.parent)} renews it") from None


def content_digest(picture_file: bytes, caption: str) -> bytes:
    """Digest (16 bytes) of what moments and states of a record are made from."""
    digest = hashlib.blake2b(picture_file, digest_size=16)
    digest.update(caption.encode())
    return digest.digest()


def describe_target(
    transform: TargetTransform,
    scaled_decoding: bool,
    reference: str,
    reference_size: int,
    labels: Collection[str] | None,
) -> dict[str, Any]:
    """Describe how targets are made: the resolution, the crop, and at which size pictures are decoded.

    The crop is a few pixels of what becomes of two noise pictures: these tell other ways to crop and to
    resize apart, also such as have no setting.

    The arguments are those of :class:`~fastcomposer.data.dataset.SubjectDataset`; at which size a picture is
    decoded depends on them.
    """
    side, rng = transform.resolution, np.random.default_rng(0)
    probe = []
    for shape in ((3, 2 * side, 3 * side), (3, 3 * side, 2 * side)):
        noise = torch.from_numpy(rng.integers(0, 256, shape, dtype=np.uint8))
        target, _ = transform(noise, np.zeros(shape[1:], dtype=np.uint8), [], flip=False)
        step = max(1, side // _PROBE_POINTS)
        probe.append(((target[:, ::step, ::step] + 1) * 127.5).round().flatten().to(torch.uint8))
    decoding = "whole"
    if scaled_decoding:
        decoding = f"scaled, reference={reference}"
        if reference == "same_image":  # cut out of what is decoded for the target
            decoding += f", reference_size={reference_size}, labels={labels and sorted(labels)}"
    return {"resolution": side, "decoding": decoding, "crop": bytes(torch.cat(probe).tolist()).hex()}


def write_manifest(
    folder: str | Path, target: Mapping[str, Any], weights: Mapping[str, str], precision: str
) -> None:
    """Write what a cache is made from.

    Args:
        folder: Folder of the cache.
        target: See :func:`describe_target`.
        weights: Digests of the networks by name.
        precision: Name of the type that moments and states are kept in.
    """
    content = {"version": _VERSION, "target": dict(target), "weights": dict(weights), "precision": precision}
    data = (json.dumps(content, indent=2) + "\n").encode()
    write_atomically(Path(folder) / _MANIFEST, lambda file: file.write(data))


def check_manifest(
    folder: str | Path, target: Mapping[str, Any], weights: Mapping[str, str], precision: str
) -> None:
    """Refuse to go on with a cache that was made from something else.

    Args:
        folder: See :func:`write_manifest`, as the others.
        target: See there.
        weights: See there.
        precision: See there.

    Raises:
        StaleCacheError: With what differs.
    """
    stored = read_manifest(folder)
    if stored is None:
        return
    changes = target_differences(stored["target"], target)
    changes += differences(stored["weights"], weights, "weights")
    changes += differences(stored["precision"], precision, "precision")
    if changes:
        raise StaleCacheError(
            f"cache={folder} was made from something else: {'; '.join(changes)}; cache=<other> makes one "
            "beside it, restart=true makes it anew"
        )


def clear(folder: str | Path) -> None:
    """Remove the files of a cache."""
    for file in (Path(folder) / _MANIFEST, *Path(folder).glob("part-*.safetensors")):
        file.unlink(missing_ok=True)


def read_manifest(folder: str | Path) -> dict[str, Any] | None:
    """Read what a cache is made from; ``None`` where there is no cache.

    Raises:
        StaleCacheError: If it is of another version of the format, or unreadable.
    """
    path = Path(folder) / _MANIFEST
    if not path.exists():
        return None
    try:
        content = json.loads(path.read_bytes())
        version = content["version"]
        if version == _VERSION:
            _check_fields(content)
    except (ValueError, LookupError, TypeError) as error:
        raise StaleCacheError(f"{path} is unreadable ({error!r}); {restart(folder)}") from None
    if version != _VERSION:
        raise StaleCacheError(f"{path} is of version {version}, not {_VERSION}; {restart(folder)}")
    return content


def _check_fields(content: Mapping[str, Any]) -> None:
    """Look for every field that is compared later; a damaged file may lack any."""
    itemgetter("weights", "precision")(content)
    itemgetter("resolution", "decoding")(content["target"])
    bytes.fromhex(content["target"]["crop"])


def target_differences(stored: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[str]:
    """Tell how targets were made otherwise: as from :func:`describe_target`."""
    settings = [{key: by[key] for key in ("resolution", "decoding")} for by in (stored, wanted)]
    found = differences(settings[0], settings[1])
    if found:
        return found
    one, other = (
        np.frombuffer(bytes.fromhex(side["crop"]), np.uint8).astype(int) for side in (stored, wanted)
    )
    same = one.shape == other.shape and bool((abs(one - other) <= _PROBE_TOLERANCE).all())
    return [] if same else ["crop: pictures were resized or cropped in another way"]


def renewal(folder: str | Path) -> str:
    """Command that brings a cache up to date."""
    return f"python -m fastcomposer.cli.prepare cache={folder}, with the model and data of the training,"


def restart(folder: str | Path) -> str:
    """What to do about a cache that cannot be brought up to date."""
    return f"{renewal(folder)} and restart=true makes it anew"
