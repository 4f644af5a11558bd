"""Draw pictures: ``python -m fastcomposer.cli.generate checkpoint=… prompt=… references=[…]``."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from fastcomposer.cli.common import command
from fastcomposer.prompt import strip_markers


@command("generate", free_text="prompt")
def main(config: DictConfig) -> None:
    """Load, draw, and write PNG files that carry their settings."""
    missing = [name for name in config.references if not Path(name).is_file()]
    if missing:
        raise FileNotFoundError(f"references: no such file: {', '.join(missing)}")

    import torch
    from PIL import Image

    from fastcomposer.evaluation.pipelines import load_trained
    from fastcomposer.evaluation.store import picture_text
    from fastcomposer.pictures import grid

    model = config.model
    pipeline: Any = load_trained(
        model.base, model.image_encoder, model.max_subjects, config.checkpoint, safety_checker=True
    )
    pipeline.to("cuda" if torch.cuda.is_available() else "cpu")
    seeds = range(config.seed, config.seed + config.num_images)
    sampler: Any = {**config.sampler, "alpha": config.alpha}
    references = list(config.references)
    images = pipeline(  # one prompt, so that it and its references are encoded once
        config.prompt,
        references=references or None,
        num_images_per_prompt=len(seeds),
        generator=[torch.Generator().manual_seed(seed) for seed in seeds],
        **sampler,
    ).images
    settings: Any = OmegaConf.to_container(config, resolve=True)
    output = Path(config.output)
    output.mkdir(parents=True, exist_ok=True)
    name = re.sub(r"\W+", "_", strip_markers(config.prompt)).strip("_")[:60]
    for seed, image in zip(seeds, images, strict=True):
        file = output / f"{name}_{seed}.png"
        image.save(file, pnginfo=picture_text({**settings, "seed": seed}))
        print(file)
    sheet = output / f"{name}_sheet.png"
    grid([[*map(Image.open, references), *images]]).save(sheet, pnginfo=picture_text(settings))
    print(sheet)


if __name__ == "__main__":
    main()
