"""Callbacks: stop without losing anything, and show how far and how fast a training is."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from datetime import timedelta
from pathlib import Path
from typing import Any, ClassVar

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint, RichProgressBar
from torch.utils.flop_counter import FlopCounterMode

from fastcomposer.utils.memory import peak_memory_bytes
from fastcomposer.utils.progress import INTERVAL
from fastcomposer.utils.ranges import Count

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_SLURM_JOB = "SLURM_JOB_ID"


class ResumableCheckpoint(ModelCheckpoint):
    """Lightning's checkpoints; one that is saved before a validation is saved again when that has ended.

    A training killed in between resumes with the validation, one killed later does not repeat it.
    """

    def on_train_batch_end(self, trainer: L.Trainer, *args: Any) -> None:
        """Save also at the end of an epoch, where Lightning waits for a validation that may not follow."""
        super().on_train_batch_end(trainer, *args)
        if self._defer_save_until_validation:
            self._defer_save_until_validation = False
            if self._should_skip_saving_checkpoint(trainer):
                return
            found = self._monitor_candidates(trainer)
            self._save_topk_checkpoint(trainer, found)
            self._save_last_checkpoint(trainer, found)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Save the checkpoint of this step again."""
        file = self.format_checkpoint_name(self._monitor_candidates(trainer))
        again = not trainer.sanity_checking and self.file_exists(file, trainer)
        super().on_validation_end(trainer, pl_module)
        if again:
            trainer.save_checkpoint(file, self.save_weights_only)


class GracefulStop(Callback):
    """On Ctrl-C or SIGTERM finish the step, save, and end; a second signal ends at once, unless it is saving.

    A signal to one of several processes ends all of them after the same step; they compare every
    ``log_every_n_steps`` steps, because that waits for the device. In a SLURM job, SIGUSR1
    (``#SBATCH --signal=SIGUSR1@120``) does the same and requeues the job, whose command should have
    ``resume=auto``.

    Args:
        dirpath: Folder of ``last.ckpt``, from which ``resume=auto`` continues.
    """

    def __init__(self, dirpath: str | Path) -> None:
        self.path = Path(dirpath) / "last.ckpt"
        self._previous: dict[int, Any] = {}
        self._saving = False
        self.received: int | None = None
        """The signal that ended the training."""

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Listen for signals, in place of the trainer's own handlers, which end or save within a step."""
        self.received = None

        def stop(number: int, frame: Any) -> None:
            if self._saving:
                return
            if self.received is not None:
                raise KeyboardInterrupt if number == signal.SIGINT else SystemExit(128 + number)
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
        if trainer.world_size > 1:
            if trainer.global_step % trainer.log_every_n_steps:  # type: ignore[attr-defined]
                return
            numbers = torch.tensor(self.received or 0, device=pl_module.device)
            self.received = int(trainer.strategy.reduce(numbers, reduce_op="max")) or None
        if self.received is None:
            return
        trainer.should_stop = True
        # Validate before the end only where that is due: who stops a training has little time.
        batches = trainer.fit_loop.epoch_loop.total_batch_idx + 1
        every: Any = trainer.val_check_batch  # type: ignore[attr-defined]
        if trainer.check_val_every_n_epoch is not None or batches % every:
            trainer.limit_val_batches = 0

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Save the last step, whatever ended the training."""
        self._saving = True
        try:
            trainer.save_checkpoint(self.path)
        finally:
            self._saving = False
        self._release()
        if self.received is None or not trainer.is_global_zero:
            return
        name = signal.Signals(self.received).name
        print(
            f"\n{name}: stopped after step {trainer.global_step}; {self.path} is saved, resume=auto continues"
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


class TrainingProgress(RichProgressBar):
    """How far a training is: a bar on a terminal, and in a log a line at intervals.

    Args:
        interval: Seconds between lines of a log.
    """

    def __init__(self, interval: float = INTERVAL) -> None:
        super().__init__(leave=False)
        self.interval = interval
        self._began = self._printed = 0.0
        self._lines = False

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Show no bar in a log, where it would come only when it is full."""
        super().setup(trainer, pl_module, stage)
        self._lines = not sys.stdout.isatty()
        if self._lines:
            self.disable()

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Start the clock."""
        super().on_train_start(trainer, pl_module)
        self._began = self._printed = time.monotonic()

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Move the bar, or print a line when it is time."""
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        now = time.monotonic()
        if not self._lines or not trainer.is_global_zero or now - self._printed < self.interval:
            return
        self._printed = now
        loss = trainer.callback_metrics.get("train/loss")
        run = os.path.relpath(trainer.default_root_dir)
        line = f"{trainer.default_root_dir if '..' in Path(run).parts else run}: step {trainer.global_step}"
        line += f"/{trainer.max_steps}" if trainer.max_steps > 0 else ""
        line += f" after {timedelta(seconds=round(now - self._began))}"
        line += "" if loss is None else f", loss {float(loss):.3g}"
        print(line, file=sys.stderr, flush=True)

    def get_metrics(self, trainer: L.Trainer, pl_module: L.LightningModule) -> dict[str, Any]:
        """Metrics beside the bar, without the folder of the log."""
        metrics: dict[str, Any] = super().get_metrics(trainer, pl_module)
        metrics.pop("v_num", None)
        return metrics

    def _get_train_description(self, current_epoch: int) -> str:
        """Name the bar; of epochs without end, Lightning would count down from -2."""
        return f"Epoch {current_epoch}"


