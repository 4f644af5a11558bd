"""Training of FastComposer: the paper's recipe as a LightningModule."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar, Literal, get_args

import torch
from torch import Generator, Tensor

from fastcomposer.batch import SubjectBatch
from fastcomposer.composer import FastComposer
from fastcomposer.models.base_files import WEIGHTS_NAME
from fastcomposer.models.compilation import check_backend, compile_blocks
from fastcomposer.models.lora import LoRASettings, lora_settings
from fastcomposer.models.text import TextStates
from fastcomposer.models.weights_io import (
    Precision,
    load_trained_weights,
    read_training_length,
    save_trained_weights,
)
from fastcomposer.prompt import parse_prompt
from fastcomposer.training.base_module import OptimizerFactory, RecipeModule
from fastcomposer.training.face_losses.face_loss import FaceLoss
from fastcomposer.training.face_losses.readout import ReadOutLoss
from fastcomposer.training.precompute import frozen_digests
from fastcomposer.training.sharding import full_tensor, shard
from fastcomposer.training.timestep_density import TimestepDensity
from fastcomposer.utils.ranges import Fraction, Positive, Whole
from fastcomposer.utils.rng import Source, uniform


class FastComposerModule(RecipeModule):
    """Denoising and localization losses over a :class:`FastComposer` (docs/method.md).

    Args:
        model: Makes the model; called once, so that a bad setting is reported before weights are loaded.
        optimizer: Makes the optimizer from the trained parameters.
        train_backbone: Whether the denoising network is trained, or ``lora`` for a LoRA of it alone.
        lora: Settings of the LoRA; ``None`` for the defaults.
        train_fusion: Whether the fusion is trained.
        resampler_lr: Learning rate of the resampler and of the read-out, which start untrained; ``None`` for
            the optimizer's, which the router, with a loss of its own, always has.
        vision_layers: How many of the image encoder's last layers are trained.
        caption_dropout: Fraction of samples that lose caption and subjects.
        subject_dropout: Fraction of subjects that are left out, their word staying in the caption.
        timesteps: Where on the noise schedule samples are spent; ``None`` for as the base was trained.
        identity: Loss that compares the faces of x̂₀ and target; ``None`` for none.
        readout: Loss that compares what conditions the backbone with the faces of targets; ``None`` for none.
        reward: Loss that compares the faces of sampled images and targets; ``None`` for none.
        gradient_checkpointing: Trade time for memory.
        compile: Backend of :func:`torch.compile` for its blocks, such as ``inductor``, or ``None``.
        weights: Trained weights to start from, see :func:`load_trained_weights`; ``None`` for the base's own.
        export_precision: Of the finished weights, see :func:`save_trained_weights`.
        **recipe: Further arguments of :class:`RecipeModule`.
    """

    LOGGED: ClassVar[tuple[str, ...]] = (
        "train/loss",
        "train/denoise_loss",
        "train/localization_loss",
        "train/identity_loss",
        "train/readout_loss",
        "train/matching_loss",
        "train/routing_loss",
        "val/denoise_loss",
        "val/localization_loss",
    )

    def __init__(
        self,
        model: Callable[[], FastComposer] | FastComposer,
        optimizer: OptimizerFactory,
        train_backbone: bool | Literal["lora"] = True,
        train_fusion: bool = True,
        resampler_lr: Positive | None = None,
        vision_layers: Whole = 2,
        caption_dropout: Fraction = 0.1,
        subject_dropout: Fraction = 0.1,
        timesteps: TimestepDensity | None = None,
        identity: FaceLoss | None = None,
        readout: ReadOutLoss | None = None,
        reward: FaceLoss | None = None,
        gradient_checkpointing: bool = False,
        compile: str | None = None,
        weights: str | Path | None = None,
        export_precision: Precision = "float32",
        lora: LoRASettings | None = None,
        **recipe: Any,
    ) -> None:
        super().__init__(optimizer, **recipe)
        self.timesteps, self.identity, self.readout, self.reward = timesteps, identity, readout, reward
        if export_precision not in get_args(Precision):
            known = ", ".join(get_args(Precision))
            raise ValueError(f"method.export_precision={export_precision}: one of {known}")
        self.export_precision: Precision = export_precision
        for name, value in (("caption_dropout", caption_dropout), ("subject_dropout", subject_dropout)):
            if not 0 <= value <= 1:
                raise ValueError(f"method.{name}={value}: a probability between 0 and 1")
        if train_backbone not in (True, False, "lora"):
            raise ValueError(f"method.train_backbone={train_backbone}: true, false or lora")
        if not (train_backbone or train_fusion or vision_layers):
            raise ValueError(
                "nothing to train: method.train_backbone, train_fusion and vision_layers are all off"
            )
        if compile is not None:
            check_backend(compile)
            if gradient_checkpointing:
                raise ValueError(
                    "method.compile with method.gradient_checkpointing: a compiled block that is computed "
                    "again would not keep what it kept before; set one of them"
                )
        self.caption_dropout, self.subject_dropout = caption_dropout, subject_dropout
        self.resampler_lr = resampler_lr
        if weights is not None:
            self.trained_before = read_training_length(weights)
        self.model = model if isinstance(model, FastComposer) else model()
        if timesteps is not None:
            timesteps.check(self.model.noise_scheduler.config.num_train_timesteps)
        _check_room(self.model)
        if weights is not None:
            load_trained_weights(self.model, weights, keep_fusion=True)
        backbone = (lora or LoRASettings()) if train_backbone == "lora" else train_backbone
        self.model.set_trainable(backbone=backbone, fusion=train_fusion, vision_layers=vision_layers)
        if gradient_checkpointing:
            self.model.enable_gradient_checkpointing()
        if compile is not None:
            compile_blocks(self.model.backbone, compile)
        if self.model.tokenizer is None:
            raise ValueError("the base has no tokenizer/, which training needs for the empty prompt")
        empty = parse_prompt("", self.model.prompt_tokenizer).all_ids
        self.empty_prompt: Tensor
        self.register_buffer("empty_prompt", torch.tensor(empty), persistent=False)
        self._empty_states: TextStates | None = None
        if readout is not None:
            readout.make_head(self.model, self._states_of_empty_prompt().tokens.shape[-1])
        self._sharded = False

    def setup(self, stage: str) -> None:
        """Refuse precomputed moments and states of other networks."""
        cache = getattr(self.trainer.datamodule, "cache", None)  # type: ignore[attr-defined]
        if cache is not None:
            cache.check_weights(frozen_digests(self.model))

    def configure_model(self) -> None:
        """Shard the trained weights over the devices, where the strategy asks for it."""
        if self.device_mesh is None or self._sharded:
            return
        if self.readout is not None:
            raise ValueError("trainer=fsdp does not train the read-out: take readout=none or trainer=ddp")
        shard(self.model, self.device_mesh["data_parallel"])
        # on_load_checkpoint compares the names of the weights: frozen ones come from the base.
        self._sharded, self.strict_loading = True, False

    def parameter_groups(self) -> list[Any]:
        """One group, and another of what starts untrained where that has a learning rate of its own."""
        found = self.trained_parameters()
        own = [p for name, p in found.items() if ".resampler." in name or name.startswith("readout.")]
        if self.resampler_lr is None or not own:
            return super().parameter_groups()
        others = [p for p in found.values() if all(p is not one for one in own)]
        return [{"params": others}, {"params": own, "lr": self.resampler_lr}]

    def training_step(self, batch: SubjectBatch, batch_idx: int) -> Tensor:
        """Drop some conditions, add noise, and measure the losses.

        A loss of faces is logged as its mean over the processes whose batch has faces, NaN where none has.
        """
        generators = self.sample_generators(len(batch))
        batch = drop_conditions(
            batch,
            self.empty_prompt,
            self.caption_dropout,
            self.subject_dropout,
            generators,
            None if batch.text_embeds is None else self._states_of_empty_prompt(),
        )
        timesteps = weight = None
        if self.timesteps is not None:
            timesteps = self.timesteps.draw(len(batch), self.device, generators)
            weight = self.timesteps.weight(timesteps)
        losses = self.model.training_losses(
            batch,
            timesteps=timesteps,
            generator=generators,
            skip_empty=True,
            mask_generator=self.mask_generator(),
            sample_weight=weight,
        )
        total = losses.loss
        values: dict[str, Tensor] = {}
        terms = {"identity": self.identity, "readout": self.readout, "matching": self.reward}
        for name, faces in terms.items():
            if faces is not None:
                loss = faces(self.model, batch, losses, self._states_of_empty_prompt(), generators)
                total = total + faces.weight_at(self.global_step) * loss
                values |= {f"train/{name}_loss": loss, name: (loss != 0).float()}
        if self.model.fusion.kind.routing:
            values["train/routing_loss"] = losses.routing_loss
        values |= {"train/loss": total, "train/denoise_loss": losses.denoise_loss}
        values["train/localization_loss"] = losses.localization_loss
        values = self.over_processes(values)
        for name in terms.keys() & values.keys():
            values[f"train/{name}_loss"] = values[f"train/{name}_loss"] / values.pop(name)
        self.log_dict(values, prog_bar=True, batch_size=len(batch))
        return total

    def validation_step(self, batch: SubjectBatch, batch_idx: int) -> None:
        """Measure both losses on held-out records with noise that is the same each time."""
        generator = Generator(self.device).manual_seed(batch_idx)
        with self.averaged_weights():
            losses = self.model.training_losses(batch, generator=generator, skip_empty=True)
        values = {"val/denoise_loss": losses.denoise_loss, "val/localization_loss": losses.localization_loss}
        self.log_dict(values, batch_size=len(batch), sync_dist=True)

    def _states_of_empty_prompt(self) -> TextStates:
        """States of one empty prompt, computed once on a device: the text encoders are frozen."""
        if self._empty_states is None or self._empty_states.tokens.device != self.empty_prompt.device:
            with torch.no_grad():
                self._empty_states = self.model.text.encode(self.empty_prompt[None])
        return self._empty_states

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep trained weights, their kind of fusion and LoRA, and what of earlier weights is frozen."""
        super().on_save_checkpoint(checkpoint)
        trained = self.model.trainable_state_dict().keys()
        changed = self.model.changed_state_dict().items()
        checkpoint["kept"] = {name: value for name, value in changed if name not in trained}
        checkpoint["fusion"] = self.model.fusion.kind.metadata()
        settings = lora_settings(self.model.backbone)
        checkpoint["lora"] = settings and settings.metadata()

    def export(self, folder: str | Path) -> Path:
        """Write the trained weights, averaged where there is an EMA; all processes have to call it."""
        file = Path(folder) / WEIGHTS_NAME
        with self.averaged_weights():
            state = {name: full_tensor(value) for name, value in self.model.changed_state_dict().items()}
            if not self._sharded or self.trainer.is_global_zero:
                save_trained_weights(self.model, file, self.export_precision, self.length, state)
        return file


