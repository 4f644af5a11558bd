"""Scores of generated images, as a prediction of Lightning under any of its strategies."""

from __future__ import annotations

import io
import json
import warnings
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from PIL import Image, ImageOps
from torch import Tensor, nn
from torchmetrics import MetricCollection
from torchvision.transforms.functional import to_tensor
from torchvision.transforms.v2 import functional as tvf

from fastcomposer.data.pixels import open_image
from fastcomposer.data.transforms import pad_to_square
from fastcomposer.evaluation.benchmark import Benchmark, Case, Subject
from fastcomposer.evaluation.generation import PlannedRun
from fastcomposer.evaluation.methods import blocks
from fastcomposer.evaluation.store import (
    COLUMNS,
    SCORES_NAME,
    check_others,
    describe_scorer,
    read_table,
    to_pil,
    write_table,
)
from fastcomposer.metrics.faces import FaceExtractor, Faces
from fastcomposer.metrics.identity import identity_score
from fastcomposer.metrics.image_scores import (
    COLUMN,
    CopyPaste,
    IdentityPreservation,
    ImageMeasure,
    PromptConsistency,
    copy_paste,
    prompt_consistency,
)
from fastcomposer.metrics.image_text import ImageTextExtractor
from fastcomposer.metrics.multi_subject import (
    SUBJECT_METRICS,
    copy_paste_ratio,
    gallery_threshold,
    subject_score,
)
from fastcomposer.prompt import strip_markers
from fastcomposer.training.samples import SampleScore
from fastcomposer.utils.matching import optimal_pairs
from fastcomposer.utils.ranges import Cosine, Count, Quality, Side
from fastcomposer.utils.settings import digest, file_digest
from fastcomposer.utils.stages import ResumableStage

_BACKING = 238 / 255  # behind transparent references


@dataclass(frozen=True)
class KnownSubject:
    """Faces of a subject: ``reference`` (d,), and ``others`` (M ≥ 0, d) of images that no method gets."""

    reference: Tensor
    others: Tensor


@dataclass(frozen=True)
class ScoringTask:
    """Cases of a run that are scored together: always the same, so that scores do not depend on processes."""

    run: int
    number: int
    cases: tuple[Case, ...]


