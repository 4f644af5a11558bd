"""Where a model's parts come from: a diffusers folder or hub id, checked before any weight is read."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import diffusers
import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from torch import nn
from transformers import (
    CLIPImageProcessor,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTokenizer,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
)

from fastcomposer.models.conditioning import check_widths
from fastcomposer.models.fusion import FusionConfig, SubjectFusion

DEFAULT_IMAGE_ENCODER = "openai/clip-vit-large-patch14"
_HUB_ID = re.compile(r"[\w-][\w.-]*(/[\w.-]+)?")
_Read = TypeVar("_Read")


@dataclass(frozen=True)
class ModelSource:
    """A base model and an image encoder whose configurations have been read and fit each other.

    Attributes:
        base: Folder in the diffusers layout, or hub id.
        index: The base's ``model_index.json``.
        image_encoder: Folder or hub id of the image encoder.
        image_encoder_subfolder: Folder inside ``image_encoder``; empty where it is the encoder itself.
        text_config: Configuration of the text encoder.
        vision_config: Configuration of the image encoder.
        options: Arguments for every hub download.
    """

    base: str
    index: Mapping[str, Any]
    image_encoder: str
    image_encoder_subfolder: str
    text_config: CLIPTextConfig
    vision_config: CLIPVisionConfig
    options: Mapping[str, Any] = field(default_factory=dict)

    def has(self, component: str) -> bool:
        """Whether the base declares a component."""
        return _declares(self.index, component)

    def load(self, cls: Any, subfolder: str, *, base: str | None = None, **kwargs: Any) -> Any:
        """Load a network with its weights.

        Raises:
            ValueError: If the file lacks some of them, which would stay random.
        """
        place = base or self.base
        kwargs = {**self.options, **kwargs, "subfolder": subfolder, "output_loading_info": True}
        module, info = cls.from_pretrained(place, **kwargs)
        missing = sorted(map(str, info["missing_keys"]))
        if missing:
            listed = ", ".join(missing[:12]) + (" …" if len(missing) > 12 else "")
            raise ValueError(f"{cls.__name__} from {place} lacks {len(missing)} weights: {listed}")
        return module

    def tokenizer(self) -> CLIPTokenizer | None:
        """The base's tokenizer, or ``None`` where it has none."""
        if not self.has("tokenizer"):
            return None
        return CLIPTokenizer.from_pretrained(self.base, subfolder="tokenizer", **self.options)

    def noise_scheduler(self) -> DDPMScheduler:
        """The scheduler that adds noise in training, from the base's scheduler configuration."""
        return DDPMScheduler.from_pretrained(self.base, subfolder="scheduler", **self.options)

    def sampling_scheduler(self) -> Any:
        """The base's own scheduler, for sampling."""
        cls = getattr(diffusers, self.index["scheduler"][1])
        return cls.from_pretrained(self.base, subfolder="scheduler", **self.options)

    def safety_checker(self) -> tuple[Any, CLIPImageProcessor | None]:
        """The base's safety checker with its feature extractor, or two times ``None``."""
        if not self.has("safety_checker"):
            return None, None
        from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker

        options = dict(self.options)
        checker = StableDiffusionSafetyChecker.from_pretrained(
            self.base, subfolder="safety_checker", **options
        )
        extractor = CLIPImageProcessor.from_pretrained(self.base, subfolder="feature_extractor", **options)
        return checker, extractor


def open_source(base: str | Path, image_encoder: str | Path | None, **options: Any) -> ModelSource:
    """Find a base model and an image encoder and check that they fit, reading configurations only.

    Args:
        base: Folder in the diffusers layout, or hub id.
        image_encoder: Folder or hub id, of an encoder or of a model with an ``image_encoder/``; ``None`` is
            the base's own where it has one, else CLIP ViT-L/14.
        **options: Arguments for hub downloads: ``revision``, ``local_files_only``, ``cache_dir``, ``token``.

    Raises:
        FileNotFoundError: If one of them does not exist; the message names the path.
        ValueError: If the image encoder does not project to the width of the text encoder.
    """
    base = _checked(base, "base model")
    encoder = None if image_encoder is None else _checked(image_encoder, "image encoder")
    index: Any = _read("base model", base, lambda: DiffusionPipeline.load_config(base, **options))
    subfolder = ""
    if encoder is None:
        own = _declares(index, "image_encoder")
        encoder, subfolder = (base, "image_encoder") if own else (DEFAULT_IMAGE_ENCODER, "")
    elif (Path(encoder) / "image_encoder").is_dir():
        subfolder = "image_encoder"
    text = _read(
        "text encoder of base model",
        base,
        lambda: CLIPTextConfig.from_pretrained(base, subfolder="text_encoder", **options),
    )
    vision = _read(
        "image encoder",
        encoder,
        lambda: CLIPVisionConfig.from_pretrained(encoder, subfolder=subfolder, **options),
    )
    check_widths(text, vision, base=base, image_encoder=encoder)
    return ModelSource(base, index, encoder, subfolder, text, vision, options)


