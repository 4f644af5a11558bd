"""Folders of evaluation runs: what was sampled under which settings, and what of it is done.

``<output>/<benchmark>/<method>[-<settings>]/`` holds ``run.json``, ``images/<case id>.png``,
``attention/<case id>/``, ``scores.parquet`` and, where asked for, ``distances.json``. Files are written
atomically and hold what they were made from: those that fit are kept, damaged ones are made anew.
"""

from __future__ import annotations

import io
import json
import re
import shutil
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn

from fastcomposer.evaluation.benchmark import Case
from fastcomposer.evaluation.results import SCORES, Costs, Distances, ResultRow
from fastcomposer.metrics.multi_subject import SUBJECT_METRICS
from fastcomposer.utils.files import existing_file, remove_leftovers, write_atomically
from fastcomposer.utils.image_grid import attention_overlay
from fastcomposer.utils.json_files import read_json_as
from fastcomposer.utils.provenance import image_text, read_metadata
from fastcomposer.utils.settings import differences, digest, weights_digest

RUN_NAME = "run.json"
SCORES_NAME = "scores.parquet"
DISTANCES_NAME = "distances.json"
COLUMNS = pa.schema(
    [
        *SCORES,
        pa.field("peak_memory_bytes", pa.int64(), nullable=False),
        *(pa.field(name, pa.float64()) for name in SUBJECT_METRICS),  # null where it is not defined
    ]
)
"""Columns of ``scores.parquet``: the contract's, the most memory in use, and scores of several people."""
_TEXT, _SCORER = "fastcomposer", "scorer"  # names of the tables' metadata
_GO_ON = "output=<other> writes beside it, resume=restart forgets it"


@dataclass(frozen=True)
class ImageMetadata:
    """What sampling an image took; ``peak_memory_bytes`` is the process's maximum until then."""

    seconds: float
    unet_calls: float
    peak_memory_bytes: int


