"""The whole preparation of a folder of photos."""

from __future__ import annotations

from pathlib import Path

import lightning as L
from lightning.pytorch.utilities import rank_zero_only

from fastcomposer.preparation.interfaces import Captioner, Matcher, PhraseFinder, Segmenter
from fastcomposer.preparation.photos import list_photos
from fastcomposer.preparation.preparation_page import REPORT
from fastcomposer.preparation.preparation_stage import Parts, PhotoLimits, PreparationStage
from fastcomposer.preparation.record_store import PreparedFolder


def prepare_photos(
    root: str | Path,
    source: str | Path | None,
    captioner: Captioner,
    segmenter: Segmenter,
    phrases: PhraseFinder,
    matcher: Matcher,
    trainer: L.Trainer,
    limits: PhotoLimits | None = None,
    captions: str | Path | None = None,
    batch_size: int = 8,
    quality: int = 95,
    restart: bool = False,
) -> int:
    """Make a data folder of photos: records, id lists, index, and a page of statistics.

    Every photo ends as a record, or in ``<root>/preparation/left_out.csv`` with the reason. An interrupted
    call goes on where it stopped, on any number of processes.

    Args:
        root: Data folder, made when missing.
        source: Folder of the photos.
        captioner: Says what is to be seen on photos that nobody has captioned.
        segmenter: Divides photos into segments.
        phrases: Finds the phrases that name subjects.
        matcher: Decides which phrase names which segment.
        trainer: Runs it; its precision is that of the networks.
        limits: What counts; ``None`` for the defaults.
        captions: File of captions (:func:`~fastcomposer.preparation.photos.list_photos`).
        batch_size: Photos that go through the networks together.
        quality: JPEG quality of the records, 1 to 100.
        restart: Whether to forget what an earlier preparation of ``root`` made.

    Returns:
        How many records this call made, on the first process.

    Raises:
        FileNotFoundError: If the source, the captions or weights are missing.
        ValueError: If a setting is out of range, or ``root`` was made under other settings.
    """
    if source is None:
        raise ValueError("source: name the folder of the photos, as in source=photos/")
    if not 1 <= quality <= 100:
        raise ValueError(f"data.prepare.quality={quality}: must lie between 1 and 100")
    if trainer.precision not in ("32-true", "bf16-mixed", "16-mixed"):
        raise ValueError(
            f"trainer.precision={trainer.precision}: preparation takes 32-true, bf16-mixed or 16-mixed"
        )
    limits = limits or PhotoLimits()
    files = list_photos(source, captions, leave_out=Path(root))
    parts = Parts(captioner, segmenter, phrases, matcher)
    counts = {name: getattr(limits, name) for name in ("min_side", "max_side", "min_area", "min_subjects")}
    decides = {**parts.settings(), **counts, "precision": trainer.precision}
    folder = PreparedFolder(root, decides, quality)
    stage = PreparationStage(parts, folder, files, limits, batch_size)
    if getattr(rank_zero_only, "rank", 0) == 0:  # before others are started or met
        folder.open(restart)
    trainer.predict(stage, return_predictions=False)
    if trainer.is_global_zero:
        left_out, page = len(files) - stage.records, folder.folder / REPORT
        print(f"{len(files)} photos: {stage.records} are records, {left_out} are not; see {page}")
    return stage.made