class ScoringStage(ResumableStage):
    """Scores runs: identity under both protocols, prompt consistency, copy-paste, who is in the image.

    Args:
        faces: Finds and embeds faces.
        image_text: Embeds images and texts.
        runs: Runs whose images are there when scoring begins.
        reference_size: See :func:`read_reference`.
        batch_size: Images scored together, at least 1.
        measures: Further scores of each image, by name.
        threshold: Similarity from which two faces are one person's, for coverage and duplicates; by default
            that of equal error among the images of a benchmark's subjects, if any of them has several.
        jpeg_quality: Of the JPEG that each image is encoded as and read back from before it is scored, as in
            the published run; ``None`` scores the image itself.
    """

    title = "scores"

    def __init__(
        self,
        faces: FaceExtractor,
        image_text: ImageTextExtractor,
        runs: Sequence[PlannedRun] = (),
        reference_size: Side | None = None,
        batch_size: Count = 64,
        measures: Mapping[str, ImageMeasure] | None = None,
        threshold: Cosine | None = None,
        jpeg_quality: Quality | None = None,
    ) -> None:
        super().__init__()
        if batch_size < 1:
            raise ValueError(f"scoring.batch_size={batch_size}: at least 1")
        self.faces, self.image_text, self.runs = faces, image_text, list(runs)
        self.reference_size, self.batch_size, self.jpeg_quality = reference_size, batch_size, jpeg_quality
        self.measures = dict(measures or {})
        for measure in self.measures.values():
            if isinstance(measure, nn.Module):  # moves to the device with this stage
                self.add_module(f"measure_{len(self._modules)}", measure)
        # What this call scores, averaged over all processes; results.json is made of what is kept.
        self.means = MetricCollection(
            {
                "identity": IdentityPreservation(),
                "identity_published": IdentityPreservation(),
                "prompt_consistency": PromptConsistency(),
                "copy_paste": CopyPaste(),
                **{name: metric() for name, metric in SUBJECT_METRICS.items()},
            },
            compute_groups=False,
        )
        self.threshold = threshold
        self._known: dict[str, dict[str, KnownSubject]] = {}
        self._thresholds: dict[str, float | None] = {}
        settings = {"jpeg_quality": jpeg_quality, "threshold": threshold}
        self.scorer = describe_scorer(faces, image_text, reference_size, self.measures, settings)

    def check_others(self, output: Path, redone: Collection[Path]) -> None:
        """Refuse to score beside scores from others; see the function of this name."""
        check_others(output, SCORES_NAME, self.scorer, redone)

    def missing_tasks(self) -> list[ScoringTask]:
        """Parts without scores, of runs without scores."""
        return [
            part
            for number, run in enumerate(self.runs)
            if read_table(run.store.scores_file, self._run_key(run)) is None
            for part in self._parts(number)
            if read_table(run.store.part_file(part.number), self._part_key(part)) is None
        ]

    def images_of(self, task: ScoringTask) -> int:
        """Number of its cases."""
        return len(task.cases)

    def predict_step(self, batch: int, batch_idx: int) -> int:
        """Score a part and write it; returns how many photos."""
        part = self.tasks[batch]
        run = self.runs[part.run]
        photos = [run.store.read_image(case) for case in part.cases]
        images = torch.stack([jpeg_pixels(pixels, self.jpeg_quality) for pixels, _ in photos]).to(self.device)
        found = self.faces(images)
        texts = self.image_text.embed_texts([case.text for case in part.cases])
        consistency = prompt_consistency(self.image_text.embed_images(images).cpu(), texts.cpu())
        measured = {
            COLUMN + name: _checked(name, measure(images, [case.text for case in part.cases]), len(images))
            for name, measure in self.measures.items()
        }
        rows = []
        for i, (case, (_, metadata)) in enumerate(zip(part.cases, photos, strict=True)):
            subjects = [self._subject(run, name) for name in case.subjects]
            rows.append(
                {
                    "case": case.id,
                    "benchmark": run.store.benchmark,
                    "method": run.store.method,
                    "settings": json.dumps(dict(run.store.settings), sort_keys=True),
                    "category": case.category,
                    "subjects": list(case.subjects),
                    "seed": case.seed,
                    **face_scores(found[i], subjects, self.faces.blank(), self._threshold(run)),
                    "prompt_consistency": float(consistency[i]),
                    "seconds": metadata.seconds,
                    "unet_calls": metadata.unet_calls,
                    "image": str(run.store.image_file(case).relative_to(run.store.folder)),
                    "peak_memory_bytes": metadata.peak_memory_bytes,
                    **{column: scores[i] for column, scores in measured.items()},
                }
            )
        for name, metric in self.means.items():
            metric.update([row[name] for row in rows])
        columns = pa.schema([*COLUMNS, *(pa.field(column, pa.float64()) for column in measured)])
        table = pa.Table.from_pylist(rows, columns)
        write_table(run.store.part_file(part.number), table, self._part_key(part), self.scorer)
        return len(part.cases)

    def on_predict_end(self) -> None:
        """Log the means of what was scored as Lightning's callback metrics ``scores/<name>``, and finish."""
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*before the ``update`` method")  # a process without a task
            means = {f"scores/{name}": value for name, value in self.means.compute().items()}
        self.trainer.callback_metrics.update(means)
        super().on_predict_end()

    def finish(self) -> None:
        """Join the parts of every run."""
        for number, run in enumerate(self.runs):
            key = self._run_key(run)
            if read_table(run.store.scores_file, key) is None:
                parts = [self._part_key(part) for part in self._parts(number)]
                run.store.merge_scores(parts, key, self.scorer)

    def _parts(self, number: int) -> list[ScoringTask]:
        cases = sorted(self.runs[number].benchmark.cases, key=lambda case: case.id)
        return [ScoringTask(number, i, tuple(some)) for i, some in enumerate(blocks(cases, self.batch_size))]

    def _run_key(self, run: PlannedRun) -> str:
        """What the scores of a run are made from."""
        images = {
            subject.id: [file_digest(file) for file in (subject.reference, *subject.other_images)]
            for subject in run.benchmark.subjects
        }
        cases = sorted(case.id for case in run.benchmark.cases)
        made_from = [run.store.hash, self.scorer, images, cases, COLUMNS.names]
        targets = {case.id: file_digest(case.target) for case in run.benchmark.cases if case.target}
        return digest([*made_from, targets] if targets else made_from)

    def _part_key(self, part: ScoringTask) -> str:
        return digest([self._run_key(self.runs[part.run]), [case.id for case in part.cases]])

    def _subject(self, run: PlannedRun, name: str) -> KnownSubject:
        benchmark = run.store.benchmark
        if benchmark not in self._known:
            settings = self.faces, self.reference_size, self.device
            self._known[benchmark] = embed_subjects(run.benchmark, *settings)
        return self._known[benchmark][name]

    def _threshold(self, run: PlannedRun) -> float | None:
        """Similarity from which two faces are one person's, by the images of the benchmark's subjects."""
        if self.threshold is not None:
            return self.threshold
        name = run.store.benchmark
        if name not in self._thresholds:
            known = [self._subject(run, subject.id) for subject in run.benchmark.subjects]
            galleries = [torch.cat([subject.reference[None], subject.others]) for subject in known]
            self._thresholds[name] = gallery_threshold(galleries)
        return self._thresholds[name]


