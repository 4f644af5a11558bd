"""The card of the embedded base, made from its measurements and from what its trainings left behind."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from omegaconf import OmegaConf

from fastcomposer.miniworld.card.base_parts import BaseReport
from fastcomposer.miniworld.card.quality import Row
from fastcomposer.models.weights_io import WEIGHTS_NAME, TrainingLength, read_training_length

METHODS = (
    "vae",
    "clip",
    "text_to_image",
    "vae_decoder",
    "detector",
    "embedder",
    "fastcomposer",
    "without_localization",
)
"""Trainings of the parts, in their order; that of ``clip`` makes both encoders and the tokenizer.

The last two are those of the checkpoints: ``experiment=mini`` in runs of these names.
"""
_CHECKPOINTS = {"fastcomposer": ".", "without_localization": "without_localization"}  # where in the base
RECORD = "training.json"
"""File in the base's folder that keeps how long each part was trained."""


@dataclass(frozen=True)
class Training:
    """How a part was trained.

    Attributes:
        method: Name of the training, the ``method`` of its command.
        steps: Optimizer steps.
        minutes: Time spent in training.
        seed: Seed of the run; ``None`` where unknown.
        machine: What it ran on.
    """

    method: str
    steps: int
    minutes: float | None = None
    seed: int | None = None
    machine: str | None = None


def read_lengths(base: str | Path, runs: str | Path) -> list[Training]:
    """Collect how long each part was trained.

    Args:
        base: Folder of the base, whose ``training.json`` holds what an earlier call collected.
        runs: Folder of the runs ``mini_base_<method>``; a run that is there is newer than the file. Of the
            checkpoints, which were trained several times, the weights themselves know the whole length.
    """
    file = Path(base) / RECORD
    entries = json.loads(file.read_text()) if file.exists() else []
    known = {entry["method"]: Training(**entry) for entry in entries}
    for method in METHODS:
        run = Path(runs) / f"mini_base_{method}"
        if (run / "checkpoints" / "last.ckpt").exists():
            known[method] = _length_of(run, method)
    for method, folder in _CHECKPOINTS.items():
        weights = Path(base) / folder / WEIGHTS_NAME
        if weights.exists():
            length = read_training_length(weights)
            entry = known.get(method, Training(method, 0))
            known[method] = replace(entry, steps=length.steps, minutes=round(length.minutes, 1))
    return [known[method] for method in METHODS if method in known]


def write_lengths(base: str | Path, lengths: list[Training]) -> None:
    """Keep the lengths beside the weights, so that the card can be made again without the runs."""
    text = json.dumps([asdict(length) for length in lengths], indent=2)
    (Path(base) / RECORD).write_text(text + "\n")


def _length_of(run: Path, method: str) -> Training:
    state = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True, mmap=True, map_location="cpu")
    length = TrainingLength(**state["length"])
    config = run / ".hydra" / "config.yaml"
    seed = OmegaConf.select(OmegaConf.load(config), "seed") if config.exists() else None
    return Training(method, length.steps, round(length.minutes, 1), seed, describe_machine())