def _check_room(model: FastComposer) -> None:
    """Refuse more tokens of a subject than a prompt without further words holds beside its start and end."""
    num_tokens, most = model.fusion.kind.num_tokens, model.fusion.config.max_subjects or 1
    length = model.text_encoder.config.max_position_embeddings
    if num_tokens > 1 and most * num_tokens + 2 > length:
        raise ValueError(
            f"method.model.fusion.num_tokens={num_tokens} with model.max_subjects={most}: a prompt holds "
            f"{length} tokens, start and end included; lower one of them"
        )


def drop_conditions(
    batch: SubjectBatch,
    empty_prompt: Tensor,
    caption_dropout: float,
    subject_dropout: float,
    generator: Source,
    empty_states: TextStates | None = None,
) -> SubjectBatch:
    """Drop caption and subjects of some samples, and single subjects of others (docs/method.md).

    Args:
        batch: B samples with K slots.
        empty_prompt: (T,) token ids of the empty prompt.
        caption_dropout: Probability that a sample loses both.
        subject_dropout: Probability that a subject is left out.
        generator: Source of random numbers; a list has one for each sample.
        empty_states: Text states of the empty prompt, for a batch that carries text states.
    """
    device = batch.input_ids.device
    lost = uniform((len(batch), 1), device, generator) < caption_dropout
    kept = uniform(batch.subject_present.shape, device, generator) >= subject_dropout
    states, pooled = batch.text_embeds, batch.pooled_text_embeds
    if states is not None:
        assert empty_states is not None
        empty = empty_states.tokens[:, : states.shape[1], : states.shape[2]]  # a cache has no zeros for T5
        states = torch.where(lost[..., None], empty, states)
        if pooled is not None:
            pooled = torch.where(lost, empty_states.pooled, pooled)  # type: ignore[arg-type]
    return batch.replace(
        input_ids=torch.where(lost, empty_prompt, batch.input_ids),
        subject_present=batch.subject_present & kept & ~lost,
        text_embeds=states,
        pooled_text_embeds=pooled,
    )
