"""The networks of a FastComposer model: loaded, chosen for training, and saved."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, Self

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import Tensor, nn
from transformers import (
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPVisionModelWithProjection,
    T5EncoderModel,
)

from fastcomposer.models.conditioning import ReferenceNormalizer, check_widths, patch_shape
from fastcomposer.models.families import Family, family_of
from fastcomposer.models.fusion import Fusion, FusionConfig
from fastcomposer.models.loading import Weights, configured_networks, load_networks, open_source
from fastcomposer.models.lora import (
    LoRASettings,
    is_foreign,
    kept_lora,
    lora_parts,
    lora_settings,
    plain_name,
    set_lora,
)
from fastcomposer.models.published_checkpoint import (
    load_published,
    read_checkpoint,
    write_published,
)
from fastcomposer.models.routing import routed_widths
from fastcomposer.models.source import ModelSource, with_dtype
from fastcomposer.models.text import ENCODERS, TextConditioner, sequence_length
from fastcomposer.prompt import JointTokenizer
from fastcomposer.utils.files import existing_file
from fastcomposer.utils.ranges import Count

_NETWORKS = ("vae", "unet", "transformer", *ENCODERS, "image_encoder", "fusion")


class Networks(nn.Module):
    """Everything of the model but its training losses and pipelines.

    Args:
        vae: Autoencoder.
        unet: Denoising U-Net, or ``None`` with a transformer.
        text_encoder: CLIP text encoder.
        image_encoder: CLIP vision encoder with projection.
        fusion: Subject fusion of the text encoders' widths and that of the projection.
        noise_scheduler: Of training; its ``prediction_type`` is that of the U-Net.
        tokenizer: CLIP tokenizer; needed for prompts, not for batches.
        sampling_scheduler: Scheduler of the pipelines made from this model; the noise scheduler by default.
        source: Where the parts were loaded from.
        text_encoder_2: Second text encoder, of Stable Diffusion XL.
        tokenizer_2: Its tokenizer.
        zero_empty: See :class:`~fastcomposer.models.text.TextConditioner`.
        transformer: Denoising transformer in place of a U-Net.
        text_encoder_3: T5, of Stable Diffusion 3; may be left out.
        tokenizer_3: Its tokenizer.

    Attributes:
        replaced: Names of the tensors in which a checkpoint differs from the base.

    Raises:
        ValueError: If widths or the tokenizers' vocabularies differ, or one of two tokenizers is missing.
    """

    # diffusers gives its models' configurations no types.
    vae: Any
    unet: Any
    fusion: Any
    noise_scheduler: Any
    sampling_scheduler: Any

    def __init__(
        self,
        vae: AutoencoderKL,
        unet: UNet2DConditionModel | None,
        text_encoder: CLIPTextModel,
        image_encoder: CLIPVisionModelWithProjection,
        fusion: Fusion,
        noise_scheduler: Any,
        tokenizer: Any = None,
        sampling_scheduler: Any = None,
        source: ModelSource | None = None,
        text_encoder_2: CLIPTextModelWithProjection | None = None,
        tokenizer_2: Any = None,
        zero_empty: bool = False,
        transformer: Any = None,
        text_encoder_3: T5EncoderModel | None = None,
        tokenizer_3: Any = None,
    ) -> None:
        super().__init__()
        texts = (text_encoder, text_encoder_2, text_encoder_3)
        encoders = [encoder for encoder in texts if encoder is not None]
        check_widths([encoder.config for encoder in encoders], image_encoder.config, fusion)
        self.vae, self.unet, self.transformer = vae, unet, transformer
        self.text_encoder, self.text_encoder_2, self.text_encoder_3 = texts
        self.image_encoder, self.fusion = image_encoder, fusion
        self.noise_scheduler = noise_scheduler
        self.sampling_scheduler = sampling_scheduler or noise_scheduler
        self.tokenizer, self.tokenizer_2, self.tokenizer_3 = tokenizer, tokenizer_2, tokenizer_3
        self.source = source
        self.reference_normalizer = ReferenceNormalizer()
        self.replaced: set[str] = set()
        family = self.family  # refuses a scheduler that does not fit
        t5_shape = (sequence_length(family.settings), family.text_dims[0]) if family.T5 else None
        self.text = TextConditioner(*texts[:2], tokenizer, tokenizer_2, zero_empty, text_encoder_3, t5_shape)
        self._trained: list[nn.Module] = []
        self.set_trainable()

    @property
    def backbone(self) -> Any:
        """The denoising network."""
        return self.transformer if self.unet is None else self.unet

    @property
    def prompt_tokenizer(self) -> Any:
        """What captions are read by: CLIP's tokenizer, or with T5 a ``JointTokenizer``."""
        if self.text_encoder_3 is None:
            return self.tokenizer
        return JointTokenizer(self.tokenizer, self.tokenizer_3, sequence_length(self.family.settings))

    @property
    def family(self) -> Family:
        """What is particular to this kind of backbone."""
        settings = {} if self.source is None else self.source.index
        return family_of(self.backbone)(self.backbone, self.noise_scheduler, settings)

    @classmethod
    def from_pretrained(
        cls,
        base: str | Path,
        image_encoder: str | Path | None = None,
        *,
        architecture: str | Path | None = None,
        weights: Weights = "pretrained",
        variant: str | None = None,
        max_subjects: Count | None = 4,
        fusion: FusionConfig | None = None,
        t5: bool = True,
        dtype: torch.dtype | None = None,
        hub_options: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> Self:
        """Start from a base model, or continue from a saved FastComposer pipeline.

        Args:
            base: Folder in the diffusers layout, hub id, or single file (``.safetensors``, ``.ckpt``) of
                Stable Diffusion. A saved pipeline brings its own fusion.
            image_encoder: Folder or hub id of a CLIP vision encoder; by default the base's own
                ``image_encoder/``, else CLIP ViT-L/14.
            architecture: Folder with the configurations of a single file's or random model's parts, such as
                ``data/architectures/sd15``.
            weights: ``pretrained``, or ``random`` for the architecture with random weights, offline.
            variant: Which of the base's files to load, such as ``fp16`` for ``*.fp16.safetensors``; ``None``
                for those without a variant in their name. Not for an image encoder from elsewhere.
            max_subjects: Most subjects in one prompt, for a new fusion.
            fusion: Kind of a new fusion; the paper's by default.
            t5: Whether the T5 encoder of a base that has one is loaded; zeros replace its states where not.
            dtype: Data type of the weights; float32 by default.
            hub_options: ``revision``, ``local_files_only``, ``cache_dir`` or ``token`` for hub downloads.
            **options: Further arguments of the constructor.

        Raises:
            FileNotFoundError: If a folder does not exist; the message names it, and nothing has been loaded.
            ValueError: If a setting or part does not fit another.
        """
        source = open_source(
            base,
            image_encoder,
            architecture=architecture,
            weights=weights,
            variant=variant,
            t5=t5,
            **(hub_options or {}),
        )
        return cls._assembled(source, load_networks(source, max_subjects, dtype, fusion), options)

    @classmethod
    def from_published_checkpoint(
        cls,
        checkpoint: str | Path,
        *,
        base: str | Path,
        image_encoder: str | Path | None = None,
        architecture: str | Path | None = None,
        weights: Weights = "pretrained",
        variant: str | None = None,
        t5: bool = True,
        max_subjects: int | None = 4,
        dtype: torch.dtype | None = None,
        hub_options: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> Self:
        """Load the released weights; of the base only configurations and tokenizer are read.

        Args:
            checkpoint: ``pytorch_model.bin`` in the released layout, or the same as ``.safetensors``.
            base: See :meth:`from_pretrained`.
            image_encoder: Only its configuration is read, and the tokenizer beside it where the base is a
                single file.
            architecture: See :meth:`from_pretrained`.
            weights: See :meth:`from_pretrained`; ``random`` takes the architecture alone.
            variant: Of the base's safety checker.
            t5: See :meth:`from_pretrained`.
            max_subjects: Most subjects in one prompt; the released model was trained with at most 4.
            dtype: See :meth:`from_pretrained`.
            hub_options: See :meth:`from_pretrained`.
            **options: Further arguments of the constructor.

        Raises:
            FileNotFoundError: If a file or folder does not exist; the message names it.
            ValueError: If the file is no checkpoint or does not fit the base; every mismatch is listed.
        """
        existing_file(checkpoint, "checkpoint")
        source = open_source(
            base,
            image_encoder,
            architecture=architecture,
            weights=weights,
            variant=variant,
            t5=t5,
            **(hub_options or {}),
        )
        networks = configured_networks(source, max_subjects)
        load_published(networks, read_checkpoint(checkpoint), str(checkpoint))
        if dtype is not None:
            networks = {name: with_dtype(network, dtype) for name, network in networks.items()}
        model = cls._assembled(source, networks, options)
        model.replaced = {name for name, _ in model.named_parameters()}
        return model

    @classmethod
    def _assembled(cls, source: ModelSource, networks: Mapping[str, Any], options: Mapping[str, Any]) -> Self:
        return cls(
            **{"unet": None, **networks},
            noise_scheduler=source.noise_scheduler(),
            tokenizer=source.tokenizer(),
            tokenizer_2=source.tokenizer("tokenizer_2"),
            tokenizer_3=source.tokenizer("tokenizer_3"),
            zero_empty=bool(source.index.get("force_zeros_for_empty_prompt", False)),
            sampling_scheduler=source.sampling_scheduler(),
            source=source,
            **options,
        )

    def set_trainable(
        self, *, backbone: bool | LoRASettings = True, fusion: bool = True, vision_layers: int = 2
    ) -> None:
        """Choose what is trained; everything else is frozen and stays in eval mode.

        Args:
            backbone: Whether the denoising network is trained, or settings of a LoRA that is trained in its
                place, and added where there is none.
            fusion: Whether the fusion is trained.
            vision_layers: How many of the image encoder's last transformer layers are trained (paper: 2).

        Raises:
            ValueError: If the image encoder has fewer layers, or there is a LoRA of other settings or one
                that would be trained together with its backbone.
        """
        layers = self.image_encoder.vision_model.encoder.layers
        if not 0 <= vision_layers <= len(layers):
            raise ValueError(f"vision_layers must lie in [0, {len(layers)}], not {vision_layers}")
        adapters: list[nn.Module] = []
        present = lora_settings(self.backbone)
        if backbone is True and present is not None:
            raise ValueError("the weights bring a LoRA: set method.train_backbone=lora, or false")
        if isinstance(backbone, LoRASettings):
            wanted = backbone.resolved(self.family.LORA_TARGETS)
            if present is not None and present != wanted:
                targets = ",".join(present.targets or ())
                raise ValueError(
                    f"the weights bring a LoRA of other settings: set method.lora.rank={present.rank} "
                    f"method.lora.alpha={present.alpha} 'method.lora.targets=[{targets}]'"
                )
            set_lora(self.backbone, wanted)
            adapters = lora_parts(self.backbone)
        self.requires_grad_(False)
        self._trained = [*layers[len(layers) - vision_layers :], *adapters]
        self._trained += [self.backbone] if backbone is True else []
        self._trained += [self.fusion] if fusion else []
        for module in self._trained:
            module.requires_grad_(True)
        self.train(self.training)

    def train(self, mode: bool = True) -> Self:
        """Set training mode; frozen parts stay in eval mode."""
        super().train(False)
        self.training = mode
        for module in self._trained:
            module.train(mode)
        return self

    def adopt_fusion(self, kind: FusionConfig) -> None:
        """Replace the fusion by a new one of another kind, trained or frozen as the present one is."""
        old = self.fusion
        if old.kind == kind:
            return
        config = {name: value for name, value in old.config.items() if not name.startswith("_")}
        patches = patch_shape(self.image_encoder.config) if kind.num_tokens > 1 else None
        own = {name: value for name, value in asdict(kind).items() if name != "routing"}
        routed = routed_widths(self.backbone) if kind.routing else None
        new = type(old)(**{**config, **own, "patches": patches, "routed": routed})
        nn.Module.to(new, old.device, old.dtype)  # diffusers' own warns of modules to keep in float32: none
        new.requires_grad_(next(old.parameters()).requires_grad)
        self._trained = [new if module is old else module for module in self._trained]
        self.fusion = new.train(old.training)

    @contextmanager
    def kept_on_error(self) -> Iterator[None]:
        """Give the model the fusion and the LoRA back that it had if the block fails."""
        fusion, trained = self.fusion, self._trained
        try:
            with kept_lora(self.backbone):
                yield
        except BaseException:
            self.fusion, self._trained = fusion, trained
            raise

    def trainable_parameters(self) -> Iterator[nn.Parameter]:
        """Parameters that are trained."""
        return (parameter for parameter in self.parameters() if parameter.requires_grad)

    def trainable_state_dict(self) -> dict[str, Tensor]:
        """Trained tensors only, by :func:`~fastcomposer.models.lora.plain_name`."""
        named = self.named_parameters()
        return {plain_name(name): value.detach() for name, value in named if value.requires_grad}

    def changed_state_dict(self) -> dict[str, Tensor]:
        """Tensors that are trained, were replaced by a checkpoint, or no base has, by plain name.

        The last are the fusion's and a LoRA's; adapters that a pipeline has loaded are left out.
        """
        # Not by requires_grad: peft turns it off where a pipeline loads adapters.
        modules = [*self._trained, self.fusion, *lora_parts(self.backbone)]
        written = {id(value) for module in modules for value in module.parameters()}
        named = {plain_name(name): value for name, value in self.named_parameters()}
        return {
            name: value.detach()
            for name, value in named.items()
            if (id(value) in written or name in self.replaced) and not is_foreign(name)
        }

    def networks(self) -> dict[str, nn.Module]:
        """Networks by name."""
        networks = {name: getattr(self, name) for name in _NETWORKS}
        return {name: network for name, network in networks.items() if network is not None}

    def pipeline_parts(self) -> dict[str, Any]:
        """Components of any pipeline of this model: networks, tokenizer, and a scheduler of its own."""
        scheduler = type(self.sampling_scheduler).from_config(self.sampling_scheduler.config)
        return {**self.networks(), "tokenizer": self.tokenizer, "scheduler": scheduler}

    def save_published_checkpoint(self, path: str | Path) -> Path:
        """Write the weights in the layout of the released ``pytorch_model.bin``.

        Raises:
            ValueError: If the fusion is of a kind that the released code does not have, or a network has
                adapters.
        """
        for name, network in self.networks().items():
            if adapters := [*getattr(network, "peft_config", ())]:
                raise ValueError(
                    f"the released layout has no LoRA, and {name} has {adapters}: save_trained_weights keeps "
                    "the trained one, pipeline.delete_adapters removes others"
                )
        if self.unet is None:
            raise ValueError("the released layout is that of a model with a U-Net")
        if self.fusion.kind != FusionConfig():
            raise ValueError(f"the released layout has the paper's fusion alone, not {self.fusion.kind}")
        return write_published(self.networks(), path)
