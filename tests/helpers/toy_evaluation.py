"""A small evaluation to test with: random metric models beside a base, two benchmarks of three people."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import CLIPConfig, CLIPModel, CLIPTextConfig, CLIPVisionConfig

from fastcomposer.composer import FastComposer
from fastcomposer.evaluation.benchmark import Benchmark, Subject, Subset, load_benchmarks
from fastcomposer.miniworld.detector import HeadDetector
from fastcomposer.miniworld.embedder import IdentityEmbedder
from fastcomposer.miniworld.render import write_references
from fastcomposer.models.weights_io import save_trained_weights

PEOPLE = {"00_man": "man", "01_woman": "woman", "02_man": "man"}
PROMPTS = {"context": "a {} on the beach", "action": "a photo of a {} smiling"}
IMAGES = 2
SIZE = 32
ALL = Subset()
SAMPLER: dict[str, Any] = {
    "alpha": 0.5,
    "height": SIZE,
    "width": SIZE,
    "num_inference_steps": 4,
    "guidance_scale": 3.0,
}


def people(words: str) -> list[Subject]:
    """Subjects ``0m``, ``1w``, … of a word like ``mw``."""
    names = {"m": "man", "w": "woman"}
    return [Subject(f"{i}{c}", names[c], (Path(f"{i}.png"),)) for i, c in enumerate(words)]


@dataclass(frozen=True)
class Toy:
    """Files of the evaluation."""

    base: Path  # with metric models
    checkpoint: Path
    definitions: Path  # of the benchmarks: 12 cases of one person, 12 of two
    references: Path

    def benchmarks(self, single: Subset | None = ALL, multi: Subset | None = ALL) -> list[Benchmark]:
        """Single and multi subject, or parts of them."""
        return load_benchmarks(self.definitions, self.references, single=single, multi=multi)

    def arguments(self, *more: str) -> list[str]:
        """Arguments of the command."""
        everything = ("prompts_per_category", "num_subjects", "images_per_prompt")
        return [
            f"model.base={self.base}",
            f"model.resolution={SIZE}",
            "model.reference_size=56",
            f"checkpoint={self.checkpoint}",
            f"benchmark.folder={self.definitions}",
            f"benchmark.images={self.references}",
            *(f"benchmark.{kind}.{key}=null" for kind in ("single", "multi") for key in everything),
            "benchmark.multi.num_pairs=null",
            f"+sampler.height={SIZE}",
            f"+sampler.width={SIZE}",
            "sampler.num_inference_steps=4",
            "alphas=[0.5,1.0]",
            *more,
        ]


def make_toy(base: Path, folder: Path) -> Toy:
    """Make the files for a base without metric models."""
    judged = judged_base(base, folder / "base")
    write_references(folder / "references", 64)
    return Toy(
        judged,
        write_checkpoint(judged, folder / "trained.safetensors"),
        write_definitions(folder / "definitions"),
        folder / "references",
    )


def judged_base(base: Path, folder: Path) -> Path:
    """Copy a base and put untrained metric models into it."""
    shutil.copytree(base, folder)
    torch.manual_seed(0)
    detector = HeadDetector((8, 8, 8, 8), 8)
    assert detector.maps.bias is not None
    torch.nn.init.constant_(detector.maps.bias[:1], 2.0)  # heads everywhere
    detector.save_pretrained(folder / "detector")
    IdentityEmbedder(16, 16, channels=(8, 8, 8)).save_pretrained(folder / "embedder")
    tiny = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = CLIPTextConfig(**tiny, vocab_size=500, bos_token_id=498, eos_token_id=499)
    vision = CLIPVisionConfig(**tiny, image_size=SIZE, patch_size=16)
    config = CLIPConfig(text_config=text.to_dict(), vision_config=vision.to_dict(), projection_dim=8)
    CLIPModel(config).save_pretrained(folder / "clip")
    return folder


def write_checkpoint(base: Path, file: Path, seed: int = 1) -> Path:
    """Write weights as a training would."""
    torch.manual_seed(seed)
    model = FastComposer.from_pretrained(base)
    model.set_trainable(vision_layers=1)
    return save_trained_weights(model, file)


def write_definitions(folder: Path) -> Path:
    """Write both benchmarks."""
    folder.mkdir(parents=True)
    for name, subjects in (
        ("single_subject", "{subject}"),
        ("multi_subject", "{subject_1} and a {subject_2}"),
    ):
        content: dict[str, Any] = {"name": name, "images_per_prompt": IMAGES}
        content["prompts"] = {category: [prompt.format(subjects)] for category, prompt in PROMPTS.items()}
        if name == "single_subject":
            content["subjects"] = PEOPLE
        (folder / f"{name}.json").write_text(json.dumps(content))
    return folder


def predict(stage: Any) -> Any:
    """Run a stage and return it."""
    import lightning as L

    from fastcomposer.training.personalization.personalize import QUIET

    L.Trainer(accelerator="cpu", **QUIET).predict(stage, return_predictions=False)
    return stage


def run_evaluate(folder: str, arguments: Sequence[str]) -> None:
    """Call the command in a process of its own."""
    from fastcomposer.cli import evaluate

    os.chdir(folder)
    torch.set_num_threads(1)
    sys.argv = ["evaluate", *arguments]
    sys.stdout = sys.stderr = open(os.devnull, "w")  # noqa: SIM115, PTH123
    evaluate.main()
