"""Images drawn while training, and what they are worth."""

from __future__ import annotations

import csv
import io
import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, ClassVar, Protocol

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import TensorBoardLogger, WandbLogger
from PIL import Image
from torch import nn
from torchvision.transforms.functional import to_tensor

from fastcomposer.metrics.image_scores import IdentityPreservation, PromptConsistency
from fastcomposer.pipeline.schedulers import split_scheduler, use_scheduler
from fastcomposer.prompt import MARKER
from fastcomposer.training.wandb_workspace import SAMPLE_IMAGES, SAMPLE_ROWS
from fastcomposer.utils.files import write_atomically
from fastcomposer.utils.image_grid import attention_overlay, grid
from fastcomposer.utils.markdown import markdown_table


@dataclass(frozen=True)
class SampleScore:
    """What one image is worth.

    Attributes:
        identity: Similarity of each subject with the face taken for it, 0 where no face is left; ``None``
            where no face is found in its reference.
        prompt_consistency: Cosine of image and prompt.
    """

    identity: tuple[float | None, ...]
    prompt_consistency: float


class SampleScorer(Protocol):
    """Scores images."""

    def __call__(
        self, images: Sequence[Image.Image], prompts: Sequence[str], references: Sequence[Sequence[str]]
    ) -> list[SampleScore]:
        """Score images.

        Args:
            images: Any number.
            prompts: The prompt of each, with markers.
            references: For each image, the file of each subject's reference.
        """


@dataclass(frozen=True)
class SampleRow:
    """One subject of one image.

    Attributes:
        reference: The subject's reference.
        prompt: With markers.
        image: The image.
        attention: The image where the subject's word attended, dark elsewhere.
        identity: See :class:`SampleScore`; ``None`` without scores.
        prompt_consistency: See there.
    """

    reference: Image.Image
    prompt: str
    image: Image.Image
    attention: Image.Image
    identity: float | None
    prompt_consistency: float | None

    def cells(self) -> list[Any]:
        """The row in the order of :data:`COLUMNS`."""
        return [getattr(self, name) for name in COLUMNS]


COLUMNS = tuple(field.name for field in fields(SampleRow))
"""Columns of the table of samples."""
_SCORES = ("identity", "prompt_consistency")


