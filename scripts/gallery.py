"""Generate pairs of people in several scenes: ``python scripts/gallery.py outputs/pairs.png``.

All pairs of a column start from the same noise; people and seeds are the first ones, not selected by results.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from PIL import Image
from rich.progress import track

from fastcomposer.evaluation.pipelines import load_trained
from fastcomposer.utils.image_grid import grid
from fastcomposer.utils.provenance import image_text

SCENES = {
    "… on\nthe beach": "{} and {} on the beach",
    "… with a mountain\nin the background": "{} and {} with a mountain in the background",
    "… laughing\nin the jungle": "{} and {} laughing in the jungle",
    "… with a city\nin the background": "{} and {} with a city in the background",
    "a watercolor\npainting of …": "a watercolor painting of {} and {}",
}
"""Prompt of each column by its title."""
SAMPLER = {"alpha": 0.8, "guidance_scale": 3.0}


def gallery(base: Path, checkpoint: Path, people: list[Path], seed: int, steps: int) -> Image.Image:
    """Generate each pair of people in all scenes.

    Args:
        base: Folder of the base model.
        checkpoint: Trained weights.
        people: Images, named ``<number>_<class word>.png``.
        seed: Seed of the first scene's noise; those of the others follow.
        steps: Sampling steps.
    """
    pipeline = load_trained(str(base), checkpoint=str(checkpoint))
    pipeline.set_progress_bar_config(disable=True)
    rows = []
    for pair in track([people[i : i + 2] for i in range(0, len(people), 2)], "Generating"):
        named = [f"a {file.stem.split('_')[1]} <|image|>" for file in pair]
        output = pipeline(
            [scene.format(*named) for scene in SCENES.values()],
            references=[pair] * len(SCENES),
            generator=[torch.Generator().manual_seed(seed + number) for number in range(len(SCENES))],
            num_inference_steps=steps,
            **SAMPLER,
        )
        rows.append([*map(Image.open, pair), *output.images])
    return grid(rows, side=128, titles=["one image\nof a person", "one image\nof another", *SCENES])


def main() -> None:
    """Generate the images, save them and print the path."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition(":")[0])
    parser.add_argument("output", type=Path)
    parser.add_argument("--base", type=Path, default=Path("data/mini"))
    parser.add_argument("--checkpoint", type=Path, default=Path("data/mini/fastcomposer_id"))
    parser.add_argument("--people", type=Path, default=Path("data/avatars/references"))
    parser.add_argument("--pairs", type=int, default=4)
    parser.add_argument("--seed", type=int, default=42)
    parser.add_argument("--steps", type=int, default=30)
    given = parser.parse_args()
    people = sorted(given.people.glob("*.png"))[: 2 * given.pairs]
    if len(people) < 2:
        parser.error(f"--people={given.people}: no images of two people; prepare data=avatars makes some")
    sheet = gallery(given.base, given.checkpoint, people, given.seed, given.steps)
    inputs = {"prompts": [*SCENES.values()], "people": [file.name for file in people], "seed": given.seed}
    settings = {**inputs, **SAMPLER, "num_inference_steps": given.steps}
    given.output.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(given.output, pnginfo=image_text(settings), optimize=True)
    print(given.output)


if __name__ == "__main__":
    main()
