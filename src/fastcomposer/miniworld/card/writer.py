"""The card of the embedded base, from its measurements and the lengths of its trainings."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from jinja2 import Environment, PackageLoader, StrictUndefined
from omegaconf import OmegaConf

from fastcomposer.miniworld.card.measures import CHECKPOINTS, Row
from fastcomposer.models.base_files import WEIGHTS_NAME
from fastcomposer.models.weights_io import TrainingLength, read_training_length
from fastcomposer.utils.json_files import read_json_as

METHODS = (
    "vae",
    "clip",
    "text_to_image",
    "vae_decoder",
    "detector",
    "embedder",
    "transformer",
    *CHECKPOINTS,
)
"""Trainings in their order; that of ``clip`` makes both encoders and the tokenizer."""
RECORD = "training.json"
"""File in the base's folder with the length of each training."""


@dataclass(frozen=True)
class Training:
    """How a part was trained; ``None`` where unknown."""

    method: str  # of its command
    steps: int  # of the optimizer
    minutes: float | None = None
    seed: int | None = None
    machine: str | None = None  # accelerator, or processor and its cores


def read_lengths(base: Path, runs: str | Path) -> list[Training]:
    """Collect the length of each training.

    ``training.json`` in the base has those of an earlier call; the runs ``mini_base_<method>`` of this base
    are newer. The weights of checkpoints, which were trained several times, contain their total length.
    """
    file = base / RECORD
    entries = read_json_as(list[Training], file, "record of trainings") if file.exists() else []
    known = {entry.method: entry for entry in entries}
    for method in METHODS:
        run = Path(runs) / f"mini_base_{method}"
        if (run / "checkpoints" / "last.ckpt").exists():
            config = run / ".hydra" / "config.yaml"
            settings = OmegaConf.load(config) if config.exists() else OmegaConf.create()
            if Path(OmegaConf.select(settings, "model.base", default=base)) == base:
                known[method] = _length_of(run, method, OmegaConf.select(settings, "seed"))
    for method, folder in CHECKPOINTS.items():
        weights = base / folder / WEIGHTS_NAME
        if weights.exists():
            length = read_training_length(weights)
            entry = known.get(method, Training(method, 0))
            known[method] = replace(entry, steps=length.steps, minutes=round(length.minutes, 1))
    return [known[method] for method in METHODS if method in known]


def write_lengths(base: Path, lengths: Sequence[Training]) -> None:
    """Keep the lengths beside the weights, so that the card can be written again without the runs."""
    (base / RECORD).write_text(json.dumps([asdict(length) for length in lengths], indent=2) + "\n")


def _length_of(run: Path, method: str, seed: int | None) -> Training:
    state = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True, mmap=True, map_location="cpu")
    length = TrainingLength(**state["length"])
    return Training(method, length.steps, round(length.minutes, 1), seed, describe_machine())


def base_card(
    rows: Sequence[Row],
    missing: Sequence[str],
    lengths: Sequence[Training],
    scenes: int,
    samples: Sequence[str] = (),
) -> str:
    """Write the card as Markdown; ``samples`` are names of images in a folder of that name beside it."""
    measures = ("parameters", "size, bytes")
    sizes = {(row.part, row.measure): row.value for row in rows if row.measure in measures}
    costs = [row for row in rows if row.measure.endswith(", MFLOP")]
    quality = [row for row in rows if row not in costs and row.measure not in measures]
    parts = [
        [part, _integer(sizes.get((part, "parameters"))), _integer(sizes[part, "size, bytes"])]
        for part in dict.fromkeys(part for part, _ in sizes)
    ]
    total = sum(value for (_, measure), value in sizes.items() if measure == "size, bytes")
    environment = Environment(
        loader=PackageLoader("fastcomposer.miniworld.card", "."),
        undefined=StrictUndefined,
        keep_trailing_newline=True,
    )
    return environment.get_template("card.md.j2").render(
        parts=[*parts, ["all", "", _integer(total)]],
        missing=missing,
        costs=[[row.part, row.measure.removesuffix(", MFLOP"), f"{row.value:,.1f}"] for row in costs],
        lengths=[
            [n.method, f"{n.steps:,}", _number(n.minutes), _number(n.seed), n.machine or ""] for n in lengths
        ],
        samples=samples,
        scenes=scenes,
        quality=[quality_cells(row) for row in quality],
    )


def describe_machine() -> str:
    """Name the accelerator, or the processor and the number of its cores."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return f"{os.cpu_count()} CPU cores ({platform.machine()})"


def quality_cells(row: Row) -> list[str]:
    """Cells of a figure: part, measure, value, target and whether it holds."""
    held = {None: "", True: "yes", False: "no"}[row.holds]
    value = _integer(row.value) if row.value >= 1000 else f"{row.value:.4g}"
    return [row.part, row.measure, value, _number(row.at_least), held]


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:g}"


def _integer(value: float | None) -> str:
    return "" if value is None else f"{round(value):,}"