class Throughput(Callback):
    """Log images a second, of all processes, and the most memory in use so far, with the losses.

    The clock is read in the steps that are logged; validations do not count. (Lightning's monitor waits for
    the device in every step.)
    """

    LOGGED: ClassVar[tuple[str, ...]] = ("train/images_per_second", "train/memory_gib")
    _images, _seconds, _since = 0, 0.0, 0.0

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Start the clock."""
        self._images, self._seconds = 0, 0.0
        self._since = time.perf_counter()

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Count images; in a step that is logged, divide by the time since the last one."""
        self._images += len(batch) * trainer.world_size
        complete = (batch_idx + 1) % trainer.accumulate_grad_batches == 0
        if not complete or trainer.global_step % trainer.log_every_n_steps:  # type: ignore[attr-defined]
            return
        if pl_module.device.type == "cuda":
            torch.cuda.synchronize(pl_module.device)
        seconds = self._seconds + time.perf_counter() - self._since
        values = {
            "train/images_per_second": self._images / seconds,
            "train/memory_gib": peak_memory_bytes(pl_module.device) / 2**30,
        }
        pl_module.log_dict(values, batch_size=len(batch))
        self.on_train_start(trainer, pl_module)

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Stop the clock."""
        self._seconds += time.perf_counter() - self._since

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Continue."""
        self._since = time.perf_counter()


class OperationCount(Callback):
    """Log the floating-point operations that an image takes in training, forward and backward.

    Matrix products, convolutions and attention are counted, in some of the steps that are logged: whatever
    the machine is doing besides, trainings can be compared by them.

    Args:
        every_n_logs: One step is counted of so many that are logged.
    """

    LOGGED: ClassVar[tuple[str, ...]] = ("train/gflop_per_image",)

    def __init__(self, every_n_logs: Count = 10) -> None:
        self.every = every_n_logs
        self._counter: FlopCounterMode | None = None

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Begin to count where it is due."""
        every = self.every * trainer.log_every_n_steps  # type: ignore[attr-defined]
        if (trainer.global_step + 1) % every == 0:
            self._counter = FlopCounterMode(display=False)
            self._counter.__enter__()

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Log the count."""
        if (counter := self._ended()) is not None:
            value = counter.get_total_flops() / len(batch) / 1e9
            pl_module.log("train/gflop_per_image", value, batch_size=len(batch))

    def on_exception(
        self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException
    ) -> None:
        """Count no further."""
        self._ended()

    def _ended(self) -> FlopCounterMode | None:
        counter, self._counter = self._counter, None
        if counter is not None:
            counter.__exit__(None, None, None)
        return counter
