"""What a run was made from and what it made, as artifacts of Weights & Biases."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from fastcomposer.models.weights_io import WEIGHTS_NAME, find_weights_file
from fastcomposer.training.loggers import PatientWandbLogger
from fastcomposer.utils.settings import base_fingerprint


def log_training_inputs(
    runs: Iterable[PatientWandbLogger],
    data: Any,
    base: str | Path,
    weights: str | Path | None = None,
) -> None:
    """Say what a training starts from: data, base, and weights that it goes on from.

    Args:
        runs: Nothing is done without any.
        data: Data module; one that has no ``manifest()`` is left out.
        base: Base model.
        weights: As ``method.weights``.
    """
    for run in runs:
        if hasattr(data, "manifest"):
            run.log_input(dataset_artifact(data.manifest(), data.root if run.images else None))
        run.log_input(base_artifact(base))
        if weights is not None:
            run.log_input(weights_artifact(weights))


def log_weights(runs: Iterable[PatientWandbLogger], folder: str | Path) -> None:
    """Keep the weights that a training has left, where it leaves FastComposer's.

    Args:
        runs: Those whose ``artifacts`` is off are left out.
        folder: The folder they were exported to.
    """
    for run in runs:
        if run.artifacts and (Path(folder) / WEIGHTS_NAME).is_file():
            run.log_output(weights_artifact(folder))


def log_evaluation(
    runs: Iterable[PatientWandbLogger], base: str | Path, checkpoint: str | Path | None, results: Path
) -> None:
    """Say what an evaluation drew with, and keep its results.

    Args:
        runs: Nothing is done without any.
        base: Base model.
        checkpoint: Trained weights, or the folder of a saved pipeline, which is described as a base is.
        results: The file ``results.json``.
    """
    for run in runs:
        run.log_input(base_artifact(base))
        if checkpoint is not None:
            saved = (Path(checkpoint).expanduser() / "model_index.json").is_file()
            run.log_input(base_artifact(checkpoint) if saved else weights_artifact(checkpoint))
        run.log_output(_with_file(results, artifact_name(results.parent, "results"), "results"))


def dataset_artifact(manifest: Mapping[str, Any], root: str | Path | None = None) -> Any:
    """Describe a data folder.

    Args:
        manifest: See :meth:`~fastcomposer.data.datamodule.SubjectDataModule.manifest`.
        root: The folder, for an artifact that holds its files, too.
    """
    facts = dict(manifest)
    artifact = _described(facts.pop("root"), "dataset", "manifest.json", facts)
    if root is not None:
        artifact.add_dir(str(root), name="files")
    return artifact


def base_artifact(base: str | Path) -> Any:
    """Describe a base model by its fingerprint; its files stay where they are."""
    return _described(str(base), "base", "base.json", {"fingerprint": base_fingerprint(base)})


def weights_artifact(path: str | Path) -> Any:
    """Hold FastComposer's trained weights.

    The name comes from the path and identity from the content, so that a training which leaves weights, and
    what uses them later, speak of one artifact.

    Args:
        path: As :func:`~fastcomposer.models.weights_io.load_trained_weights` takes it.

    Raises:
        FileNotFoundError: If there are none.
    """
    file = find_weights_file(Path(path).expanduser())
    return _with_file(file, artifact_name(file.parent, "weights"), "model")


def artifact_name(path: str | Path, kind: str) -> str:
    """Name an artifact after the last two parts of a path, such as ``outputs-mini-weights``."""
    name = "-".join([*Path(path).expanduser().resolve().parts[-2:], kind])
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", name).strip("-")[-120:]


def _with_file(file: Path, name: str, kind: str) -> Any:
    import wandb

    artifact = wandb.Artifact(name, kind)
    # No copy is made of it, which may be of gigabytes.
    artifact.add_file(str(file), name=file.name, policy="immutable", skip_cache=True)
    return artifact


def _described(place: str, kind: str, file: str, content: Mapping[str, Any]) -> Any:
    """Make an artifact whose only file is a description, the same wherever the described lies."""
    import wandb

    artifact = wandb.Artifact(artifact_name(place, kind), kind, metadata={**content, "path": place})
    with artifact.new_file(file, encoding="utf-8") as stream:
        json.dump(dict(content), stream, indent=2, ensure_ascii=False, sort_keys=True)
    return artifact