class SampleImages(Callback):
    """Draw the same prompts and references from the same noise at every validation.

    Each row of the image shows the references, the sample, and where each subject's word attended. Loggers
    get the mean identity of all subjects and the mean prompt consistency of all images, the image, and a
    table with a row for each subject; beside the images, the table without images is ``step_<n>.csv``.

    Args:
        folder: Where ``step_<n>.png`` goes.
        prompts: Prompts with markers.
        references: For each prompt, the files of its references.
        seed: Seed of the noise.
        sampler: Arguments of the pipeline call, ``alpha`` and ``num_inference_steps`` among them, and the
            scheduler; see :func:`~fastcomposer.pipeline.schedulers.split_scheduler`.
        scores: Scores the images; ``None`` for no scores.

    Raises:
        FileNotFoundError: If a reference is missing.
        ValueError: If a prompt has not as many references as markers, or none.
    """

    LOGGED: ClassVar[tuple[str, ...]] = ("samples/identity", "samples/prompt_consistency")

    def __init__(
        self,
        folder: str | Path,
        prompts: Sequence[str],
        references: Sequence[Sequence[str]],
        seed: int,
        sampler: Mapping[str, Any],
        scores: SampleScorer | None = None,
    ) -> None:
        if len(prompts) != len(references):
            raise ValueError(
                f"callbacks.samples: {len(prompts)} prompts, but references for {len(references)}"
            )
        for prompt, row in zip(prompts, references, strict=True):
            if not row or prompt.count(MARKER) != len(row):
                raise ValueError(
                    f"callbacks.samples: {len(row)} references for {prompt!r}: one for each {MARKER}, and "
                    "at least one"
                )
        missing = [name for row in references for name in row if not Path(name).exists()]
        if missing:
            raise FileNotFoundError(f"callbacks.samples.references: no such file: {', '.join(missing)}")
        self.folder, self.seed, self.scores = Path(folder), seed, scores
        self.means = nn.ModuleDict(
            {"identity": IdentityPreservation(), "prompt_consistency": PromptConsistency()}
        )
        self.scheduler, self.sampler = split_scheduler(sampler)
        self.prompts, self.references = list(prompts), [list(row) for row in references]

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Refuse to draw with weights that are divided among processes.

        Raises:
            ValueError: If they are.
        """
        if pl_module.device_mesh is not None:
            raise ValueError(
                "callbacks.samples draws on one device: with trainer=fsdp leave it out (~callbacks.samples)"
            )

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Draw, save and log; on the first process only."""
        if trainer.sanity_checking:
            return
        if trainer.is_global_zero:
            groups = self._draw(pl_module)
            rows = [row for group in groups for row in group]
            image = grid([list(_tiles(group)) for group in groups])
            self.folder.mkdir(parents=True, exist_ok=True)
            file = self.folder / f"step_{trainer.global_step:06d}.png"
            image.save(file)
            _write_scores(file.with_suffix(".csv"), rows)
            self.means["identity"].update(row.identity for row in rows)
            self.means["prompt_consistency"].update(group[0].prompt_consistency for group in groups)
        trainer.strategy.barrier("samples")
        means = self._means(pl_module.device) if self.scores is not None else {}
        trainer.callback_metrics.update({name: torch.tensor(mean) for name, mean in means.items()})
        if trainer.is_global_zero:
            _log(trainer, image, rows, means)

    def _means(self, device: torch.device) -> dict[str, float]:
        """Means of the scores over all processes, by name: without those that nothing has."""
        self.means.to(device)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*before the ``update`` method")  # the first process samples
            found = {name: metric.compute().item() for name, metric in self.means.items()}
        for metric in self.means.values():
            metric.reset()
        return {f"samples/{name}": mean for name, mean in found.items() if not math.isnan(mean)}

    def _draw(self, module: Any) -> list[list[SampleRow]]:
        """Draw; returns the rows of each image."""
        # Images are of other shapes than batches, too few to compile anything for them.
        with module.averaged_weights(), torch.compiler.set_stance("force_eager"):
            pipeline = module.model.to_pipeline(safety_checker=False)
            pipeline.set_progress_bar_config(disable=True)
            use_scheduler(pipeline, self.scheduler)
            output = pipeline(
                self.prompts,
                references=self.references,
                generator=[torch.Generator().manual_seed(self.seed + i) for i in range(len(self.prompts))],
                return_attention=1,
                **self.sampler,
            )
        scores: Sequence[SampleScore | None] = [None] * len(self.prompts)
        if self.scores is not None:
            scores = self.scores(output.images, self.prompts, self.references)
        groups = []
        for i, (image, score) in enumerate(zip(output.images, scores, strict=True)):
            found = [
                SampleRow(
                    Image.open(name),
                    self.prompts[i],
                    image,
                    attention_overlay(image, output.attention_maps[i, 0, k]),
                    score.identity[k] if score else None,
                    score.prompt_consistency if score else None,
                )
                for k, name in enumerate(self.references[i])
            ]
            groups.append(found)
        return groups


def _tiles(rows: Sequence[SampleRow]) -> Iterator[Image.Image]:
    """What the image shows of one sample."""
    yield from (row.reference for row in rows)
    yield rows[0].image
    yield from (row.attention for row in rows)


def _write_scores(file: Path, rows: Sequence[SampleRow]) -> None:
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(("reference", "prompt", *_SCORES))
    for row in rows:
        name = str(getattr(row.reference, "filename", ""))
        writer.writerow((name, row.prompt, row.identity, row.prompt_consistency))
    write_atomically(file, lambda stream: stream.write(text.getvalue().encode()))


def _log(trainer: L.Trainer, image: Image.Image, rows: Sequence[SampleRow], means: dict[str, float]) -> None:
    step = trainer.global_step
    for logger in trainer.loggers:
        if means:
            logger.log_metrics(means, step)
        if isinstance(logger, WandbLogger):
            import wandb

            cells = [
                [wandb.Image(cell) if isinstance(cell, Image.Image) else cell for cell in row.cells()]
                for row in rows
            ]
            logger.log_image(SAMPLE_IMAGES, [image], step=step)
            logger.log_table(SAMPLE_ROWS, columns=list(COLUMNS), data=cells, step=step)
        elif isinstance(logger, TensorBoardLogger):
            logger.experiment.add_image(SAMPLE_IMAGES, to_tensor(image), step)
            logger.experiment.add_text(SAMPLE_ROWS, _markdown(rows), step)


def _markdown(rows: Sequence[SampleRow]) -> str:
    """The scores as TensorBoard shows a table; the images are beside it."""
    lines = [(row.prompt, _number(row.identity), _number(row.prompt_consistency)) for row in rows]
    return markdown_table(("prompt", "identity", "prompt consistency"), lines)


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"
