"""Pipelines under evaluation: where they come from, and which of their parts determine pixels."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from fastcomposer.composer import FastComposer
from fastcomposer.models.loading import Weights
from fastcomposer.pipeline.kinds import open_pipeline
from fastcomposer.utils.ranges import Count
from fastcomposer.utils.settings import weights_digest

if TYPE_CHECKING:
    from fastcomposer.pipeline.kinds import AnyPipeline

_FOR_SUBJECTS = ("image_encoder", "fusion")


def load_base(
    base: str,
    image_encoder: str | None = None,
    max_subjects: Count | None = 4,
    architecture: str | None = None,
    weights: Weights = "pretrained",
    variant: str | None = None,
    t5: bool = True,
) -> AnyPipeline:
    """Make a pipeline of a base model alone, without its safety checker, as the published protocol has it.

    Arguments: see :meth:`FastComposer.from_pretrained`.
    """
    model = FastComposer.from_pretrained(
        base,
        image_encoder,
        architecture=architecture,
        weights=weights,
        variant=variant,
        t5=t5,
        max_subjects=max_subjects,
    )
    return model.to_pipeline(safety_checker=False)


def load_trained(
    base: str,
    image_encoder: str | None = None,
    max_subjects: Count | None = 4,
    checkpoint: str | None = None,
    safety_checker: bool = False,
    architecture: str | None = None,
    weights: Weights = "pretrained",
    variant: str | None = None,
    t5: bool = True,
) -> AnyPipeline:
    """Load trained weights on top of a base, or a saved pipeline.

    Args:
        base: See :meth:`FastComposer.from_pretrained`; not read for a saved pipeline.
        image_encoder: See ``from_pretrained``.
        max_subjects: See ``from_pretrained``.
        checkpoint: Trained weights, a run's folder, the released checkpoint, or a saved pipeline's folder.
        safety_checker: Whether to run the safety checker, where there is one.
        architecture: See ``from_pretrained``.
        weights: See ``from_pretrained``.
        variant: See ``from_pretrained``.
        t5: See ``from_pretrained``.

    Raises:
        FileNotFoundError: If there is no such file or folder.
        ValueError: If none is named, or the weights do not fit.
    """
    if checkpoint is None:
        raise ValueError(
            "checkpoint: name trained weights, the folder of a run, the released checkpoint, or the folder "
            "of a saved pipeline"
        )
    if not Path(checkpoint).exists():
        raise FileNotFoundError(f"checkpoint {checkpoint}: no such file or folder")
    if (Path(checkpoint) / "model_index.json").exists():
        options: dict[str, Any] = {} if safety_checker else {"safety_checker": None}
        return open_pipeline(checkpoint, **options)
    model = FastComposer.from_checkpoint(
        checkpoint,
        base=base,
        image_encoder=image_encoder,
        architecture=architecture,
        weights=weights,
        variant=variant,
        t5=t5,
        max_subjects=max_subjects,
    )
    return model.to_pipeline(safety_checker=safety_checker)


def networks_of(pipeline: AnyPipeline) -> dict[str, nn.Module]:
    """Networks of a pipeline by name."""
    return {name: part for name, part in pipeline.components.items() if isinstance(part, nn.Module)}


def pipeline_metadata(pipeline: AnyPipeline, *, subjects: bool) -> dict[str, Any]:
    """Digests of a pipeline's weights (with those for references or not), tokenizer and scheduler."""
    scheduler: Any = pipeline.scheduler
    config = {key: value for key, value in scheduler.config.items() if not key.startswith("_")}
    vocabulary = {} if pipeline.tokenizer is None else pipeline.tokenizer.get_vocab()
    used = networks_of(pipeline)
    if not subjects:
        used = {name: network for name, network in used.items() if name not in _FOR_SUBJECTS}
    weights = {name: weights_digest(network) for name, network in used.items()}
    plain = json.loads(json.dumps(config, default=str))
    tokenizer = hashlib.sha256(json.dumps(vocabulary, sort_keys=True).encode()).hexdigest()[:16]
    return {
        "weights": {**weights, "tokenizer": tokenizer},
        "scheduler": {"class": type(scheduler).__name__, **plain},
    }