def existing_file(path: str | Path, what: str) -> Path:
    """Return the path of a file.

    Raises:
        FileNotFoundError: If it is not there.
    """
    file = Path(path).expanduser()
    if not file.is_file():
        raise FileNotFoundError(f"{what} {file} does not exist")
    return file


def load_networks(
    source: ModelSource,
    max_subjects: int | None,
    dtype: torch.dtype | None,
    kind: FusionConfig | None = None,
) -> dict[str, Any]:
    """Load every network; the fusion is new unless the base is a saved FastComposer pipeline.

    Raises:
        ValueError: If weights are missing, or the saved pipeline's fusion is of another kind than asked for.
    """
    if kind is not None and source.has("fusion"):
        own = SubjectFusion.load_config(source.base, subfolder="fusion", **source.options)
        saved = FusionConfig(own.get("mode", "mlp"), own.get("pooling", "mean"))
        if saved != kind:
            raise ValueError(
                f"the pipeline {source.base} brings a fusion of mode {saved.mode} that pools by "
                f"{saved.pooling}: set method.model.fusion to these"
            )
    kind = kind or FusionConfig()
    dtype = dtype or torch.float32
    networks = {
        "vae": source.load(AutoencoderKL, "vae", torch_dtype=dtype),
        "unet": source.load(UNet2DConditionModel, "unet", torch_dtype=dtype),
        "text_encoder": source.load(CLIPTextModel, "text_encoder", dtype=dtype),
        "image_encoder": source.load(
            CLIPVisionModelWithProjection,
            source.image_encoder_subfolder,
            base=source.image_encoder,
            dtype=dtype,
        ),
    }
    if source.has("fusion"):
        return networks | {"fusion": source.load(SubjectFusion, "fusion", torch_dtype=dtype)}
    fusion = SubjectFusion(source.text_config.hidden_size, max_subjects, kind.mode, kind.pooling)
    return networks | {"fusion": fusion if dtype == torch.float32 else fusion.to(dtype)}


def configured_networks(source: ModelSource, max_subjects: int | None) -> dict[str, nn.Module]:
    """Build every network from its configuration, for weights that come from elsewhere."""

    def configured(cls: Any, subfolder: str) -> nn.Module:
        return cls.from_config(cls.load_config(source.base, subfolder=subfolder, **source.options))

    return {
        "vae": configured(AutoencoderKL, "vae"),
        "unet": configured(UNet2DConditionModel, "unet"),
        "text_encoder": CLIPTextModel(source.text_config),
        "image_encoder": CLIPVisionModelWithProjection(source.vision_config),
        "fusion": SubjectFusion(source.text_config.hidden_size, max_subjects),
    }


def _declares(index: Mapping[str, Any], component: str) -> bool:
    return bool((index.get(component) or (None,))[0])


def _checked(path: str | Path, what: str) -> str:
    """The path of an existing folder, or something that may be a hub id."""
    folder = Path(path).expanduser()
    if folder.is_dir():
        return str(folder)
    if isinstance(path, Path) or folder.exists() or not _HUB_ID.fullmatch(path):
        raise FileNotFoundError(f"{what} {folder}: there is no such folder")
    return path


def _read(what: str, place: str, read: Callable[[], _Read]) -> _Read:
    try:
        return read()
    except (OSError, ValueError) as error:
        where = "" if Path(place).is_dir() else ": there is no such folder, and the hub did not give it"
        raise FileNotFoundError(f"{what} {place} has no readable configuration{where} ({error})") from error
