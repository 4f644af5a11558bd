"""Train: ``fastcomposer train experiment=mini``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from fastcomposer.cli.common import command, conclude, quieten_lightning

_FACES = ("identity", "readout", "reward")
"""Groups of losses that compare faces."""


def check_objective(config: DictConfig) -> None:
    """Refuse an objective that the training will not log, by ``ValueError``."""
    if config.objective is None:
        return
    from hydra.utils import get_class

    from fastcomposer.training.objective import check_logged

    built = [config.method, *config.callbacks.values()]
    check_logged(config.objective, [get_class(one._target_) for one in built])
    if config.objective.startswith(("val/", "samples/")) and config.trainer.get("limit_val_batches") == 0:
        raise ValueError(f"objective={config.objective}: trainer.limit_val_batches=0 leaves validation out")
    samples = config.callbacks.get("samples")
    if config.objective.startswith("samples/") and samples is not None and samples.scores is None:
        raise ValueError(f"objective={config.objective}: callbacks=scored_samples scores them")


def check_embedders(config: DictConfig) -> None:
    """Refuse to train on the embedder that scores, by ``ValueError``."""
    scores = OmegaConf.select(config, "metrics.embedder")
    for key in _FACES:
        trains = OmegaConf.select(config, f"{key}.loss.embedder")
        if scores is not None and trains is not None:
            one, other = ({k: v for k, v in node.items() if k != "download"} for node in (trains, scores))
            if one == other:
                raise ValueError(f"{key}.loss.embedder: is the one that scores (metrics.faces); take another")


def weights_to_start_from(config: DictConfig) -> str | None:
    """Trained weights that FastComposer's training starts from; ``ValueError`` where they do not exist."""
    from fastcomposer.models.base_files import find_weights_file
    from fastcomposer.sweeps.trained_jobs import trains_fastcomposer

    if not trains_fastcomposer(config):  # method.weights of others is how the base is loaded
        return None
    weights: str | None = config.method.weights
    try:
        if weights is not None:
            find_weights_file(Path(weights).expanduser())
    except OSError as error:
        raise ValueError(f"method.weights={weights}: {error}") from error
    return weights


def check_faces(config: DictConfig, data: Any) -> None:
    """Refuse training records without annotated faces where a loss compares them, by ``ValueError``."""
    used = [key for key in _FACES if OmegaConf.select(config, f"{key}.loss") is not None]
    if used and not data.train_dataset.index.has_faces():
        raise ValueError(
            f"{', '.join(used)}: the records in {config.data.root} have no annotated faces; "
            f"fastcomposer prepare faces=true adds them, {' '.join(f'{key}=none' for key in used)} needs none"
        )


@command("train", check_objective=check_objective)
def main(config: DictConfig) -> float | None:
    """Train in a folder that no other run uses."""
    from fastcomposer.utils.files import remove_leftovers
    from fastcomposer.utils.lock import sole_run

    with sole_run(config.run_dir) as first:
        if first:
            remove_leftovers(Path(config.run_dir))
        return train(config)


def train(config: DictConfig) -> float | None:
    """Build everything that the configuration names, fit, and export the weights; returns the objective."""
    from fastcomposer.training.resuming import check_resumable, find_checkpoint, training_settings

    run_dir = Path(config.run_dir)
    check_objective(config)
    check_embedders(config)
    weights = weights_to_start_from(config)
    checkpoint = find_checkpoint(config.resume, run_dir / "checkpoints")

    import lightning as L
    import torch
    from hydra.utils import instantiate

    from fastcomposer.training.base_module import fit
    from fastcomposer.training.callbacks import GracefulStop
    from fastcomposer.training.loggers import kept_open
    from fastcomposer.training.objective import Objective
    from fastcomposer.training.wandb_artifacts import log_training_inputs, log_weights
    from fastcomposer.utils.texts import plain
    from fastcomposer.utils.workers import data_worker_faults

    quieten_lightning()
    torch.set_float32_matmul_precision(config.matmul_precision)
    L.seed_everything(config.seed, workers=True, verbose=False)
    data = instantiate(config.data.module)
    callbacks = [instantiate(callback) for callback in config.callbacks.values()]
    objective = None if config.objective is None else Objective(config.objective)
    callbacks += [objective] * (objective is not None)
    loggers = [instantiate(logger) for logger in config.logger.values()]
    trainer = instantiate(config.trainer, callbacks=callbacks, logger=loggers)
    settings = training_settings(plain(config), trainer, data)
    if checkpoint is not None:
        unresolved: Any = OmegaConf.to_container(config)
        for line in check_resumable(checkpoint, settings, unresolved):
            if trainer.is_global_zero:
                print(line, file=sys.stderr)
    check_faces(config, data)
    module = instantiate(config.method, _convert_="object")
    module.settings = settings
    with kept_open(loggers) as runs:
        for logger in loggers:
            logger.log_hyperparams(plain(config))
        log_training_inputs(runs, data, config.model.base, weights)
        with data_worker_faults():
            fit(trainer, module, data, checkpoint)
        if trainer.is_global_zero or module.device_mesh is not None:
            module.export(Path(config.export))
        log_weights(runs, config.export)
    if not trainer.is_global_zero:
        return None
    received = [callback.received for callback in callbacks if isinstance(callback, GracefulStop)]
    stopped = next((number for number in received if number is not None), None)
    more = "" if stopped is None else " resume=auto continues from here."
    print(f"{trainer.global_step} steps are done.{more}")
    conclude(
        {
            "weights": config.export,
            "checkpoints": run_dir / "checkpoints",
            "losses": run_dir / "logs" / "metrics.csv",
            "samples": run_dir / "samples",
            "TensorBoard's log": run_dir / "tensorboard",
            "configuration": run_dir / ".hydra" / "config.yaml",
        }
    )
    if stopped is not None:
        sys.exit(128 + stopped)  # not finished
    return None if objective is None else objective.measured()


if __name__ == "__main__":
    main()