def jpeg_pixels(pixels: Tensor, quality: int | None) -> Tensor:
    """Encode an image (3, H, W) in [0, 1] as JPEG and read it back; ``None`` leaves it as it is."""
    if quality is None:
        return pixels
    data = io.BytesIO()
    to_pil(pixels).save(data, "JPEG", quality=quality)
    with Image.open(data) as image:
        return to_tensor(image)


def _checked(name: str, scores: Any, count: int) -> list[float]:
    """Scores of a measure as finite numbers, one for each image."""
    values = torch.as_tensor(scores).double().cpu()
    if values.shape != (count,) or not values.isfinite().all():
        found = f"of shape {tuple(values.shape)}" if values.shape != (count,) else "with NaN or infinity"
        raise ValueError(
            f"metrics.measures.{name}: gives a tensor {found}, not {count} numbers, one an image"
        )
    return values.tolist()


def face_scores(
    faces: Faces, subjects: Sequence[KnownSubject], blank: Tensor, threshold: float | None = None
) -> dict[str, Any]:
    """Score the faces of one image against its subjects; ``blank`` (d,) is the embedding of a blank crop.

    ``copy_paste`` and ``copy_paste_ratio`` are means over subjects whose face is there and of whom there are
    other images, ``None`` without any; ``threshold`` is that of
    :func:`~fastcomposer.metrics.multi_subject.subject_score`.
    """
    references = torch.stack([subject.reference for subject in subjects])
    corrected = identity_score(faces, references, "corrected")
    published = identity_score(faces, references, "published", blank)
    embeddings = faces.embeddings.cpu()
    there = [
        (embeddings[face], subject)
        for subject, face in zip(subjects, corrected.faces, strict=True)
        if face is not None and len(subject.others)
    ]
    copied = [copy_paste(face, subject.reference, subject.others) for face, subject in there]
    ratios = [
        copy_paste_ratio(face, subject.reference, other)
        for face, subject in there
        for other in subject.others
    ]
    return {
        "identity": corrected.value,
        "identity_published": published.value,
        "detected": corrected.detected,
        "copy_paste": sum(copied) / len(copied) if copied else None,
        **asdict(subject_score(faces, references, threshold)),
        "copy_paste_ratio": sum(ratios) / len(ratios) if ratios else None,
    }


