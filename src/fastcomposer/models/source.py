"""A base model whose configurations have been read: the parts that a model is made of."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers.models.modeling_utils import ModelMixin as DiffusersModel
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from torch import nn
from transformers import (
    CLIPImageProcessor,
    CLIPTextConfig,
    CLIPTokenizer,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
)

from fastcomposer.models.text import ENCODERS


@dataclass(frozen=True)
class ModelSource:
    """A base model and an image encoder whose configurations have been read and fit each other.

    Attributes:
        base: Where the weights are: a folder in the diffusers layout, or a hub id.
        configs: Where the configurations are; the base itself but for other sources than this one.
        index: The ``model_index.json`` there.
        image_encoder: Folder or hub id of the image encoder.
        image_encoder_subfolder: Folder inside ``image_encoder``; empty where it is the encoder itself.
        text_configs: Configuration of each text encoder.
        vision_config: Configuration of the image encoder.
        options: Arguments for every hub download.
        variant: Which of the base's files of weights to load, such as ``fp16``; ``None`` for the plain ones.
    """

    base: str
    configs: str
    index: Mapping[str, Any]
    image_encoder: str
    image_encoder_subfolder: str
    text_configs: tuple[CLIPTextConfig, ...]
    vision_config: CLIPVisionConfig
    options: Mapping[str, Any] = field(default_factory=dict)
    variant: str | None = None

    def has(self, component: str) -> bool:
        """Whether the base declares a component."""
        return declares(self.index, component)

    @property
    def text_encoders(self) -> dict[str, Any]:
        """Names and classes of the base's text encoders."""
        return {name: cls for name, cls in ENCODERS.items() if self.has(name)}

    def text_config_of(self, tokenizer: str) -> CLIPTextConfig | None:
        """Configuration of the text encoder that reads ``tokenizer`` or ``tokenizer_2``."""
        configs = zip(self.text_encoders, self.text_configs, strict=True)
        return {name.replace("text_encoder", "tokenizer"): config for name, config in configs}.get(tokenizer)

    def config(self, cls: Any, subfolder: str) -> Any:
        """Read the configuration of a network, tokenizer or scheduler of diffusers."""
        return cls.load_config(self.configs, subfolder=subfolder, **self.options)

    def configured(self, cls: Any, subfolder: str) -> nn.Module:
        """Build a network from its configuration, untrained."""
        if cls is CLIPVisionModelWithProjection:
            return cls(self.vision_config)
        if subfolder in ENCODERS:
            return cls(self.text_configs[[*self.text_encoders].index(subfolder)])
        return cls.from_config(self.config(cls, subfolder))

    def load(self, cls: Any, subfolder: str, dtype: torch.dtype = torch.float32) -> Any:
        """Load a network with its weights.

        Raises:
            FileNotFoundError: If the base has no files of the variant.
            ValueError: If the file lacks some of them, which would stay random.
        """
        place, variant = self.base, self.variant
        if cls is CLIPVisionModelWithProjection:
            place, subfolder = self.image_encoder, self.image_encoder_subfolder
            variant = variant if place == self.base else None  # another model has files of its own
        named = {"torch_dtype" if issubclass(cls, DiffusersModel) else "dtype": dtype, "variant": variant}
        try:
            with _without_report():
                module, info = cls.from_pretrained(
                    place, subfolder=subfolder, output_loading_info=True, **named, **self.options
                )
        except OSError as error:
            if variant is None:
                raise
            raise _without_variant(variant, place, subfolder) from error
        refuse_missing(cls, place, info["missing_keys"])
        return module

    def check_variant(self) -> None:
        """Refuse a folder that lacks files of the variant.

        Raises:
            FileNotFoundError: With the first part that has none.
        """
        parts = ["vae", "unet", *self.text_encoders]
        if self.image_encoder == self.base:
            parts.append(self.image_encoder_subfolder)
        for part in parts:
            folder = Path(self.base) / part
            if (
                self.variant is not None
                and folder.is_dir()
                and not any(folder.glob(f"*.{self.variant}[.-]*"))
            ):
                raise _without_variant(self.variant, self.base, part)

    def tokenizer(self, subfolder: str = "tokenizer") -> CLIPTokenizer | None:
        """A tokenizer of the base, or ``None`` where it has none."""
        if not self.has(subfolder):
            return None
        return CLIPTokenizer.from_pretrained(self.base, subfolder=subfolder, **self.options)

    def noise_scheduler(self) -> DDPMScheduler:
        """The scheduler that adds noise in training, from the base's scheduler configuration."""
        return DDPMScheduler.from_pretrained(self.configs, subfolder="scheduler", **self.options)

    def sampling_scheduler(self) -> Any:
        """The base's own scheduler, for sampling."""
        cls = getattr(diffusers, self.index["scheduler"][1])
        return cls.from_pretrained(self.configs, subfolder="scheduler", **self.options)

    def safety_checker(self) -> tuple[Any, CLIPImageProcessor | None]:
        """The base's safety checker with its feature extractor, or two times ``None``.

        Raises:
            ValueError: If its file lacks weights.
        """
        if not self.has("safety_checker"):
            return None, None
        from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker

        checker = ModelSource.load(self, StableDiffusionSafetyChecker, "safety_checker")  # never random
        options = dict(self.options)
        extractor = CLIPImageProcessor.from_pretrained(self.base, subfolder="feature_extractor", **options)
        return checker, extractor


def with_dtype(network: nn.Module, dtype: torch.dtype) -> nn.Module:
    """Return a network whose weights are of a type.

    The plain cast: that of diffusers' models warns of layers to keep in float32 even where there are none.
    """
    return nn.Module.to(network, dtype)


def _without_variant(variant: str, place: str, part: str) -> FileNotFoundError:
    return FileNotFoundError(f"model.variant={variant}: {part}/ of {place} has no weights of this variant")


@contextmanager
def _without_report() -> Iterator[None]:
    """Keep transformers from listing what a file has beyond a network, such as the text half of a CLIP.

    What is missing is refused by :func:`refuse_missing`; an error over shapes refers to the list.
    """
    log = logging.getLogger("transformers.modeling_utils")
    log.addFilter(_is_needed)
    try:
        yield
    finally:
        log.removeFilter(_is_needed)


def _is_needed(record: logging.LogRecord) -> bool:
    message = record.getMessage()
    return "LOAD REPORT" not in message or "MISMATCH" in message or "CONVERSION" in message


def refuse_missing(cls: Any, place: str, missing: Iterable[Any]) -> None:
    """Refuse weights that are not all there.

    Raises:
        ValueError: If any is missing; names the first.
    """
    names = sorted(map(str, missing))
    if names:
        listed = ", ".join(names[:12]) + (" …" if len(names) > 12 else "")
        raise ValueError(f"{cls.__name__} from {place} lacks {len(names)} weights: {listed}")


def existing_file(path: str | Path, what: str) -> Path:
    """Return the path of a file.

    Raises:
        FileNotFoundError: If it is not there.
    """
    file = Path(path).expanduser()
    if not file.is_file():
        raise FileNotFoundError(f"{what} {file} does not exist")
    return file


def declares(index: Mapping[str, Any], component: str) -> bool:
    """Whether a ``model_index.json`` names a component."""
    return bool((index.get(component) or (None,))[0])
