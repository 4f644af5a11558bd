"""Generate images: ``fastcomposer generate checkpoint=… prompt=… references=[…]``."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from fastcomposer.cli.common import command, conclude, trained_pipeline

_IMAGES = (".png", ".jpg", ".jpeg", ".webp")


@command("generate", free_text=("prompt",))
def main(config: DictConfig) -> None:
    """Load, generate, and write PNG files that carry their settings."""
    from fastcomposer.prompt import check_references, strip_markers

    recorded_digests = None
    if config.settings is not None:
        from fastcomposer.cli.recalled import recall
        from fastcomposer.utils.texts import given_overrides

        recorded_digests = recall(config, given_overrides(HydraConfig.get()))
    if config.prompt is None:
        raise ValueError("prompt: describe the image, or name an earlier one in settings")
    references = reference_files(config.references)
    if references:
        check_references(config.prompt, len(references))

    import torch
    from PIL import Image

    from fastcomposer.models.compilation import check_backend, compile_blocks
    from fastcomposer.pipeline.schedulers import split_scheduler
    from fastcomposer.utils.image_grid import grid
    from fastcomposer.utils.provenance import image_text
    from fastcomposer.utils.settings import file_digest
    from fastcomposer.utils.texts import plain

    settings = plain(config)
    del settings["settings"]
    scheduler, options = split_scheduler(settings["sampler"])
    if config.compile is not None:
        check_backend(config.compile)
    pipeline = trained_pipeline(config, scheduler)
    if config.compile is not None:
        compile_blocks(pipeline.backbone, config.compile)
    seeds = range(config.seed, config.seed + config.num_images)
    images = pipeline(  # one prompt, so that it and its references are encoded once
        config.prompt,
        references=references or None,
        num_images_per_prompt=len(seeds),
        generator=[torch.Generator().manual_seed(seed) for seed in seeds],
        **{**options, "alpha": config.alpha},
    ).images
    digests = [[file_digest(Path(file)) for file in files] for files in references]
    if recorded_digests not in (None, digests):
        print(f"{config.settings} was generated from other reference images", file=sys.stderr)
    settings["reference_digests"] = digests
    output = Path(config.output)
    output.mkdir(parents=True, exist_ok=True)
    name = re.sub(r"\W+", "_", strip_markers(config.prompt)).strip("_")[:60]
    for seed, image in zip(seeds, images, strict=True):
        file = output / f"{name}_{seed}.png"
        image.save(file, pnginfo=image_text({**settings, "num_images": 1, "seed": seed}))
        print(file)
    sheet = output / f"{name}_sheet.png"
    shown = [Image.open(file) for files in references for file in files]
    grid([[*shown, *images]]).save(sheet, pnginfo=image_text(settings))
    print(sheet)
    conclude({"images, each with its settings inside": output})


def reference_files(references: str | Sequence[Any]) -> list[list[str]]:
    """Find the files of each subject's references: a file, a folder of images, or a list of files.

    Raises:
        FileNotFoundError: If a file does not exist, or a folder has no image.
    """
    subjects = [references] if isinstance(references, str) else references
    found = []
    for entry in subjects:
        files = [entry] if isinstance(entry, str) else [str(file) for file in entry]
        if isinstance(entry, str) and (folder := Path(entry)).is_dir():
            files = sorted(str(file) for file in folder.iterdir() if file.suffix.lower() in _IMAGES)
            if not files:
                raise FileNotFoundError(f"references: folder {folder} has no image ({', '.join(_IMAGES)})")
        found.append(files)
    missing = [file for files in found for file in files if not Path(file).is_file()]
    if missing:
        raise FileNotFoundError(f"references: no such file: {', '.join(missing)}")
    return found


if __name__ == "__main__":
    main()
