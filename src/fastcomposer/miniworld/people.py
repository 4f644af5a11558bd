"""Rendered people of the training split, for searches of settings without the held-out people."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from fastcomposer.data.portraits import ReferenceSet
from fastcomposer.miniworld.render import other_looks
from fastcomposer.miniworld.scenes import AvatarScenes, reference_image, render_portrait
from fastcomposer.utils.files import write_atomically


def rendered_people(
    scenes: AvatarScenes, numbers: Sequence[int], folder: str | Path, count: int = 5, size: int = 128
) -> tuple[ReferenceSet, ...]:
    """Render people of the training split, in the same kinds of images as the held-out people.

    Args:
        scenes: The world.
        numbers: Positions in :attr:`AvatarScenes.train_identities`.
        folder: Folder of the images, with one folder for each person.
        count: Images of each person, at most 8.
        size: Side of an image in pixels.

    Raises:
        ValueError: If a number or the count is out of range.
    """
    sets = []
    for number in numbers:
        if not 0 <= number < len(scenes.train_identities):
            raise ValueError(
                f"benchmark.people.numbers={list(numbers)}: this world has "
                f"{len(scenes.train_identities)} people"
            )
        identity = scenes.train_identities[number]
        looks = other_looks(number)[: count - 1]
        if not 0 < count <= len(looks) + 1:
            raise ValueError(f"benchmark.people.count={count}: between 1 and {len(looks) + 1} images")
        images = [reference_image(identity, size, seed=number)]
        images += [render_portrait(identity, look, size) for look in looks]
        name = f"train_{number:04d}"
        files = [Path(folder) / name / f"{k}.png" for k in range(count)]
        files[0].parent.mkdir(parents=True, exist_ok=True)
        for file, image in zip(files, images, strict=True):
            _save(image, file)
        sets.append(ReferenceSet(name, identity.word, tuple(files)))
    return tuple(sets)


def _save(image: np.ndarray, file: Path) -> None:
    # The jobs of a search may all do so at once.
    write_atomically(file, lambda stream: Image.fromarray(image).save(stream, format="png"))