@dataclass(frozen=True)
class RunStore:
    """The folder of one method with one choice of settings on one benchmark.

    Attributes:
        output: Folder of the evaluation, with the names of benchmark and method.
        settings: What was chosen, as in ``results.json``; part of the folder's name.
        config: All that determines the pixels besides a case and its subjects' images; plain values.
        images: For each subject a digest of the images that the method gets.
    """

    output: Path
    benchmark: str
    method: str
    settings: Mapping[str, Any]
    config: Mapping[str, Any]
    images: Mapping[str, str]

    @cached_property
    def folder(self) -> Path:
        """Folder of the run."""
        return run_folder(self.output, self.benchmark, self.method, self.settings)

    @cached_property
    def hash(self) -> str:
        """Digest of what determines the pixels."""
        return digest(self.config)

    def open(self, restart: bool = False) -> None:
        """Make the folder, or continue one of the same settings; other settings are a ValueError."""
        if restart:
            shutil.rmtree(self.folder, ignore_errors=True)
        stored = read_run(self.folder)
        if stored is not None:
            self._check(stored["config"], dict(self.config), str(self.folder))
        remove_leftovers(self.folder)
        if stored is None:
            content = {"benchmark": self.benchmark, "method": self.method, "settings": dict(self.settings)}
            _write_json(self.folder / RUN_NAME, {**content, "hash": self.hash, "config": dict(self.config)})

    def check_other_alphas(self, opened: Sequence[Path]) -> None:
        """Refuse runs that differ by more than alpha without a sign of it in their settings.

        Folders in ``opened`` are left out: :meth:`open` checks them.
        """
        own = json.loads(json.dumps(dict(self.config)))
        for file in sorted(self.folder.parent.glob(f"*/{RUN_NAME}")):
            run = None if file.parent in opened else read_run(file.parent)
            if run is None or run["method"] != self.method or _rest(run["settings"]) != _rest(self.settings):
                continue
            if changed := differences(_rest(run["config"]), _rest(own)):
                raise ValueError(
                    f"{file.parent} was made under other settings ({'; '.join(changed)}) and would be taken "
                    "for another alpha of the same: labels={<name>: <value>} distinguishes them, "
                    "output=<other> writes beside it; to forget it, name its alpha, too, with resume=restart"
                )

    def write_costs(self, costs: Costs) -> None:
        """Write the costs of learning a subject."""
        stored = read_run(self.folder) or {}
        _write_json(self.folder / RUN_NAME, {**stored, "costs": asdict(costs)})

    def image_file(self, case: Case) -> Path:
        """File of a case's image."""
        return self.folder / "images" / f"{case.id}.png"

    def attention_file(self, case: Case) -> Path:
        """File of a case's attention maps; images of them are beside it."""
        return self.folder / "attention" / case.id / "maps.npz"

    def has_image(self, case: Case) -> bool:
        """Whether a case is sampled; a damaged file counts as none, other inputs are a ValueError."""
        file = self.image_file(case)
        metadata = read_metadata(file)
        if metadata is None:
            return False
        expected = self._metadata(case)
        self._check({key: metadata.get(key) for key in expected}, expected, str(file))
        return True

    def encode_image(self, case: Case, pixels: Tensor, metadata: ImageMetadata) -> bytes:
        """Make the PNG of an image (3, H, W) in [0, 1]."""
        about = {"benchmark": self.benchmark, "method": self.method, "settings": dict(self.settings)}
        data = io.BytesIO()
        info = image_text({**about, "case": case.id, **self._metadata(case), **asdict(metadata)})
        to_pil(pixels).save(data, "PNG", pnginfo=info)
        return data.getvalue()

    def write_attention(self, case: Case, pixels: Tensor, maps: Tensor | None) -> None:
        """Write an image's attention maps (K, h, w): the numbers, and an image for each subject."""
        file = self.attention_file(case)
        image = to_pil(pixels)
        for number, attention in enumerate(() if maps is None else maps):
            data = io.BytesIO()
            attention_overlay(image, attention).save(data, "PNG", pnginfo=image_text({"case": case.id}))
            _write(file.with_name(f"{number}.png"), data.getvalue())
        data = io.BytesIO()
        np.savez_compressed(data, maps=np.zeros((0, 0, 0)) if maps is None else maps.numpy())
        _write(file, data.getvalue())

    def read_image(self, case: Case) -> tuple[Tensor, ImageMetadata]:
        """Read an image (3, H, W) in [0, 1] and what it took; a ValueError where it is damaged."""
        file = self.image_file(case)
        metadata = read_metadata(file)
        if metadata is None:
            raise ValueError(f"{file}: missing or damaged; evaluate again, which samples it anew")
        with Image.open(file) as opened:
            pixels = torch.from_numpy(np.array(opened.convert("RGB"))).permute(2, 0, 1).float() / 255
        return pixels, ImageMetadata(**{name: metadata[name] for name in ImageMetadata.__dataclass_fields__})

    def _metadata(self, case: Case) -> dict[str, Any]:
        images = {name: self.images[name] for name in case.subjects}
        return {"run": self.hash, "prompt": case.prompt, "seed": case.seed, "references": images}

    def _check(self, stored: Any, wanted: Any, path: str) -> None:
        changed = differences(stored, json.loads(json.dumps(wanted)))
        if changed:
            raise ValueError(f"{path} was made under other settings ({'; '.join(changed)}): {_GO_ON}")

    def part_file(self, number: int) -> Path:
        """File of the scores of some images, until all are there."""
        return self.folder / "scores" / f"part-{number:05d}.parquet"

    @property
    def scores_file(self) -> Path:
        """File of the scores of all images."""
        return self.folder / SCORES_NAME

    def merge_scores(self, part_keys: Sequence[str], key: str, scorer: Mapping[str, Any]) -> None:
        """Join the parts of some keys, in the order of their cases, and remove them."""
        parts = []
        for number, part_key in enumerate(part_keys):
            parts.append(read_table(self.part_file(number), part_key))
            if parts[-1] is None:
                raise ValueError(f"{self.part_file(number)}: missing or damaged; evaluate again")
        write_table(self.scores_file, pa.concat_tables(parts).sort_by("case"), key, scorer)
        shutil.rmtree(self.folder / "scores", ignore_errors=True)


def run_folder(output: Path, benchmark: str, method: str, settings: Mapping[str, Any]) -> Path:
    """Folder of a method's run under some settings; see :class:`RunStore`."""
    parts = [method, *(f"{key}_{value}" for key, value in settings.items())]
    return output / benchmark / "-".join(re.sub(r"[^\w.+]+", "_", part) for part in parts)


def _rest(values: Mapping[str, Any]) -> dict[str, Any]:
    """All but alpha."""
    return {name: value for name, value in values.items() if name != "alpha"}


