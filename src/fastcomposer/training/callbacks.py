"""Callbacks: stop without losing anything, and pictures drawn while training."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import TensorBoardLogger, WandbLogger
from PIL import Image

from fastcomposer.pictures import attention_overlay, grid
from fastcomposer.schedulers import split_scheduler, use_scheduler

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_SLURM_JOB = "SLURM_JOB_ID"


class GracefulStop(Callback):
    """On Ctrl-C or SIGTERM finish the step, save, and end; a second signal ends at once.

    Of several processes, the one that gets the signal tells the others, and all end after the same step; they
    ask each other every ``log_every_n_steps`` steps, because asking waits for the device. In a SLURM job,
    SIGUSR1 (``#SBATCH --signal=SIGUSR1@120``) does the same and requeues the job, whose command should say
    ``resume=auto``.

    Args:
        dirpath: Folder of ``last.ckpt``, from which ``resume=auto`` goes on.
    """

    def __init__(self, dirpath: str | Path) -> None:
        self.path = Path(dirpath) / "last.ckpt"
        self._previous: dict[int, Any] = {}
        self.received: int | None = None
        """The signal that ended the training."""

    @property
    def stopped(self) -> bool:
        """Whether a signal ended the training."""
        return self.received is not None

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Listen for signals, in place of the trainer's own handlers, which end or save within a step."""
        self.received = None

        def stop(number: int, frame: Any) -> None:
            if self.received is not None:
                raise KeyboardInterrupt
            self.received = number
            # Gradients that are not yet complete would be lost, and others may be in an earlier step.
            trainer.should_stop = trainer.accumulate_grad_batches == 1 and trainer.world_size == 1

        for number in (*_SIGNALS, signal.SIGUSR1) if _SLURM_JOB in os.environ else _SIGNALS:
            self._previous[number] = signal.signal(number, stop)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Stop once the step is complete, and repeat the request: an epoch's end resets it."""
        if (batch_idx + 1) % trainer.accumulate_grad_batches:
            return
        if trainer.world_size > 1 and trainer.global_step % trainer.log_every_n_steps == 0:  # type: ignore[attr-defined]
            numbers = torch.tensor(self.received or 0, device=pl_module.device)
            self.received = int(trainer.strategy.reduce(numbers, reduce_op="max")) or None
            trainer.should_stop = self.stopped
        elif trainer.world_size == 1 and self.stopped:
            trainer.should_stop = True
        if trainer.should_stop and self.stopped:
            self._leave_out_validation(trainer)

    def _leave_out_validation(self, trainer: L.Trainer) -> None:
        """Validate before the end only where that is due: who stops a training has little time."""
        loop: Any = trainer.fit_loop.epoch_loop
        every: Any = trainer.val_check_batch
        if trainer.check_val_every_n_epoch is not None or (loop.total_batch_idx + 1) % every:  # type: ignore[attr-defined]
            trainer.limit_val_batches = 0

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Save the last step, whatever ended the training."""
        trainer.save_checkpoint(self.path)
        self._release()
        if self.received is None or not trainer.is_global_zero:
            return
        name = signal.Signals(self.received).name
        print(
            f"\n{name}: stopped after step {trainer.global_step}; {self.path} is saved, resume=auto goes on"
        )
        if self.received == signal.SIGUSR1:
            subprocess.run(["scontrol", "requeue", os.environ[_SLURM_JOB]], check=True)

    def on_exception(
        self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException
    ) -> None:
        """Put the previous handlers back; the checkpoint before stays the last one."""
        self._release()

    def _release(self) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous.clear()


class SampleImages(Callback):
    """Draw the same prompts and references from the same noise at every validation.

    Each row of the picture shows the references, the sample, and where each subject's word attended.

    Args:
        folder: Where ``step_<n>.png`` goes.
        prompts: Prompts with markers.
        references: For each prompt, the files of its references.
        seed: Seed of the noise.
        sampler: Arguments of the pipeline call, ``alpha`` and ``num_inference_steps`` among them, and the
            scheduler; see :func:`~fastcomposer.schedulers.split_scheduler`.
    """

    def __init__(
        self,
        folder: str | Path,
        prompts: Sequence[str],
        references: Sequence[Sequence[str]],
        seed: int,
        sampler: Mapping[str, Any],
    ) -> None:
        if len(prompts) != len(references):
            raise ValueError(
                f"callbacks.samples: {len(prompts)} prompts, but references for {len(references)}"
            )
        missing = [name for row in references for name in row if not Path(name).exists()]
        if missing:
            raise FileNotFoundError(f"callbacks.samples.references: no such file: {', '.join(missing)}")
        self.folder, self.seed = Path(folder), seed
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
        if trainer.is_global_zero and not trainer.sanity_checking:
            self._draw(trainer, pl_module)
        trainer.strategy.barrier("samples")

    def _draw(self, trainer: L.Trainer, module: Any) -> None:
        # Pictures are of other shapes than batches, too few to compile anything for them.
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
        rows = []
        for i, sample in enumerate(output.images):
            pictures = [Image.open(name) for name in self.references[i]]
            maps = output.attention_maps[i, 0, : len(pictures)]
            rows.append([*pictures, sample, *(attention_overlay(sample, subject) for subject in maps)])
        picture = grid(rows)
        self.folder.mkdir(parents=True, exist_ok=True)
        picture.save(self.folder / f"step_{trainer.global_step:06d}.png")
        _log_picture(trainer, picture)


def _log_picture(trainer: L.Trainer, picture: Image.Image) -> None:
    for logger in trainer.loggers:
        if isinstance(logger, WandbLogger):
            logger.log_image("samples", [picture], step=trainer.global_step)
        elif isinstance(logger, TensorBoardLogger):
            import torchvision.transforms.functional as tvf

            logger.experiment.add_image("samples", tvf.to_tensor(picture), trainer.global_step)
