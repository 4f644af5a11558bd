"""Preparation of a folder of photos, as a prediction of Lightning."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import lightning as L
from lightning.pytorch.utilities import rank_zero_only
from torch import nn

from fastcomposer.data.records import Record, RecordError, Segment
from fastcomposer.preparation.face_boxes import Detect, match_faces, mtcnn_faces
from fastcomposer.preparation.interfaces import (
    Captioner,
    Match,
    Matcher,
    NounPhrase,
    Photo,
    PhraseFinder,
    Segmentation,
    SegmentedPhoto,
    Segmenter,
)
from fastcomposer.preparation.photos import (
    MOST_CHARACTERS,
    PhotoFile,
    UnusablePhotoError,
    list_photos,
    open_photo,
)
from fastcomposer.preparation.preparation_page import REPORT, write_report
from fastcomposer.preparation.record_store import LeftOut, Outcome, PreparedFolder
from fastcomposer.prompt import MARKER
from fastcomposer.utils.ranges import Count, Fraction, Quality, Side, Whole
from fastcomposer.utils.stages import ResumableStage

_READERS = 4
_PRECISIONS = ("32-true", "bf16-mixed", "16-mixed")


class Parts(NamedTuple):
    """The four components, in the order of their work."""

    captioner: Captioner
    segmenter: Segmenter
    phrases: PhraseFinder
    matcher: Matcher


@dataclass(frozen=True)
class PhotoLimits:
    """Which photos and segments are used.

    Attributes:
        min_side: Photos with a smaller shorter side, in pixels, are left out.
        max_side: Larger shorter sides are reduced to this; ``None`` for no limit.
        min_area: Segments that cover a smaller fraction of the image are not used.
        min_subjects: Photos with fewer subjects are left out; 0 keeps those without any.
        test_share: Fraction of the records to hold out.
        samples: Number of photos on the page.

    Raises:
        ValueError: If one is out of range, with its key.
    """

    min_side: Side = 256
    max_side: Side | None = 1024
    min_area: Fraction = 0.01
    min_subjects: Whole = 1
    test_share: Fraction = 0.01
    samples: Whole = 50

    def __post_init__(self) -> None:
        if self.min_side < 1 or (self.max_side is not None and self.max_side < self.min_side):
            raise ValueError(
                f"data.prepare.limits: max_side={self.max_side} must be null or at least "
                f"min_side={self.min_side}, and that at least 1"
            )
        for name in ("min_area", "test_share"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"data.prepare.limits.{name}={getattr(self, name)}: must be in [0, 1)")
        for name in ("min_subjects", "samples"):
            if getattr(self, name) < 0:
                raise ValueError(f"data.prepare.limits.{name}={getattr(self, name)}: must not be negative")


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
    batch_size: Count = 8,
    quality: Quality = 95,
    faces: bool = False,
    restart: bool = False,
) -> int:
    """Make a data folder of photos: records, id lists, index, and a page of statistics.

    Every photo becomes a record, or is listed in ``<root>/preparation/left_out.csv`` with the reason. Called
    again, it processes what is missing, on any number of processes.

    Args:
        root: Data folder, created if missing.
        source: Folder of the photos.
        captioner: Captions the photos that have no caption yet.
        segmenter: Divides photos into segments.
        phrases: Finds the phrases that name subjects.
        matcher: Matches phrases with segments.
        trainer: Runs the preparation; its precision is that of the networks.
        limits: Which photos and segments are used; ``None`` for the defaults.
        captions: File of captions (:func:`~fastcomposer.preparation.photos.list_photos`).
        batch_size: Photos that go through the networks together.
        quality: JPEG quality of the records, 1 to 100.
        faces: Whether each segment gets the box of the face in it, which MTCNN finds; for the identity loss.
        restart: Delete the records that an earlier preparation of ``root`` made.

    Returns:
        Number of records that this call made, on the first process.

    Raises:
        FileNotFoundError: If the source, the captions or weights are missing.
        ValueError: If a setting is out of range, or ``root`` was prepared with other settings.
    """
    if source is None:
        raise ValueError("source: name the folder of the photos, as in source=photos/")
    if not 1 <= quality <= 100:
        raise ValueError(f"data.prepare.quality={quality}: must lie between 1 and 100")
    if batch_size < 1:
        raise ValueError(f"data.prepare.batch_size={batch_size}: must be at least 1")
    if trainer.precision not in _PRECISIONS:
        raise ValueError(f"trainer.precision={trainer.precision}: must be one of {', '.join(_PRECISIONS)}")
    limits = limits or PhotoLimits()
    files = list_photos(source, captions, leave_out=Path(root))
    parts = Parts(captioner, segmenter, phrases, matcher)
    settings: dict[str, Any] = {name: dict(part.settings) for name, part in parts._asdict().items()}
    settings |= {name: getattr(limits, name) for name in ("min_side", "max_side", "min_area", "min_subjects")}
    settings |= {"faces": True} if faces else {}
    folder = PreparedFolder(root, {**settings, "precision": trainer.precision}, quality)
    stage = PreparationStage(parts, folder, files, limits, batch_size, faces)
    if getattr(rank_zero_only, "rank", 0) == 0:  # before other processes start or wait
        folder.open(restart)
    trainer.predict(stage, return_predictions=False)
    if trainer.is_global_zero:
        left_out, page = len(files) - stage.records, folder.folder / REPORT
        print(f"{len(files)} photos: {stage.records} are records, {left_out} are left out; see {page}")
    return stage.made


@dataclass
class _Work:
    """A photo on its way to a record."""

    file: PhotoFile
    photo: Photo
    caption: str = ""


class PreparationStage(ResumableStage):
    """Makes records of photos; see :func:`prepare_photos`."""

    title = "photos"

    def __init__(
        self,
        parts: Parts,
        folder: PreparedFolder,
        files: Sequence[PhotoFile],
        limits: PhotoLimits,
        batch_size: int,
        faces: bool = False,
    ) -> None:
        super().__init__()
        self.parts, self.folder, self.files, self.limits = parts, folder, list(files), limits
        self.batch_size, self.faces = batch_size, faces
        self._detect: Detect | None = None
        self.records, self.made = 0, 0
        self._missing: list[int] = []

    def setup(self, stage: str) -> None:
        """Look up which photos are missing, and load weights if there are any."""
        self.files = self.trainer.strategy.broadcast(self.files)  # tasks are indices into this list
        if self.trainer.is_global_zero:
            outcomes = enumerate(map(self.folder.outcome, self.files))
            self._missing = [number for number, outcome in outcomes if outcome is None]
        if self.trainer.strategy.broadcast(len(self._missing)):
            for part in self.parts:
                part.load()
            self._detect = mtcnn_faces() if self.faces else None
            networks = (part.network for part in self.parts)
            self.networks = nn.ModuleList(network for network in networks if isinstance(network, nn.Module))

    def missing_tasks(self) -> list[tuple[int, ...]]:
        """Batches of photos without an outcome."""
        size = self.batch_size
        return [tuple(self._missing[i : i + size]) for i in range(0, len(self._missing), size)]

    def images_of(self, task: tuple[int, ...]) -> int:
        """Number of photos of a batch."""
        return len(task)

    def predict_step(self, batch: int, batch_idx: int) -> int:
        """Process a batch of photos; returns their number."""
        files = [self.files[number] for number in self.tasks[batch]]
        with ThreadPoolExecutor(_READERS) as pool:
            opened = list(pool.map(self._open, files))
        works = self._captioned([work for work in opened if work is not None])
        segmented = self._segmented(works)
        works = [work for work, _ in segmented]
        phrases = self.parts.phrases.find([work.caption for work in works]) if works else []
        candidates = [
            self._candidates(work.photo, segmentation, named)
            for (work, segmentation), named in zip(segmented, phrases, strict=True)
        ]
        matched = self.parts.matcher.match([photo for photo, _ in candidates])
        for work, (photo, left_out), matches in zip(works, candidates, matched, strict=True):
            self._write(work, photo, left_out, matches)
        return len(files)

    def finish(self) -> None:
        """Write id lists, index, the list of photos that are left out, and the page."""
        outcomes = [self.folder.outcome(file) for file in self.files]
        unfinished = [f.name for f, outcome in zip(self.files, outcomes, strict=True) if outcome is None]
        if unfinished:
            raise ValueError(
                f"{len(unfinished)} photos changed during the preparation ({unfinished[0]}): prepare again"
            )
        ends = [outcome for outcome in outcomes if outcome is not None]
        self.records = self.folder.write_lists(self.files, ends, self.limits.test_share)
        self.made = sum(ends[number].reason is None for number in self._missing)
        write_report(self.folder, self.files, ends, self.limits.samples)

    def _open(self, file: PhotoFile) -> _Work | None:
        try:
            if file.twin is not None:
                detail = f"{file.twin} would have the same record"
                raise UnusablePhotoError("same name as another photo", detail)
            image = open_photo(file, self.limits.min_side, self.limits.max_side)
        except UnusablePhotoError as error:
            self._leave_out(file, error)
            return None
        return _Work(file, Photo(file.photo_id, file.path, image))

    def _captioned(self, works: Sequence[_Work]) -> list[_Work]:
        """Caption photos: from the captions file or a ``.txt`` file, else by the captioner."""
        asked = [work.photo for work in works if work.file.caption is None]
        made = iter(self.parts.captioner.caption(asked) if asked else [])
        kept = []
        for work in works:
            work.caption = (next(made) if work.file.caption is None else work.file.caption) or ""
            if not work.caption:
                self._leave_out(work.file, UnusablePhotoError("no caption"), work)
            elif len(work.caption) > MOST_CHARACTERS:
                detail = f"more than {MOST_CHARACTERS} characters"
                self._leave_out(work.file, UnusablePhotoError("caption too long", detail), work)
            elif MARKER in work.caption:
                self._leave_out(work.file, UnusablePhotoError("marker in the caption", work.caption), work)
            else:
                kept.append(work)
        return kept

    def _segmented(self, works: Sequence[_Work]) -> list[tuple[_Work, Segmentation]]:
        """Segment photos; a batch with an unusable photo is repeated one by one."""
        if not works:
            return []
        try:
            return list(zip(works, self.parts.segmenter.segment([work.photo for work in works]), strict=True))
        except UnusablePhotoError as error:
            if len(works) == 1:
                self._leave_out(works[0].file, error, works[0])
                return []
        return [entry for work in works for entry in self._segmented([work])]

    def _candidates(
        self, photo: Photo, segmentation: Segmentation, phrases: tuple[NounPhrase, ...]
    ) -> tuple[SegmentedPhoto, list[LeftOut]]:
        """Select the segments that a phrase may name."""
        labels = {phrase.label for phrase in phrases}
        regions, left_out = [], []
        for region in segmentation.regions:
            if region.label not in labels:
                left_out.append(LeftOut("segment", region.label, "not named in the caption"))
            elif segmentation.areas[region.id] < self.limits.min_area:
                left_out.append(LeftOut("segment", region.label, "too small"))
            else:
                regions.append(region)
        return SegmentedPhoto(photo, segmentation, tuple(regions), phrases), left_out

    def _write(
        self, work: _Work, photo: SegmentedPhoto, left_out: list[LeftOut], matches: Sequence[Match]
    ) -> None:
        """Write a record, or list the photo as left out."""
        segmentation = photo.segmentation
        pairs = [(photo.phrases[m.phrase], photo.regions[m.region], m.similarity) for m in matches]
        phrases, regions = {match.phrase for match in matches}, {match.region for match in matches}
        free_regions = [region for i, region in enumerate(photo.regions) if i not in regions]
        free_phrases = [phrase for i, phrase in enumerate(photo.phrases) if i not in phrases]
        left_out += [LeftOut("segment", region.label, "no phrase") for region in free_regions]
        left_out += [LeftOut("phrase", phrase.text, "no segment") for phrase in free_phrases]
        outcome = Outcome(
            work.file.name,
            work.file.fingerprint,
            work.photo.image.size,
            words=tuple(phrase.word for phrase, _, _ in pairs),
            areas=tuple(round(segmentation.areas[region.id], 4) for _, region, _ in pairs),
            similarities=tuple(round(similarity, 4) for _, _, similarity in pairs),
            left_out=tuple(left_out),
        )
        ids = [region.id for _, region, _ in pairs]
        found = [] if self._detect is None else self._detect(work.photo.image)
        faces = match_faces(found, segmentation.segment_map, ids)
        segments = tuple(
            Segment(region.id, segmentation.box(region.id), phrase.end, region.label, face=face)
            for (phrase, region, _), face in zip(pairs, faces, strict=True)
        )
        try:
            if len(pairs) < self.limits.min_subjects:
                raise UnusablePhotoError(_reason(photo, len(pairs)), work.caption)
            record = Record(work.file.photo_id, work.caption, segments)
            self.folder.write_subjects(work.file, record, work.photo.image, segmentation.segment_map, outcome)
        except (UnusablePhotoError, RecordError) as error:
            if isinstance(error, RecordError):
                error = UnusablePhotoError("no valid record", str(error))
            self.folder.write_left_out(work.file, replace(outcome, reason=error.reason, detail=error.detail))

    def _leave_out(self, file: PhotoFile, error: UnusablePhotoError, work: _Work | None = None) -> None:
        size = (0, 0) if work is None else work.photo.image.size
        outcome = Outcome(file.name, file.fingerprint, size, error.reason, error.detail)
        self.folder.write_left_out(file, outcome)


def _reason(photo: SegmentedPhoto, subjects: int) -> str:
    """Why a photo has too few subjects."""
    if not photo.phrases:
        return "no subject named in the caption"
    if not photo.regions:
        return "no segment of a subject"
    return "too few subjects" if subjects else "phrases and segments do not match"