def to_pil(pixels: Tensor) -> Image.Image:
    """Image from (3, H, W) in [0, 1]."""
    return Image.fromarray((pixels.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy())


def write_all(files: Mapping[Path, bytes]) -> None:
    """Write files one right after the other, so that an interruption leaves all or none."""
    for file, content in files.items():
        _write(file, content)


class _Run(BaseModel):
    """What a ``run.json`` must hold."""

    model_config = ConfigDict(extra="allow")

    method: str
    settings: dict[str, Any]
    config: dict[str, Any]


def read_run(folder: Path) -> dict[str, Any] | None:
    """Content of ``run.json``; ``None`` where it is missing or damaged."""
    try:
        return read_json_as(_Run, folder / RUN_NAME, "run").model_dump(exclude_unset=True)
    except (OSError, ValueError):
        return None


def write_table(file: Path, table: pa.Table, key: str, scorer: Mapping[str, Any]) -> None:
    """Write scores with :data:`COLUMNS`, and what they were made from: a key, and what scored them."""
    data = io.BytesIO()
    metadata = {_TEXT: key, _SCORER: json.dumps(scorer)}
    pq.write_table(table.replace_schema_metadata(metadata), data)
    _write(file, data.getvalue())


def read_table(file: Path, key: str | None = None) -> pa.Table | None:
    """Read scores; ``None`` where they are missing, damaged or made from something else."""
    try:
        table = pq.read_table(existing_file(file, "scores"))
    except (OSError, pa.ArrowException):
        return None
    written = table.schema.metadata or {}
    return table if key is None or written.get(_TEXT.encode()) == key.encode() else None


def read_scorer(file: Path) -> dict[str, Any] | None:
    """Read what made scores or distances: empty where the file has none, ``None`` where it is damaged."""
    try:
        if file.name == DISTANCES_NAME:
            return dict(read_json_as(dict[str, Any], file, "distances")["made_from"])
        return dict(
            json.loads(
                (pq.read_schema(existing_file(file, "scores")).metadata or {}).get(_SCORER.encode(), b"{}")
            )
        )
    except (OSError, ValueError, KeyError, TypeError, pa.ArrowException):
        return None


def images_key(run_hash: str, cases: Sequence[str]) -> str:
    """Identifies the images of a run: what determines them, and which there are."""
    return digest([run_hash, sorted(cases)])


def write_distances(folder: Path, images: str, made_from: Mapping[str, Any], distances: Distances) -> None:
    """Write a run's distances, its :func:`images_key` and what describes both sets of images."""
    content = {"images": images, "made_from": made_from, "distances": asdict(distances)}
    _write_json(folder / DISTANCES_NAME, content)


def read_distances(folder: Path, images: str, made_from: Mapping[str, Any] | None = None) -> Distances | None:
    """Read a run's distances; ``None`` where they are missing, damaged or made from something else."""
    try:
        content = read_json_as(dict[str, Any], folder / DISTANCES_NAME, "distances")
        fits = content["images"] == images and made_from in (None, content["made_from"])
        return Distances(**content["distances"]) if fits else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _write(file: Path, content: bytes) -> None:
    write_atomically(file, lambda stream: stream.write(content))


def _write_json(file: Path, content: Mapping[str, Any]) -> None:
    _write(file, (json.dumps(content, indent=2) + "\n").encode())


def describe_scorer(
    faces: Any,
    image_text: Any,
    reference_size: int | None,
    measures: Mapping[str, Any],
    scoring: Mapping[str, Any],
) -> dict[str, Any]:
    """Describe what scores images, by the configuration keys that choose it; plain values."""
    return {
        "metrics": {
            "faces": extractor_metadata(faces),
            "image_text": extractor_metadata(image_text),
            "reference_size": reference_size,
            "measures": {name: extractor_metadata(measure) for name, measure in measures.items()},
        },
        "scoring": {**scoring},
    }


def extractor_metadata(extractor: Any) -> dict[str, Any]:
    """What determines the scores of an extractor: its class, its plain settings and its weights."""
    plain = {k: v for k, v in vars(extractor).items() if isinstance(v, int | float | str) and k != "training"}
    weights = weights_digest(extractor) if isinstance(extractor, nn.Module) else None
    return {"class": type(extractor).__qualname__, **plain, "weights_digest": weights}


def scored_by(file: Path) -> str | None:
    """Digest of what made a run's ``scores.parquet`` or ``distances.json``; ``None`` where it is unknown."""
    scorer = read_scorer(file)
    return digest(scorer) if scorer else None


def check_others(output: Path, name: str, scorer: Mapping[str, Any], redone: Collection[Path]) -> None:
    """Refuse to write figures to ``output`` beside those of another scorer in files of some name.

    Folders in ``redone`` are left out: their figures are made anew.
    """
    for file in sorted(output.glob(f"*/*/{name}")):
        stored = None if file.parent in redone else read_scorer(file)
        if stored is not None and (changed := differences(stored, scorer)):
            raise ValueError(
                f"{file.parent} was scored under other settings ({'; '.join(changed)}), and a results.json "
                "holds figures of one scorer: give the same settings, or output=<other>, or all methods, "
                "alphas and labels of it at once, which scores the images that are there anew; to forget "
                f"these figures, remove {file}"
            )


def check_same(rows: Iterable[tuple[Path, ResultRow]]) -> None:
    """Refuse rows, each with the folder of its evaluation, of different scorers, with what differs."""
    scored: list[tuple[Path, str | None]] = []
    measured: list[tuple[Path, str | None]] = []
    for evaluation, row in rows:
        folder = run_folder(evaluation, row.benchmark, row.method, row.settings)
        scored.append((folder / SCORES_NAME, row.scored_by))
        if row.distances is not None:
            measured.append((folder / DISTANCES_NAME, row.distances.scored_by))
    for found in (scored, measured):
        for file, scorer in found[1:]:
            if scorer != found[0][1]:
                first, known = found[0][0], (read_scorer(found[0][0]), read_scorer(file))
                digests = found[0][1], scorer
                changed = differences(*known) if all(known) else differences(*digests, "scored_by")
                raise ValueError(
                    f"{first.parent} and {file.parent} were scored under different settings "
                    f"({'; '.join(changed)}), so their figures cannot be compared: evaluate what is to stand "
                    "in one table with the same metrics"
                )
