"""Images generated while training, and their scores."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, ClassVar

import lightning as L
import pandas as pd
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import TensorBoardLogger, WandbLogger
from PIL import Image
from torchmetrics import MetricCollection
from torchvision.transforms.functional import to_tensor

from fastcomposer.metrics.image_scores import IdentityPreservation, PromptConsistency
from fastcomposer.pipeline.schedulers import split_scheduler, use_scheduler
from fastcomposer.prompt import MARKER
from fastcomposer.training.wandb_workspace import SAMPLE_IMAGES, SAMPLE_ROWS
from fastcomposer.utils.files import write_atomically
from fastcomposer.utils.image_grid import attention_overlay, grid
from fastcomposer.utils.markdown import markdown_table
from fastcomposer.utils.ranges import Seed


@dataclass(frozen=True)
class SampleScore:
    """Scores of one image.

    Attributes:
        identity: Similarity of each subject with its face, 0 without a face; ``None`` where its reference
            has none.
        prompt_consistency: Cosine of image and prompt.
    """

    identity: tuple[float | None, ...]
    prompt_consistency: float


SampleScorer = Callable[
    [Sequence[Image.Image], Sequence[str], Sequence[Sequence[str]]], Sequence[SampleScore]
]
"""Scores images, from them, their prompts with markers, and the files of each one's references."""


@dataclass(frozen=True)
class SampleRow:
    """One subject of one image; the fields are the columns of the table of samples."""

    reference: Image.Image
    prompt: str  # with markers
    image: Image.Image
    attention: Image.Image  # the image where the subject's word attended, dark elsewhere
    identity: float | None
    prompt_consistency: float | None


class SampleImages(Callback):
    """Sample the same prompts and references from the same noise at every validation.

    Each row of the grid shows the references, the sample, and where each subject's word attended. Loggers
    get the mean identity of all subjects and the mean prompt consistency of all images, the grid, and a
    table with a row for each subject; beside the grid, the table without images is ``step_<n>.csv``.

    Args:
        folder: Where ``step_<n>.png`` goes.
        prompts: Prompts with markers.
        references: For each prompt, the files of its references.
        seed: Seed of the noise.
        sampler: Arguments of the pipeline call, and the scheduler; see :func:`split_scheduler`.
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
        seed: Seed,
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
        self.means = MetricCollection(
            {"identity": IdentityPreservation(), "prompt_consistency": PromptConsistency()},
            compute_groups=False,
        )
        self.scheduler, self.sampler = split_scheduler(sampler)
        self.prompts, self.references = list(prompts), [list(row) for row in references]

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Refuse to sample with weights that are sharded over processes."""
        if pl_module.device_mesh is not None:
            raise ValueError(
                "callbacks.samples runs on one device: with trainer=fsdp leave it out (~callbacks.samples)"
            )

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Sample, save and log; on the first process only."""
        if trainer.sanity_checking:
            return
        if trainer.is_global_zero:
            groups = self._sample(pl_module)
            rows = [row for group in groups for row in group]
            image = grid(
                [[*(row.reference for row in g), g[0].image, *(row.attention for row in g)] for g in groups]
            )
            self.folder.mkdir(parents=True, exist_ok=True)
            file = self.folder / f"step_{trainer.global_step:06d}.png"
            image.save(file)
            table = _table(rows)
            write_atomically(
                file.with_suffix(".csv"),
                lambda stream: table.to_csv(stream, index=False, lineterminator="\r\n"),
            )
            self.means["identity"].update(row.identity for row in rows)
            self.means["prompt_consistency"].update(group[0].prompt_consistency for group in groups)
        trainer.strategy.barrier("samples")
        means = self._means(pl_module.device) if self.scores is not None else {}
        trainer.callback_metrics.update({name: torch.tensor(mean) for name, mean in means.items()})
        if trainer.is_global_zero:
            _log(trainer, image, rows, means)

    def _means(self, device: torch.device) -> dict[str, float]:
        """Means of the scores over all processes, without those that nothing has."""
        self.means.to(device)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*before the ``update`` method")  # the first process samples
            found = self.means.compute()
        self.means.reset()
        return {f"samples/{name}": mean.item() for name, mean in found.items() if not mean.isnan()}

    def _sample(self, module: Any) -> list[list[SampleRow]]:
        """Sample the rows of each image."""
        # Images have other shapes than batches, and are too few to compile anything for them.
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
        return [
            [
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
            for i, (image, score) in enumerate(zip(output.images, scores, strict=True))
        ]


def _table(rows: Sequence[SampleRow]) -> pd.DataFrame:
    """The rows without images."""
    scores = ("prompt", "identity", "prompt_consistency")
    references = [str(getattr(row.reference, "filename", "")) for row in rows]
    return pd.DataFrame({"reference": references, **{k: [getattr(row, k) for row in rows] for k in scores}})


def _log(trainer: L.Trainer, image: Image.Image, rows: Sequence[SampleRow], means: dict[str, float]) -> None:
    step = trainer.global_step
    for logger in trainer.loggers:
        if means:
            logger.log_metrics(means, step)
        if isinstance(logger, WandbLogger):
            import wandb

            columns = [field.name for field in fields(SampleRow)]
            cells = [[getattr(row, name) for name in columns] for row in rows]
            shown = [[wandb.Image(x) if isinstance(x, Image.Image) else x for x in row] for row in cells]
            logger.log_image(SAMPLE_IMAGES, [image], step=step)
            logger.log_table(SAMPLE_ROWS, columns=columns, data=shown, step=step)
        elif isinstance(logger, TensorBoardLogger):
            lines = [(row.prompt, _score(row.identity), _score(row.prompt_consistency)) for row in rows]
            text = markdown_table(("prompt", "identity", "prompt consistency"), lines)
            logger.experiment.add_image(SAMPLE_IMAGES, to_tensor(image), step)
            logger.experiment.add_text(SAMPLE_ROWS, text, step)


def _score(value: float | None) -> str | None:
    return None if value is None else f"{value:.3f}"
