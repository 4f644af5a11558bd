"""What a run was made from and what it made, as artifacts of Weights & Biases."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from fastcomposer.models.base_files import WEIGHTS_NAME, find_weights_file, lora_file
from fastcomposer.training.loggers import PatientWandbLogger
from fastcomposer.utils.settings import base_fingerprint


def log_training_inputs(
    runs: Iterable[PatientWandbLogger], data: Any, base: str | Path, weights: str | Path | None = None
) -> None:
    """Record what a training starts from: data that has a ``manifest()``, base, and ``method.weights``."""
    for run in runs:
        if hasattr(data, "manifest"):
            metadata = dict(data.manifest())
            artifact = _described(metadata.pop("root"), "dataset", "manifest.json", metadata)
            if run.images:
                artifact.add_dir(str(data.root), name="files")
            run.log_input(artifact)
        run.log_input(_base(base))
        if weights is not None:
            run.log_input(weights_artifact(weights))


def log_weights(runs: Iterable[PatientWandbLogger], folder: str | Path) -> None:
    """Keep FastComposer's weights from the folder they were exported to, in runs that take weights."""
    for run in runs:
        if run.artifacts and (Path(folder) / WEIGHTS_NAME).is_file():
            run.log_output(weights_artifact(folder))


def log_evaluation(
    runs: Iterable[PatientWandbLogger], base: str | Path, checkpoint: str | Path | None, results: Path
) -> None:
    """Record what an evaluation sampled with, and keep its ``results.json``."""
    for run in runs:
        run.log_input(_base(base))
        if (
            checkpoint is not None
        ):  # trained weights, or the folder of a saved pipeline, described as a base is
            saved = (Path(checkpoint).expanduser() / "model_index.json").is_file()
            run.log_input(_base(checkpoint) if saved else weights_artifact(checkpoint))
        run.log_output(_with_file(results, artifact_name(results.parent, "results"), "results"))


def weights_artifact(path: str | Path) -> Any:
    """Hold trained weights in an artifact, one for the training and for what uses them later."""
    file = find_weights_file(Path(path).expanduser())
    artifact = _with_file(file, artifact_name(file.parent, "weights"), "model")
    if (lora := lora_file(file)).is_file():
        artifact.add_file(str(lora), policy="immutable", skip_cache=True)
    return artifact


def artifact_name(path: str | Path, kind: str) -> str:
    """Name an artifact after the last two parts of a path, such as ``outputs-mini-weights``."""
    name = "-".join([*Path(path).expanduser().resolve().parts[-2:], kind])
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", name).strip("-")[-120:]


def _base(base: str | Path) -> Any:
    """Describe a base model by its fingerprint."""
    return _described(str(base), "base", "base.json", {"fingerprint": base_fingerprint(base)})


def _with_file(file: Path, name: str, kind: str) -> Any:
    import wandb

    artifact = wandb.Artifact(name, kind)
    # Not copied: it may have gigabytes.
    artifact.add_file(str(file), name=file.name, policy="immutable", skip_cache=True)
    return artifact


def _described(path: str, kind: str, file: str, content: Mapping[str, Any]) -> Any:
    """Make an artifact whose only file is a description."""
    import wandb

    artifact = wandb.Artifact(artifact_name(path, kind), kind, metadata={**content, "path": path})
    with artifact.new_file(file, encoding="utf-8") as stream:
        json.dump(dict(content), stream, indent=2, ensure_ascii=False, sort_keys=True)
    return artifact
