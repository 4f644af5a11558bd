"""Data folders of rendered scenes, and images of the people in them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from fastcomposer.data.records import Record, Segment, record_path, write_ids, write_record
from fastcomposer.evaluation.benchmark import NUM_TUNING_IMAGES
from fastcomposer.miniworld.avatars import Appearance, Identity
from fastcomposer.miniworld.scenes import (
    AvatarScenes,
    held_out_identities,
    is_held_out,
    reference_image,
    render_portrait,
)
from fastcomposer.utils.files import remove_leftovers, write_atomically
from fastcomposer.utils.progress import LongWork
from fastcomposer.utils.ranges import Quality, Side, Whole, Workers
from fastcomposer.utils.workers import in_processes

TEST_OFFSET = 90_000_000
"""Number of the first held-out record; training records count from 0."""
NUM_OTHER_IMAGES = 3
"""Further images of a person that no method gets, for the copy-paste metric."""
_CHUNK = 32


def prepare_avatars(
    root: str | Path,
    scenes: AvatarScenes,
    num_train: Whole,
    num_test: Whole,
    num_workers: Workers = 2,
    reference_size: Side = 128,
    quality: Quality = 95,
) -> int:
    """Render the mini world into the published on-disk format.

    Scenes that exist are kept, so an interrupted call resumes; each record depends on the seed and its own
    number alone, so the files are the same either way.

    Args:
        root: Data folder, created if it does not exist.
        scenes: The world.
        num_train: Scenes of training identities.
        num_test: Scenes of the held-out identities.
        num_workers: Processes; 0 renders in this one.
        reference_size: Side in pixels of the portraits of held-out people in ``<root>/references``.
        quality: JPEG quality.

    Returns:
        Number of scenes that this call rendered.

    Raises:
        ValueError: If the folder holds another world.
        FaultError: If one of the processes dies.
    """
    root = Path(root)
    root.mkdir(parents=True, exist_ok=True)
    _claim(root, scenes, quality)
    remove_leftovers(root)
    jobs = [("train", i) for i in range(num_train)] + [("test", i) for i in range(num_test)]
    todo = [job for job in jobs if not record_path(root, record_name(*job), ".json").exists()]
    chunks = [(root, scenes, quality, todo[i : i + _CHUNK]) for i in range(0, len(todo), _CHUNK)]
    with LongWork(f"scenes in {root}", len(jobs), done=len(jobs) - len(todo)) as work:
        for done in in_processes(_render_chunk, chunks, num_workers):
            work.advance(done)
    for split, count in (("train", num_train), ("test", num_test)):
        if count:
            write_ids(root, split, [record_name(split, i) for i in range(count)])
    write_ids(root, "all", [record_name(*job) for job in jobs])
    write_references(root / "references", reference_size)
    return len(todo)


def record_name(split: str, index: int) -> str:
    """Id of a scene's record."""
    return f"{index + (TEST_OFFSET if split == 'test' else 0):08d}"


def write_references(folder: Path, size: int) -> list[Path]:
    """Write images of each held-out person as PNG with transparent background.

    ``00_man.png`` is the reference, neutral and in a shirt; the folder ``00_man`` beside it holds ``1.png``
    to ``7.png``, the same person in other clothes and expressions: methods that fine-tune get the first, and
    no method gets the last :data:`NUM_OTHER_IMAGES`. Returns the paths of the references.
    """
    paths = []
    for number, identity in enumerate(held_out_identities()):
        paths.append(folder / f"{reference_name(number, identity)}.png")
        others = paths[-1].with_suffix("")
        others.mkdir(parents=True, exist_ok=True)
        Image.fromarray(reference_image(identity, size, seed=number)).save(paths[-1])
        for k, look in enumerate(other_looks(number), start=1):
            Image.fromarray(render_portrait(identity, look, size)).save(others / f"{k}.png")
    return paths


def reference_name(number: int, identity: Identity) -> str:
    """Name of a held-out person's reference, which is also the subject's id in the benchmarks."""
    return f"{number:02d}_{identity.word}"


def other_looks(number: int) -> tuple[Appearance, ...]:
    """Appearances of person ``number`` in the images beside the reference.

    No two share clothing or expression, and none has the reference's, a pair of clothing and colour that is
    kept from training, or sunglasses, which hide the face.
    """
    rng = np.random.default_rng([number, 5])
    looks: list[Appearance] = []
    while len(looks) < NUM_TUNING_IMAGES - 1 + NUM_OTHER_IMAGES:
        look = Appearance.sample(rng)
        seen = any(
            look.clothes == other.clothes or look.expression == other.expression
            for other in (Appearance(), *looks)
        )
        if not seen and look.accessory != "SUNGLASSES" and not is_held_out(look):
            looks.append(look)
    return tuple(looks)


def _claim(root: Path, scenes: AvatarScenes, quality: int) -> None:
    """Refuse to mix two worlds in one folder."""
    settings = (
        f"size={scenes.size} seed={scenes.seed} num_identities={scenes.num_identities} "
        f"subject_odds={scenes.subject_odds} style_odds={scenes.style_odds} "
        f"context_odds={scenes.context_odds} quality={quality}\n"
    )
    path = root / "world.txt"
    if not path.exists():
        write_atomically(path, lambda file: file.write(settings.encode()))
    elif path.read_text() != settings:
        raise ValueError(
            f"{root} holds another world ({path.read_text().strip()}), not {settings.strip()}; "
            "give data.root another folder or remove that one"
        )


def _render_chunk(chunk: tuple[Path, AvatarScenes, int, list[tuple[str, int]]]) -> int:
    root, scenes, quality, jobs = chunk
    for split, index in jobs:
        scene = scenes.scene(split, index)
        segments = tuple(
            Segment(i + 1, person.bbox, person.end, "person", person.identity.key)
            for i, person in enumerate(scene.people)
        )
        extra = {"rich_caption": scene.rich_caption, "heads": [list(person.head) for person in scene.people]}
        record = Record(record_name(split, index), scene.caption, segments, extra)
        write_record(root, record, scene.image, scene.segment_map, quality=quality)
    return len(jobs)
