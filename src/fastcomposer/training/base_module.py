"""What all trainings share: optimizer, schedule over a budget, EMA, guards against NaN, resuming."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any, ClassVar

import lightning as L
import numpy as np
import torch
from diffusers.training_utils import EMAModel
from lightning.pytorch.callbacks import Timer
from torch import Generator, Tensor, nn

from fastcomposer.models.weights_io import TrainingLength
from fastcomposer.training.checkpoints import newest_complete, non_finite
from fastcomposer.training.loggers import ContinuedCSVLogger
from fastcomposer.training.sharding import full_tensor, gather_like, local_shard, shard_like
from fastcomposer.utils.errors import FaultError
from fastcomposer.utils.ranges import Fraction, Seed, Whole

_ALL_SAMPLES = 2**32 - 1  # takes the place of a sample's index, which is never that large

OptimizerFactory = Callable[[list[Any]], torch.optim.Optimizer]


class NonFiniteLossError(FaultError):
    """The loss was NaN or infinite too often."""


class NonFiniteWeightsError(FaultError):
    """Trained weights are NaN or infinite, so they are neither saved nor exported."""


class RecipeModule(L.LightningModule):
    """Base of every training.

    The learning rate warms up linearly, stays constant, and falls linearly to zero over the last fraction of
    the budget. The budget is the trainer's ``max_steps`` or ``max_time``, whichever is nearer.

    Args:
        optimizer: Makes the optimizer from the trained parameters (``_partial_`` in a config).
        warmup_steps: Steps of linear warm-up.
        cooldown: Fraction of the budget, 0 to 1, over which the learning rate falls to zero.
        seed: Seed of all random numbers of a step.
        ema_decay: Highest decay of the exponential moving average of the weights; ``None`` for no EMA.
        max_bad_steps: How many consecutive steps with a NaN or infinite loss are skipped before giving up.

    Raises:
        ValueError: If a setting is out of range.
    """

    LOGGED: ClassVar[tuple[str, ...]] = ("train/grad_norm",)

    def __init__(
        self,
        optimizer: OptimizerFactory,
        warmup_steps: Whole = 0,
        cooldown: Fraction = 0.0,
        seed: Seed = 0,
        ema_decay: Fraction | None = None,
        max_bad_steps: Whole = 10,
    ) -> None:
        super().__init__()
        for name, value in (("warmup_steps", warmup_steps), ("seed", seed), ("max_bad_steps", max_bad_steps)):
            if value < 0:
                raise ValueError(f"method.{name}={value}: must not be negative")
        if not 0 <= cooldown <= 1:
            raise ValueError(f"cooldown={cooldown}: a fraction of the budget between 0 and 1")
        if ema_decay is not None and not 0 < ema_decay < 1:
            raise ValueError(f"ema_decay={ema_decay}: between 0 and 1, or null for no EMA")
        self.optimizer_factory, self.seed = optimizer, seed
        self.warmup_steps, self.cooldown = warmup_steps, cooldown
        self.ema_decay, self.max_bad_steps = ema_decay, max_bad_steps
        self.ema: EMAModel | None = None
        self.trained_before = TrainingLength()
        """Of the weights that the first step starts from."""
        self.settings: dict[str, Any] = {}
        """Kept in checkpoints; see :func:`~fastcomposer.training.resuming.training_settings`."""
        self._validated = 0
        self._resumed = False
        self._minutes, self._since = 0.0, time.monotonic()
        self._bad_steps = torch.zeros((), dtype=torch.long)
        self._micro_batch = 0
        self._log_state: dict[str, Any] | None = None
        self._records: tuple[str, ...] = ()

    def trained_parameters(self) -> dict[str, nn.Parameter]:
        """Names and tensors of what is trained."""
        return {name: p for name, p in self.named_parameters() if p.requires_grad}

    def parameter_groups(self) -> list[Any]:
        """What is trained, for the optimizer: tensors, or groups with settings of their own."""
        return list(self.trained_parameters().values())

    def configure_model(self) -> None:
        """Refuse to be sharded; trainings that can be override this."""
        if self.device_mesh is not None:
            raise ValueError("trainer=fsdp is for method=fastcomposer; take trainer=ddp")

    def configure_optimizers(self) -> Any:
        """Build optimizer and schedule; a fused optimizer is refused where float16 scales gradients."""
        optimizer = self.optimizer_factory(self.parameter_groups())
        self._learning_rates = [group["lr"] for group in optimizer.param_groups]
        if self._scales_gradients and _unscales_itself(optimizer):
            raise ValueError(
                "trainer.precision=16-mixed: set method.optimizer.implementation=foreach; fused takes the "
                "scaling back only after clipping and after the guard against gradients that are not finite, "
                "which would hide from the scaler that it has to scale less"
            )
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, self._lr_factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    @property
    def _scales_gradients(self) -> bool:
        """Whether gradients are scaled to fit into float16."""
        return getattr(self.trainer.precision_plugin, "scaler", None) is not None

    def progress(self) -> float:
        """Fraction of the budget that is used, 0 to 1; 0 without one. All processes have to call it."""
        trainer = self.trainer
        used = [0.0]
        if trainer.max_steps and trainer.max_steps > 0:
            used.append(trainer.global_step / trainer.max_steps)
        timers = [one for one in trainer.callbacks if isinstance(one, Timer)]  # type: ignore[attr-defined]
        for timer in timers:
            elapsed, left = timer.time_elapsed(), timer.time_remaining()
            if left is not None:
                used.append(elapsed / (elapsed + left) if elapsed + left else 1.0)
        found = min(max(used), 1.0)
        # Each process has a clock of its own, and with a learning rate of its own its weights would diverge.
        return float(trainer.strategy.broadcast(found)) if timers else found

    def _lr_factor(self, step: int) -> float:
        warm = min(1.0, (step + 1) / self.warmup_steps) if self.warmup_steps else 1.0
        cool = min(1.0, (1 - self.progress()) / self.cooldown) if self.cooldown else 1.0
        return warm * cool

    @property
    def length(self) -> TrainingLength:
        """How long the weights were trained by now, over all interruptions."""
        before, minutes = self.trained_before, self._minutes + (time.monotonic() - self._since) / 60
        return TrainingLength(before.steps + self.global_step, before.minutes + minutes)

    def on_fit_start(self) -> None:
        """Start the clock, and the moving average from the weights of the first step."""
        self._since = time.monotonic()
        if self.ema_decay is not None and self.ema is None:
            self.ema = self._average()
        if self.ema is not None:
            self.ema.to(self.device)

    def on_train_start(self) -> None:
        """Resume log and optimizer settings, and make up for a validation that an interruption prevented."""
        self.resume_logs()
        if self._resumed:
            self._use_optimizer_settings()
        if self.validation_missing:
            loop = self.trainer.fit_loop.epoch_loop.val_loop
            self.trainer.validating, loop.restarting = True, False
            loop.run()
            self.trainer.training = True
        self._resumed = False

    def resume_logs(self) -> None:
        """Let the log continue where the training does."""
        for logger in self._continued_logs():
            logger.resume(self._log_state, self.global_step)

    @property
    def validation_missing(self) -> bool:
        """Whether the step that a training resumes from was due for a validation that has not ended."""
        if not self._resumed or self._validated == self.global_step or not self.trainer.enable_validation:
            return False
        loop = self.trainer.fit_loop
        return loop.epoch_loop._should_check_val_fx(loop._data_fetcher)  # type: ignore[arg-type]

    def on_validation_epoch_end(self) -> None:
        """Note that this step is validated."""
        if not self.trainer.sanity_checking:
            self._validated = self.global_step

    def _use_optimizer_settings(self) -> None:
        """Replace a checkpoint's optimizer settings by the present ones."""
        (optimizer,), (schedule,) = self.trainer.optimizers, self.trainer.lr_scheduler_configs
        scheduler: Any = schedule.scheduler
        # Not how it is computed (fused, foreach), which has to fit its states.
        given = {
            name: value
            for name, value in optimizer.defaults.items()
            if isinstance(value, int | float | tuple) and not isinstance(value, bool)
        }
        scheduler.base_lrs = self._learning_rates
        factor = self._lr_factor(scheduler.last_epoch)
        for group, lr in zip(optimizer.param_groups, self._learning_rates, strict=True):
            group.update(given, initial_lr=lr, lr=lr * factor)

    def _continued_logs(self) -> list[ContinuedCSVLogger]:
        found = [logger for logger in self.trainer.loggers if isinstance(logger, ContinuedCSVLogger)]
        return found if self.trainer.is_global_zero else []

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Count the batches whose gradients are accumulated to one step, and keep what they hold."""
        self._micro_batch = batch_idx % self.trainer.accumulate_grad_batches
        self._records = (self._records if self._micro_batch else ()) + tuple(getattr(batch, "record_ids", ()))
        # Resumed from where it was saved after a validation, the trainer would label its log a step too late.
        self.trainer.fit_loop.epoch_loop._batches_that_stepped = self.global_step  # type: ignore[attr-defined]

    def step_generator(self) -> Generator:
        """Random numbers of this batch on this process, the same after resuming."""
        return self._generator(self.seed, self.global_rank, self.global_step, *self._accumulated)

    def sample_generators(self, count: int) -> list[Generator]:
        """Random numbers of each sample of this batch, by its index among the samples of the step.

        Indices are counted as :class:`~fastcomposer.data.samplers.EpochSampler` deals samples out: over all
        processes, then over the batches that are accumulated. So a step of as many samples draws the same
        numbers for each of them on any number of processes, in any number of batches of ``count`` samples.
        """
        rows = range(self._micro_batch * count, (self._micro_batch + 1) * count)
        world, rank = self.trainer.world_size, self.global_rank
        return [self._generator(self.seed, self.global_step, row * world + rank) for row in rows]

    def mask_generator(self) -> Generator:
        """Random numbers of all samples of this batch together, drawn for each batch of each process."""
        rank = self.global_rank
        return self._generator(self.seed, self.global_step, _ALL_SAMPLES, rank, *self._accumulated)

    @property
    def _accumulated(self) -> tuple[int, ...]:
        """Index of this batch among those of the step, left out for the first."""
        return (self._micro_batch,) if self._micro_batch else ()

    def _generator(self, *numbers: int) -> Generator:
        seed = int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> 1)
        return Generator(self.device).manual_seed(seed)

    def over_processes(self, values: dict[str, Tensor]) -> dict[str, Tensor]:
        """Means over all processes in the steps that the trainer logs, its own values in the others.

        (``sync_dist`` of Lightning's ``log`` would wait for all processes and the device in every step.)
        """
        if self.trainer.world_size == 1 or (self.global_step + 1) % self.trainer.log_every_n_steps:  # type: ignore[attr-defined]
            return values
        means = torch.stack([value.detach() for value in values.values()]) / self.trainer.world_size
        torch.distributed.all_reduce(means)
        return dict(zip(values, means, strict=True))

    def configure_gradient_clipping(
        self,
        optimizer: Any,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip as the trainer does, also before fused optimizers."""
        # The trainer refuses these in mixed precision, for the sake of float16; bfloat16 is not scaled.
        fused = _unscales_itself(optimizer)
        if self._scales_gradients or not fused or not gradient_clip_val or gradient_clip_algorithm == "value":
            self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)
        else:
            nn.utils.clip_grad_norm_(list(self.trained_parameters().values()), gradient_clip_val)

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        """Take a step with a NaN or infinite gradient as one without gradient, and give up if that lasts.

        The count stays on the device and is read only when the trainer logs, so a step never waits for it.
        """
        gradients = [p.grad for p in self.trained_parameters().values() if p.grad is not None]
        norm = full_tensor(torch.nn.utils.get_total_norm(gradients))
        self.log("train/grad_norm", norm)
        self.log("train/learning_rate", optimizer.param_groups[0]["lr"])
        bad = ~norm.isfinite()
        self._bad_steps = (self._bad_steps.to(norm.device) + 1) * bad
        for gradient in gradients:
            local_shard(gradient).masked_fill_(bad, 0)
        if self.global_step % self.trainer.log_every_n_steps == 0:  # type: ignore[attr-defined]
            count = int(self._bad_steps)
            if count > self.max_bad_steps:
                records = ", ".join(self._records_of_step()) or "it does not name them"
                raise NonFiniteLossError(
                    f"loss or gradient was not finite for {count} steps in a row, up to step "
                    f"{self.global_step}; lower method.optimizer.lr or look at the records of the last "
                    f"batch: {records}"
                )

    def _records_of_step(self) -> list[str]:
        """Records of this step's batches on all processes."""
        found: list[Any] = [self._records]
        if self.trainer.world_size > 1:
            found = [()] * self.trainer.world_size
            torch.distributed.all_gather_object(found, self._records)
        return [name for records in found for name in records]

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Step, then update the moving average."""
        super().optimizer_step(*args, **kwargs)
        if self.ema is not None:
            self.ema.step(self._local_shards())

    @contextmanager
    def averaged_weights(self) -> Iterator[None]:
        """Use the moving average inside the block, where there is one."""
        if self.ema is None:
            yield
            return
        self.ema.store(self._local_shards())
        self.ema.copy_to(self._local_shards())
        try:
            yield
        finally:
            self.ema.restore(self._local_shards())

    def _local_shards(self) -> list[Any]:
        """What this process has of the trained parameters."""
        return [local_shard(parameter) for parameter in self.trained_parameters().values()]

    def _average(self) -> EMAModel:
        assert self.ema_decay is not None
        shards = self._local_shards()
        return EMAModel(shards, decay=self.ema_decay, use_ema_warmup=True, power=0.75, foreach=True)

    def on_train_end(self) -> None:
        """Refuse to end with weights that are not finite."""
        names, averages = list(self.trained_parameters()), self.ema.shadow_params if self.ema else []
        parts = {"state_dict": self._local_shards(), "ema": averages}
        self._check_finite({part: dict(zip(names, found, strict=False)) for part, found in parts.items()})

    def _check_finite(self, checkpoint: Mapping[str, Any]) -> None:
        """Refuse NaN and infinity on any process."""
        names, trainer = non_finite(checkpoint), self.trainer
        if trainer.strategy.reduce_boolean_decision(not names):
            return
        folder, kept = getattr(trainer.checkpoint_callback, "dirpath", None), ""
        if trainer.is_global_zero and folder:
            with suppress(FaultError):
                kept = str(newest_complete(Path(folder)) or "")
        kept = trainer.strategy.broadcast(kept)
        raise NonFiniteWeightsError(
            f"after step {self.global_step} what is trained is not finite "
            f"({names or 'on another process'}), and stays so; it is not saved. "
            f"{'The last finite checkpoint is ' + kept if kept else 'There is no finite checkpoint'}: lower "
            f"method.optimizer.lr or trainer.gradient_clip_val, then resume={'auto' if kept else 'restart'}"
        )

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep trained weights and the moving average, if they are finite."""
        trainer = self.trainer
        trained = self.trained_parameters()
        state = checkpoint["state_dict"]  # empty on all processes but the first where weights are sharded
        checkpoint["state_dict"] = {name: state[name] for name in trained} if state else {}
        checkpoint["length"] = asdict(self.length)
        checkpoint["settings"], checkpoint["validated"] = self.settings, self._validated
        if self.ema is not None:
            pairs = zip(trained.items(), self.ema.shadow_params, strict=True)
            averages = {name: gather_like(value, parameter) for (name, parameter), value in pairs}
            checkpoint["ema"] = {"step": self.ema.optimization_step, "weights": averages}
        self._check_finite(checkpoint)
        for logger in self._continued_logs():
            row: dict[str, Any] = {}
            if self.global_step % trainer.log_every_n_steps == 0:  # type: ignore[attr-defined]
                logged = trainer.logged_metrics.items()
                row = {name: float(value) for name, value in logged if name.startswith("train/")}
                row["epoch"] = self.current_epoch
            checkpoint["log"] = logger.state(self.global_step, row)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore the moving average; trained weights must match by name exactly."""
        trained = self.trained_parameters()
        stored = checkpoint.get("state_dict", trained)  # where weights are sharded, they are loaded already
        missing, unexpected = trained.keys() - stored, stored.keys() - trained
        if missing or unexpected:
            raise FaultError(
                f"checkpoint does not fit this model: missing {sorted(missing)}, "
                f"unexpected {sorted(unexpected)}; "
                "were other parameters trained (method.vision_layers, method.train_backbone)?"
            )
        self.strict_loading = False
        self._resumed, self._validated = True, checkpoint["validated"]
        self._log_state = checkpoint.get("log")
        self._minutes = checkpoint["length"]["minutes"] - self.trained_before.minutes
        if "ema" in checkpoint and self.ema_decay is not None:
            self.ema = self._average()
            self.ema.optimization_step = checkpoint["ema"]["step"]
            averages = checkpoint["ema"]["weights"]
            self.ema.shadow_params = [shard_like(averages[name], p) for name, p in trained.items()]


def fit(
    trainer: L.Trainer, module: RecipeModule, data: L.LightningDataModule, checkpoint: Path | None = None
) -> None:
    """Train, from a checkpoint if one is given, and make up for a last validation that alone was missing."""
    trainer.fit(module, datamodule=data, ckpt_path=checkpoint, weights_only=True)
    if module.validation_missing:  # a training that has no steps left does not start
        module.resume_logs()
        trainer.validate(module, datamodule=data, verbose=False)


def _unscales_itself(optimizer: Any) -> bool:
    """Whether an optimizer takes the scaling of gradients back within its step, as fused ones do."""
    return getattr(optimizer, "_step_supports_amp_scaling", False)
