"""Benchmarks for other systems: the cases to generate for, and the images that come back."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from PIL import Image
from torch import nn

from fastcomposer.evaluation.benchmark import IMAGE_SUFFIXES, Benchmark, Subject
from fastcomposer.evaluation.methods import ImageRequest, Method, SampledImages, blocks
from fastcomposer.evaluation.results import METHODS, Costs, Origin
from fastcomposer.evaluation.scoring import read_reference
from fastcomposer.utils.files import existing_file, write_atomically
from fastcomposer.utils.settings import digest, file_digest

_LISTED = 10
_GROUP = 64  # images copied before any is written


def write_cases(benchmarks: Sequence[Benchmark], file: str | Path) -> int:
    """Write the cases of benchmarks as JSON lines, atomically; returns how many.

    A line has ``id``, ``prompt`` with markers, ``text`` without, ``subjects``, ``references`` (a file for
    each subject), ``tuning_images`` (files for each subject, for methods with fine-tuning), ``seed``, and
    ``file``: path of the image in the folder that is scored.
    """
    lines = []
    for benchmark in benchmarks:
        known = {subject.id: subject for subject in benchmark.subjects}
        for case in benchmark.cases:
            subjects = [known[name] for name in case.subjects]
            line = {
                "id": case.id,
                "prompt": case.prompt,
                "text": case.text,
                "subjects": case.subjects,
                "references": [str(subject.reference.absolute()) for subject in subjects],
                "tuning_images": [[str(one.absolute()) for one in s.tuning_images] for s in subjects],
                "seed": case.seed,
                "file": f"{case.id}.png",
            }
            lines.append(json.dumps(line, ensure_ascii=False) + "\n")
    write_atomically(Path(file), lambda out: out.write("".join(lines).encode()))
    return len(lines)


@dataclass(frozen=True)
class FoundImages:
    """Images of a benchmark's cases, all of one size.

    Attributes:
        files: Image by case id.
        missing: Expected files of cases without an image.
        surplus: Images of no case.
    """

    files: Mapping[str, Path]
    missing: Sequence[str]
    surplus: Sequence[str]


def find_images(
    folder: str | Path,
    benchmarks: Sequence[Benchmark],
    manifest: str | Path | None = None,
    skip_missing: bool = False,
) -> FoundImages:
    """Find the images of cases.

    Args:
        folder: Folder of the images, ``<case id>.png`` or another of :data:`IMAGE_SUFFIXES`.
        benchmarks: Benchmarks of the cases.
        manifest: CSV, or JSON lines (``.jsonl``), with ``id`` of a case and ``file``, relative to the folder;
            names of files are arbitrary then.
        skip_missing: Whether cases may be without an image.

    Raises:
        FileNotFoundError: If a folder or file does not exist, or images are missing.
        ValueError: If a case has two images, sizes differ, or the manifest cannot be read.
    """
    root = Path(folder)
    if not root.is_dir():
        raise FileNotFoundError(f"images={root}: no such folder")
    files: dict[str, Path] = {}
    for case, file in _read_manifest(Path(manifest), root) if manifest else _by_name(root):
        if case in files:
            raise ValueError(
                f"{manifest or f'images={root}'}: {files[case]} and {file} are of one case, {case}"
            )
        files[case] = file
    wanted = [case.id for benchmark in benchmarks for case in benchmark.cases]
    missing = [f"{name}.png" for name in wanted if name not in files]
    surplus = [str(files[name]) for name in files.keys() - {*wanted}]
    found = {name: existing_file(files[name], f"image of {name}") for name in wanted if name in files}
    if missing and not (skip_missing and found):
        raise FileNotFoundError(
            f"images={root}: {len(missing)} of {len(wanted)} cases have no image there: {listed(missing)}"
            + "; skip_missing=true scores the others" * bool(found)
        )
    _check_sizes(list(found.values()))
    return FoundImages(found, missing, sorted(surplus))


def listed(names: Sequence[str]) -> str:
    """The first names, and how many more there are."""
    more = len(names) - _LISTED
    return ", ".join(names[:_LISTED]) + f" and {more:,} more" * (more > 0)


def _by_name(root: Path) -> Iterator[tuple[str, Path]]:
    for file in sorted(root.rglob("*")):
        if file.suffix in IMAGE_SUFFIXES and file.is_file():
            yield file.relative_to(root).with_suffix("").as_posix(), file


def _read_manifest(manifest: Path, root: Path) -> Iterator[tuple[str, Path]]:
    existing_file(manifest, "manifest")
    try:
        lines = manifest.suffix == ".jsonl"
        table = pd.read_json(manifest, lines=True, dtype=str) if lines else pd.read_csv(manifest, dtype=str)
        table = table[["id", "file"]]
    except KeyError as error:
        raise ValueError(f"{manifest}: needs columns id and file: {error.args[0]}") from error
    except ValueError as error:
        raise ValueError(f"{manifest}: neither CSV nor JSON lines: {error}") from error
    for number, (case, file) in enumerate(table.itertuples(index=False)):
        if not isinstance(case, str) or not isinstance(file, str):
            raise ValueError(f"{manifest}: row {number}: id and file: both must be texts")
        yield case, root / file


def _check_sizes(files: Sequence[Path]) -> None:
    sizes: dict[tuple[int, int], Path] = {}
    for file in files:
        with Image.open(file) as image:
            sizes.setdefault(image.size, file)
    if len(sizes) > 1:
        (one, first), (other, second) = list(sizes.items())[:2]
        raise ValueError(
            f"{second}: of size {other}, but {first} of {one}: images of one method have one size"
        )


class ForeignMethod(Method):
    """Another system, whose images are read from files: nothing is sampled, and costs are not measured.

    Args:
        name: For tables; none of :data:`~fastcomposer.evaluation.results.METHODS`.
        files: Image by case id.
        version: Of the system; its versions are distinguished by it.
        origin: Where the images come from.
        reference_images: Images of each subject that the system was given.

    Raises:
        ValueError: If the name is that of a method of this package.
    """

    def __init__(
        self,
        name: str,
        files: Mapping[str, Path],
        version: str | None = None,
        origin: Origin | None = None,
        reference_images: int = 1,
    ) -> None:
        if name in METHODS:
            raise ValueError(f"method={name}: the name of a method of this package")
        self.name, self.files, self.reference_images = name, dict(files), reference_images
        self.origin = origin or Origin()
        self.settings = ({} if version is None else {"version": version},)

    @property
    def networks(self) -> Mapping[str, nn.Module]:
        """None."""
        return {}

    def config(self, setting: int) -> dict[str, Any]:
        """Where the images come from, and a digest of all of them."""
        images = {case: file_digest(file) for case, file in self.files.items()}
        return {"origin": asdict(self.origin), "files": digest(images)}

    def images(self, subject: Subject) -> tuple[Path, ...]:
        """The first of its images."""
        return subject.tuning_images[: self.reference_images]

    def costs(self) -> Costs:
        """The number of references alone."""
        return Costs(self.reference_images)

    def groups(self, requests: Sequence[ImageRequest]) -> list[tuple[ImageRequest, ...]]:
        """Requests in their order."""
        return [tuple(some) for some in blocks(requests, _GROUP)]

    def sample(self, requests: Sequence[ImageRequest], attention: bool = False) -> SampledImages:
        """Read images, upright and light grey where transparent."""
        images = [read_reference(self.files[request.case.id], None) for request in requests]
        nothing = (0.0,) * len(images)
        return SampledImages(torch.stack(images), nothing, nothing, (None,) * len(images))


def foreign_methods(
    found: FoundImages,
    benchmarks: Sequence[Benchmark],
    name: str,
    version: str | None = None,
    note: str = "",
    reference_images: int = 1,
) -> list[tuple[Method, list[Benchmark]]]:
    """Make a method for each benchmark that there are images of, with the cases that have one."""
    work: list[tuple[Method, list[Benchmark]]] = []
    for benchmark in benchmarks:
        cases = tuple(case for case in benchmark.cases if case.id in found.files)
        files = {case.id: found.files[case.id] for case in cases}
        origin = Origin(note, len(benchmark.cases) - len(cases))
        if cases:
            method = ForeignMethod(name, files, version, origin, reference_images)
            work.append((method, [replace(benchmark, cases=cases)]))
    return work
