"""Learn a person, with measured costs, and only where that has not been done yet."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L

from fastcomposer.data.portraits import PortraitDataModule, ReferenceSet
from fastcomposer.models.loading import source_fingerprint
from fastcomposer.training.personalization.concept import CONCEPT_NAME, Concept, read_concepts, read_settings
from fastcomposer.training.personalization.fine_tuning import PersonalizationModule
from fastcomposer.utils.ranges import Seed
from fastcomposer.utils.settings import described, differences, file_digest

# What of the trainer changes the result or its measurements.
_TRAINER_SETTINGS = (
    *("accelerator", "devices", "num_nodes", "precision"),
    *("accumulate_grad_batches", "gradient_clip_val", "max_time"),
)
_ORIGIN = ("base", "architecture", "weights", "variant")  # the base's content counts, not its path
QUIET: dict[str, Any] = {
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
}


def personalize(
    method: Callable[..., PersonalizationModule],
    trainer: Callable[..., L.Trainer],
    images: Sequence[Path],
    word: str,
    folder: Path,
    name: str,
    seed: Seed,
) -> Concept:
    """Learn one person, or return them where they have been learned already.

    Args:
        method: Makes the training from a ``seed``: a ``functools.partial`` of one of the methods.
        trainer: Makes the trainer from arguments that silence it: a ``functools.partial``.
        images: Images of the person.
        word: Class word.
        folder: Folder of many people's concepts; this one goes to ``<folder>/<name>``.
        name: Of the person, in prompts and on disk.
        seed: Of all random numbers.

    Returns:
        The concept. Its seconds are those of the training with the encoding of all images, without
        imports, reading the base, and generating class images, which are shared by all people of a word.

    Raises:
        ValueError: If the folder holds this person learned under other settings, with what differs.
    """
    folder, person = Path(folder) / name, ReferenceSet(name, word, tuple(images))
    settings = _settings(method, trainer, person, seed)
    if (folder / CONCEPT_NAME).is_file():
        changed = differences(read_settings(folder), settings)
        if changed:
            raise ValueError(
                f"{folder} was learned under other settings ({'; '.join(changed)}); "
                "remove it, or give another folder"
            )
        return read_concepts(folder)[0]
    module = method(seed=seed)
    data = PortraitDataModule((person,), module.images, seed)
    trainer(max_steps=module.steps, **QUIET).fit(module, data)
    return module.export(folder, settings)[0]


def _settings(
    method: Callable[..., Any], trainer: Callable[..., Any], person: ReferenceSet, seed: int
) -> dict[str, Any]:
    for name, factory in (("method", method), ("trainer", trainer)):
        if not isinstance(factory, partial):
            raise ValueError(f"{name}: a functools.partial (_partial_: true) is wanted, not {factory!r}")
    stored = described(method)
    origin = {name: stored.pop(name) for name in _ORIGIN if name in stored}
    for name in ("seed", "image_encoder"):
        stored.pop(name, None)
    chosen = {key: value for key, value in trainer.keywords.items() if key in _TRAINER_SETTINGS}  # type: ignore[attr-defined]
    images = [file_digest(file) for file in person.images]
    return {
        "method": stored,
        "trainer": described(chosen, "trainer"),
        "people": {person.name: {"word": person.word, "images": images}},
        "base": source_fingerprint(**origin),
        "seed": seed,
    }
