"""Preparation of photos as a prediction of Lightning, under any of its strategies."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

from fastcomposer.data.records import Record, RecordError, Segment
from fastcomposer.preparation.interfaces import (
    Captioner,
    Match,
    Matcher,
    Photo,
    PhraseFinder,
    Segmentation,
    SegmentedPhoto,
    Segmenter,
)
from fastcomposer.preparation.photos import PhotoFile, UnusablePhotoError, open_photo
from fastcomposer.preparation.preparation_page import write_report
from fastcomposer.preparation.record_store import LeftOut, Outcome, PreparedFolder
from fastcomposer.prompt import MARKER
from fastcomposer.utils.settings import differences, digest
from fastcomposer.utils.stages import ResumableStage

_READERS = 4


@dataclass(frozen=True)
class PhotoLimits:
    """What counts.

    Attributes:
        min_side: Photos whose shorter side has fewer pixels are left out.
        max_side: Shorter sides above are reduced to this; ``None`` for none.
        min_area: Segments that cover a smaller share of the image are no subjects.
        min_subjects: Photos with fewer subjects are left out; 0 keeps those without any.
        test_share: Share of the records to hold out.
        samples: Photos to show on the page.

    Raises:
        ValueError: If one is out of range, with its key.
    """

    min_side: int = 256
    max_side: int | None = 1024
    min_area: float = 0.01
    min_subjects: int = 1
    test_share: float = 0.01
    samples: int = 50

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


@dataclass(frozen=True)
class Parts:
    """The four parts of the preparation, in the order of their work."""

    captioner: Captioner
    segmenter: Segmenter
    phrases: PhraseFinder
    matcher: Matcher

    def settings(self) -> dict[str, Any]:
        """All that decides what comes out of them."""
        return {name: dict(getattr(self, name).settings) for name in self.__dataclass_fields__}


@dataclass
class _Work:
    """A photo on its way."""

    file: PhotoFile
    photo: Photo
    caption: str = ""
    segmentation: Segmentation | None = None
    scene: SegmentedPhoto | None = None
    left_out: tuple[LeftOut, ...] = ()


class PreparationStage(ResumableStage):
    """Makes records of photos.

    Args:
        parts: What captions, segments, finds phrases and matches.
        folder: Where to, opened.
        files: All photos.
        limits: What counts.
        batch_size: Photos that go through the networks together.
    """

    title = "photos"

    def __init__(
        self,
        parts: Parts,
        folder: PreparedFolder,
        files: Sequence[PhotoFile],
        limits: PhotoLimits,
        batch_size: int = 8,
    ) -> None:
        super().__init__()
        if batch_size < 1:
            raise ValueError(f"data.prepare.batch_size={batch_size}: must be at least 1")
        self.parts, self.folder, self.files, self.limits = parts, folder, list(files), limits
        self.batch_size = batch_size
        # Those that are modules become part of this one, which Lightning moves.
        self.captioner, self.segmenter, self.matcher = parts.captioner, parts.segmenter, parts.matcher
        self.records, self.made = 0, 0
        self._missing: list[int] = []

    def setup(self, stage: str) -> None:
        """Look up what is missing, and load weights if something is.

        Raises:
            ValueError: If this process would make other records than the first one.
        """
        photos = digest([[file.name, file.caption] for file in self.files])
        own = {**self.folder.decides, "photos": photos}
        changed = differences(self.trainer.strategy.broadcast(own), own)
        if changed:
            raise ValueError(f"process {self.global_rank} has other settings: {'; '.join(changed)}")
        if self.trainer.is_global_zero:
            places = range(len(self.files))
            self._missing = [place for place in places if self.folder.outcome(self.files[place]) is None]
        if self.trainer.strategy.broadcast(len(self._missing)):
            for part in (self.parts.captioner, self.parts.segmenter, self.parts.phrases, self.parts.matcher):
                part.load()

    def missing_tasks(self) -> list[tuple[int, ...]]:
        """Batches of photos that have come to no end yet."""
        size = self.batch_size
        return [tuple(self._missing[i : i + size]) for i in range(0, len(self._missing), size)]

    def images_of(self, task: tuple[int, ...]) -> int:
        """See :class:`ResumableStage`."""
        return len(task)

    def predict_step(self, batch: int, batch_idx: int) -> int:
        """Take a batch of photos all the way; returns how many."""
        files = [self.files[number] for number in self.tasks[batch]]
        with ThreadPoolExecutor(_READERS) as pool:
            opened = list(pool.map(self._open, files))
        works = [work for work in opened if work is not None]
        works = self._described(self._captioned(works))
        scenes = [work.scene for work in works if work.scene is not None]
        for work, matches in zip(works, self.parts.matcher.match(scenes), strict=True):
            self._write(work, matches)
        return len(files)

    def finish(self) -> None:
        """Write id lists, index, the list of what was left out, and the page."""
        outcomes = [self.folder.outcome(file) for file in self.files]
        unfinished = [f.name for f, outcome in zip(self.files, outcomes, strict=True) if outcome is None]
        if unfinished:
            raise ValueError(f"{len(unfinished)} photos changed meanwhile ({unfinished[0]}): prepare again")
        ends = [outcome for outcome in outcomes if outcome is not None]
        self.records = self.folder.write_lists(self.files, ends, self.limits.test_share)
        self.made = sum(ends[place].reason is None for place in self._missing)
        write_report(self.folder, self.files, ends, self.limits.samples)

    # --- the way of a photo --------------------------------------------------------------------------------

    def _open(self, file: PhotoFile) -> _Work | None:
        try:
            if file.twin is not None:
                raise UnusablePhotoError(
                    "same name as another photo", f"{file.twin} would have the same record"
                )
            image = open_photo(file, self.limits.min_side, self.limits.max_side)
        except UnusablePhotoError as error:
            self._leave_out(file, error)
            return None
        return _Work(file, Photo(file.photo_id, file.path, image))

    def _captioned(self, works: Sequence[_Work]) -> list[_Work]:
        """Give captions: those that somebody wrote, or the captioner's."""
        asked = [work for work in works if work.file.caption is None]
        made = self.parts.captioner.caption([work.photo for work in asked]) if asked else []
        by_id = {work.photo.photo_id: caption for work, caption in zip(asked, made, strict=True)}
        kept = []
        for work in works:
            caption = work.file.caption or by_id.get(work.photo.photo_id)
            if not caption:
                self._leave_out(work.file, UnusablePhotoError("no caption"), work)
            elif MARKER in caption:
                self._leave_out(work.file, UnusablePhotoError("marker in the caption", caption), work)
            else:
                work.caption = caption
                kept.append(work)
        return kept

    def _described(self, works: Sequence[_Work]) -> list[_Work]:
        """Find segments and phrases, and say which may go together."""
        found = zip(works, self._segmentations(works), strict=True)
        works = [replace(work, segmentation=entry) for work, entry in found if entry is not None]
        phrases = self.parts.phrases.find([work.caption for work in works]) if works else []
        for work, named in zip(works, phrases, strict=True):
            assert work.segmentation is not None
            labels = {phrase.label for phrase in named}
            regions, left_out = [], []
            for region in work.segmentation.regions:
                if region.label not in labels:
                    left_out.append(LeftOut("segment", region.label, "not named in the caption"))
                elif work.segmentation.areas[region.id] < self.limits.min_area:
                    left_out.append(LeftOut("segment", region.label, "too small"))
                else:
                    regions.append(region)
            work.scene = SegmentedPhoto(work.photo, work.segmentation, tuple(regions), named)
            work.left_out = tuple(left_out)
        return works

    def _segmentations(self, works: Sequence[_Work]) -> list[Segmentation | None]:
        """Segments of each photo; ``None`` where there can be none, which is then listed."""
        if not works:
            return []
        try:
            return list(self.parts.segmenter.segment([work.photo for work in works]))
        except UnusablePhotoError as error:
            if len(works) == 1:
                self._leave_out(works[0].file, error, works[0])
                return [None]
        return [entry for work in works for entry in self._segmentations([work])]

    def _write(self, work: _Work, matches: Sequence[Match]) -> None:
        """Bring a photo to its end: a record, or the list."""
        assert work.scene is not None
        scene, segmentation = work.scene, work.scene.segmentation
        pairs = [(scene.phrases[m.phrase], scene.regions[m.region], m.similarity) for m in matches]
        named = {match.phrase for match in matches}
        shown = {match.region for match in matches}
        left_out = (
            *work.left_out,
            *(
                LeftOut("segment", r.label, "no phrase")
                for i, r in enumerate(scene.regions)
                if i not in shown
            ),
            *(LeftOut("phrase", p.text, "no segment") for i, p in enumerate(scene.phrases) if i not in named),
        )
        outcome = Outcome(
            work.file.name,
            work.file.fingerprint,
            work.photo.image.size,
            words=tuple(phrase.word for phrase, _, _ in pairs),
            areas=tuple(round(segmentation.areas[region.id], 4) for _, region, _ in pairs),
            similarities=tuple(round(similarity, 4) for _, _, similarity in pairs),
            left_out=left_out,
        )
        segments = tuple(
            Segment(region.id, segmentation.box(region.id), phrase.end, region.label)
            for phrase, region, _ in pairs
        )
        try:
            if len(pairs) < self.limits.min_subjects:
                raise UnusablePhotoError(self._why_none(scene, len(pairs)), work.caption)
            record = Record(work.file.photo_id, work.caption, segments)
            self.folder.write_subjects(work.file, record, work.photo.image, segmentation.segment_map, outcome)
        except (UnusablePhotoError, RecordError) as error:
            if isinstance(error, RecordError):
                error = UnusablePhotoError("no valid record", str(error))
            listed = replace(outcome, reason=error.reason, detail=error.detail)
            self.folder.write_left_out(work.file, listed)

    def _why_none(self, scene: SegmentedPhoto, subjects: int) -> str:
        if not scene.phrases:
            return "no subject named in the caption"
        if not scene.regions:
            return "no segment of a subject"
        return "phrases and segments do not match" if not subjects else "too few subjects"

    def _leave_out(self, file: PhotoFile, error: UnusablePhotoError, work: _Work | None = None) -> None:
        size = (0, 0) if work is None else work.photo.image.size
        outcome = Outcome(file.name, file.fingerprint, size, error.reason, error.detail)
        self.folder.write_left_out(file, outcome)