def embed_subjects(
    benchmark: Benchmark, faces: FaceExtractor, size: int | None, device: torch.device | str = "cpu"
) -> dict[str, KnownSubject]:
    """Embed a benchmark's subjects by id: see :func:`embed_references`, and their faces in targets of cases.

    A target's faces are assigned to its subjects with the greatest sum of similarities to their references.
    """
    known = {subject.id: embed_references(subject, faces, size, device) for subject in benchmark.subjects}
    for target, names in dict.fromkeys((case.target, case.subjects) for case in benchmark.cases):
        if target is None:
            continue
        (found,) = faces(read_reference(target, size)[None].to(device))
        embeddings = found.embeddings.cpu()
        references = torch.stack([known[name].reference for name in names])
        for face, number in optimal_pairs((embeddings.double() @ references.double().T).numpy()):
            subject = known[names[number]]
            others = torch.cat([subject.others, embeddings[face, None]])
            known[names[number]] = replace(subject, others=others)
    return known


def embed_references(
    subject: Subject, faces: FaceExtractor, size: int | None, device: torch.device | str = "cpu"
) -> KnownSubject:
    """Embed the largest faces of a subject's reference, which has one, and of images that no method gets."""
    largest = [
        found.largest_first().embeddings[:1].cpu()
        for file in (subject.reference, *subject.other_images)
        for found in faces(read_reference(file, size)[None].to(device))
    ]
    if not len(largest[0]):
        raise ValueError(
            f"{subject.reference}: no face is found in the reference of subject {subject.id}, so nothing can "
            "be compared with it; give another image"
        )
    return KnownSubject(largest[0][0], torch.cat(largest[1:] or [largest[0][:0]]))


def read_reference(file: Path, size: int | None) -> Tensor:
    """Read an image as metrics see it, (3, H, W) float in [0, 1]: upright, light grey where transparent.

    ``size`` is the side in pixels of the square it is padded and resized to; ``None`` leaves it as it is. An
    image that cannot be read is a ValueError that names the file.
    """
    rgba = ImageOps.exif_transpose(open_image(file)).convert("RGBA")
    pixels = torch.from_numpy(np.array(rgba)).permute(2, 0, 1).float() / 255
    image = pixels[:3] * pixels[3:] + _BACKING * (1 - pixels[3:])
    if size is None:
        return image
    return tvf.resize(pad_to_square(image), [size, size], antialias=True).clamp(0, 1)


class SampleScores:
    """Scores images as :class:`ScoringStage` does, subject by subject."""

    def __init__(
        self, faces: FaceExtractor, image_text: ImageTextExtractor, reference_size: int | None = None
    ) -> None:
        self.faces, self.image_text, self.reference_size = faces, image_text, reference_size
        self._known: dict[str, Tensor] = {}

    @torch.no_grad()
    def __call__(
        self, photos: Sequence[Image.Image], prompts: Sequence[str], references: Sequence[Sequence[str]]
    ) -> list[SampleScore]:
        """See :class:`~fastcomposer.training.samples.SampleScorer`."""
        images = torch.stack([to_tensor(image.convert("RGB")) for image in photos])
        texts = self.image_text.embed_texts([strip_markers(prompt) for prompt in prompts])
        consistency = prompt_consistency(self.image_text.embed_images(images), texts)
        scores = []
        for found, names, value in zip(self.faces(images), references, consistency, strict=True):
            known = [self._face(name) for name in names]
            seen = [k for k, face in enumerate(known) if len(face)]
            matched: dict[int, float] = {}
            if seen:
                score = identity_score(found, torch.cat([known[k] for k in seen]))
                matched = dict(zip(seen, score.matched, strict=True))
            identity = tuple(matched.get(k) for k in range(len(known)))
            scores.append(SampleScore(identity, float(value)))
        return scores

    def _face(self, file: str) -> Tensor:
        """Embedding (1, d) of the largest face of a reference; (0, d) without any."""
        if file not in self._known:
            (found,) = self.faces(read_reference(Path(file), self.reference_size)[None])
            self._known[file] = found.largest_first().embeddings[:1].cpu()
        return self._known[file]