def base_card(report: BaseReport, lengths: list[Training], scenes: int, samples: Sequence[str] = ()) -> str:
    """Write the card as Markdown.

    Args:
        report: The figures.
        lengths: How long each part was trained.
        scenes: How many held-out scenes were measured on.
        samples: Names of images in the folder ``samples`` beside the card.
    """
    measures = ("parameters", "size, bytes")
    sizes = {(row.part, row.measure): row.value for row in report.rows if row.measure in measures}
    costs = [row for row in report.rows if row.measure.endswith(", MFLOP")]
    quality = [row for row in report.rows if row not in costs and row.measure not in measures]
    parts = list(dict.fromkeys(part for part, _ in sizes))
    weights = [[p, _whole(sizes.get((p, "parameters"))), _whole(sizes[p, "size, bytes"])] for p in parts]
    total = sum(sizes[p, "size, bytes"] for p in parts)
    sections = [
        _HEAD,
        "## Parts\n\n" + _table(("part", "parameters", "bytes"), [*weights, ["all", "", _whole(total)]]),
    ]
    if report.missing:
        sections.append("Not there yet: " + ", ".join(report.missing) + ".")
    if costs:
        cells = [[r.part, r.measure.removesuffix(", MFLOP"), f"{r.value:,.1f}"] for r in costs]
        sections.append("## Cost\n\n" + _table(("part", "of", "MFLOP"), cells))
    if lengths:
        trained = [
            [n.method, f"{n.steps:,}", _number(n.minutes), _number(n.seed), n.machine or ""] for n in lengths
        ]
        header = ("method", "steps", "minutes", "seed", "machine")
        sections.append("## Training\n\n" + _table(header, trained))
    if samples:
        sections.append(
            "## Samples\n\n" + "\n\n".join(f"![{_title(name)}](samples/{name})" for name in samples)
        )
    sections.append(
        f"## Quality\n\nOn {scenes} scenes of the 15 held-out people, whom no part has seen; `generated` and "
        "`fastcomposer` on images that the model drew, with captions and references of these people.\n\n"
        + _table(("part", "measure", "value", "at least", "holds"), [quality_cells(row) for row in quality])
    )
    return "\n\n".join([*sections, _FOOT])


def describe_machine() -> str:
    """Name the accelerator, or the processor and how many of its cores there are."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return f"{os.cpu_count()} CPU cores ({platform.machine()})"


def _title(sample: str) -> str:
    return sample.removesuffix(".png").removesuffix("_sheet").replace("_", " ")


def quality_cells(row: Row) -> list[str]:
    """Show a figure: part, measure, value, what is asked and whether it holds."""
    held = {None: "", True: "yes", False: "no"}[row.holds]
    value = _whole(row.value) if row.value >= 1000 else f"{row.value:.4g}"
    return [row.part, row.measure, value, _number(row.at_least), held]


def _table(header: tuple[str, ...], rows: list[list[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:g}"


def _whole(value: float | None) -> str:
    return "" if value is None else f"{round(value):,}"


_HEAD = """---
license: apache-2.0
library_name: diffusers
---

# The embedded base

A model of Stable Diffusion's shape in miniature, in the diffusers folder layout, with two metric models, a
detector of heads and an embedder of identities, and two FastComposer checkpoints: `fastcomposer.safetensors`,
and the same training without localization in `without_localization/`. All were trained by this project on
scenes rendered by its own generator: no photo, no image of a model and none of the 15 held-out people was
among them.

This file is generated: `make card`.

## Intended use

To try, test and teach: the whole method on a laptop, comparisons of settings with each other, and tests
of code that takes models of Stable Diffusion's layout. It draws cartoon avatars of 64 × 64 pixels.

It is not for images of real people. It has never seen a photo; a photo as reference gives an avatar of
roughly its colours. Detector and embedder find and compare drawn heads: nothing about anybody can be
concluded from what they say of photos, and they must not be used to recognise people.

## Limits

- It knows what its generator draws: one to three people, 12 places, 10 styles, and the clothing,
  accessories and expressions that captions name. Other words mean nothing to it.
- People are `man` or `woman`, with the skin, hair and beards that the avatars' library has. Many people
  look like none of them.
- Three people in one image are more often too few or too many than one or two; the table below says
  how often.
- Figures of this card compare settings of this model. They say nothing of models that were trained on
  photos.

## Consent and misuse

The images it was trained on show nobody, so nobody had to be asked. The same code with another base
draws real people: then everyone who is depicted, and everyone in the data, has to agree first
([data](../README.md#consent)). To image people without that, to deceive, to harass, or in sexual
scenes is misuse, whatever the licence allows.

Every image that a command draws says in its file that it was generated, by what and from which
settings (`fastcomposer.utils.provenance.read_facts` reads it back; IPTC's digital source type tells other
programs). Do not take that out to pass an image off as a photo. The base's safety checker runs where it
has one; this base has none."""

_FOOT = """Two heads that the embedder compares come from two scenes and differ in clothing and in expression.
It takes people who differ in nose or brows only for the same: in a scene these are a pixel or two.

## Licence

Apache-2.0. The scenes were drawn with `python-avatars` (MIT) after avatars by Pablo Stanley; they show
nobody.
"""
