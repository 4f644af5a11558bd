"""Sources of a model's parts: a folder or hub id, a single file, or an architecture with random weights."""

from __future__ import annotations

import json
import logging
import math
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers.loaders.single_file_utils import (
    create_diffusers_clip_model_from_ldm,
    create_diffusers_t5_model_from_checkpoint,
    is_t5_in_single_file,
)
from diffusers.models.modeling_utils import ModelMixin
from torch import nn
from transformers import (  # type: ignore[attr-defined]
    CLIPImageProcessor,
    CLIPTextConfig,
    CLIPTokenizer,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
    T5Config,
    T5TokenizerFast,
)

from fastcomposer.models.base_files import declares
from fastcomposer.models.families import Family, family_of_base
from fastcomposer.models.published_checkpoint import read_saved
from fastcomposer.models.text import ENCODERS
from fastcomposer.utils.assets import packaged
from fastcomposer.utils.network_files import check_finite, naming_damage

# Merges of the embedded base: CLIP's own 48 894 are not in this repository.
_WORDS = packaged("data/mini/tokenizer/tokenizer.json")


@dataclass(frozen=True)
class ModelSource:
    """A base model and an image encoder whose configurations have been read and fit each other.

    Attributes:
        base: Folder in the diffusers layout or hub id of the weights.
        configs: Folder or hub id of the configurations; the base itself but for the other sources.
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
    text_configs: tuple[Any, ...]
    vision_config: CLIPVisionConfig
    options: Mapping[str, Any] = field(default_factory=dict)
    variant: str | None = None

    def has(self, component: str) -> bool:
        """Whether the base declares a component."""
        return declares(self.index, component)

    @property
    def family(self) -> type[Family]:
        """Family of the base's denoising network."""
        return family_of_base(self.index)

    @property
    def text_encoders(self) -> dict[str, Any]:
        """Names and classes of the base's text encoders."""
        known = {cls.__name__: cls for cls in ENCODERS.values()}
        return {
            name: known.get(self.index[name][1], usual) for name, usual in ENCODERS.items() if self.has(name)
        }

    def text_config_of(self, tokenizer: str) -> CLIPTextConfig | T5Config | None:
        """Configuration of the text encoder of ``tokenizer``, ``tokenizer_2`` or ``tokenizer_3``."""
        configs = zip(self.text_encoders, self.text_configs, strict=True)
        return {name.replace("text_encoder", "tokenizer"): config for name, config in configs}.get(tokenizer)

    def config(self, cls: Any, subfolder: str) -> Any:
        """Read the configuration of a network, tokenizer or scheduler of diffusers."""
        with naming_damage(f"configuration {subfolder} of", self.configs):
            return cls.load_config(self.configs, subfolder=subfolder, **self.options)

    def configured(self, cls: Any, subfolder: str) -> nn.Module:
        """Build a network from its configuration, untrained."""
        if cls is CLIPVisionModelWithProjection:
            return cls(self.vision_config)
        if subfolder in ENCODERS:
            return cls(self.text_configs[[*self.text_encoders].index(subfolder)])
        config = self.config(cls, subfolder)
        with naming_damage(f"configuration {subfolder} of", self.configs):
            return cls.from_config(config)

    def load(self, cls: Any, subfolder: str, dtype: torch.dtype = torch.float32) -> Any:
        """Load a network with its weights.

        Raises:
            FileNotFoundError: If the base has no files of the variant.
            ValueError: If the files lack weights, which would stay random.
        """
        base, variant = self.base, self.variant
        if cls is CLIPVisionModelWithProjection:
            base, subfolder = self.image_encoder, self.image_encoder_subfolder
            variant = variant if base == self.base else None  # another model has files of its own
        named = {"torch_dtype" if issubclass(cls, ModelMixin) else "dtype": dtype, "variant": variant}
        try:
            with _without_report(), naming_damage(f"{subfolder or cls.__name__} of", base):
                module, info = cls.from_pretrained(
                    base, subfolder=subfolder, output_loading_info=True, **named, **self.options
                )
        except OSError as error:
            if variant is None:
                raise
            raise _without_variant(variant, base, subfolder) from error
        _refuse_missing(cls, base, info["missing_keys"])
        check_finite(module.state_dict(), f"{subfolder or cls.__name__} of", base)
        return module

    def check_variant(self) -> None:
        """Refuse a folder that lacks files of the variant by ``FileNotFoundError``, naming the first part."""
        if self.variant is None:
            return
        parts = ["vae", self.family.NAME, *self.text_encoders]
        if self.image_encoder == self.base:
            parts.append(self.image_encoder_subfolder)
        for part in parts:
            folder = Path(self.base) / part
            if folder.is_dir() and not any(folder.glob(f"*.{self.variant}[.-]*")):
                raise _without_variant(self.variant, self.base, part)

    def tokenizer(self, subfolder: str = "tokenizer") -> CLIPTokenizer | T5TokenizerFast | None:
        """A tokenizer of the base, or ``None`` where it has none."""
        if not self.has(subfolder):
            return None
        config = self.text_config_of(subfolder)
        size = None if config is None else config.vocab_size
        return read_tokenizer(self.base, subfolder, size, **self.options)

    def noise_scheduler(self) -> Any:
        """The scheduler of training, from the base's scheduler configuration."""
        with naming_damage("scheduler of", self.configs):
            return self.family.SCHEDULER.from_pretrained(self.configs, subfolder="scheduler", **self.options)

    def sampling_scheduler(self) -> Any:
        """The base's own scheduler, for sampling."""
        with naming_damage("scheduler of", self.configs):
            cls = getattr(diffusers, self.index["scheduler"][1])
            return cls.from_pretrained(self.configs, subfolder="scheduler", **self.options)

    def safety_checker(self) -> tuple[Any, CLIPImageProcessor | None]:
        """The base's safety checker with its feature extractor, or two times ``None``."""
        if not self.has("safety_checker"):
            return None, None
        from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker

        checker = ModelSource.load(self, StableDiffusionSafetyChecker, "safety_checker")  # never random
        options = dict(self.options)
        extractor = CLIPImageProcessor.from_pretrained(self.base, subfolder="feature_extractor", **options)
        return checker, extractor


class SingleFileSource(ModelSource):
    """A single file in Stability's layout, with an architecture's configurations and CLIP's tokenizer.

    T5's tokenizer is in the architecture's ``tokenizer_3/``.
    """

    def load(self, cls: Any, subfolder: str, dtype: torch.dtype = torch.float32) -> Any:
        """Load a network with its weights.

        Raises:
            ValueError: If the file is of another architecture, or T5 is wanted and not in it.
        """
        if cls is CLIPVisionModelWithProjection:
            return super().load(cls, subfolder, dtype)
        config: dict[str, Any] = {"config": self.configs, "subfolder": subfolder, "local_files_only": True}
        checkpoint = read_saved(Path(self.base), "base model")
        while isinstance(checkpoint, Mapping) and "state_dict" in checkpoint:
            checkpoint = checkpoint["state_dict"]
        t5 = subfolder == "text_encoder_3"
        if t5 and not is_t5_in_single_file(checkpoint):
            raise ValueError(f"model.t5=true: the file {self.base} holds no T5; set model.t5=false")
        try:
            if issubclass(cls, ModelMixin):
                network = cls.from_single_file(checkpoint, **config)
            elif t5:
                network = create_diffusers_t5_model_from_checkpoint(cls, checkpoint, **config)
                network.set_input_embeddings(network.shared)  # the file holds them once
            else:
                network = create_diffusers_clip_model_from_ldm(cls, checkpoint, **config)
        except NotImplementedError as error:  # a missing tensor has a shape and no numbers
            raise ValueError(
                f"{subfolder} of the file {self.base} lacks weights of architecture {self.configs}"
            ) from error
        except (LookupError, RuntimeError, ValueError, TypeError, AttributeError) as error:
            raise ValueError(
                f"{subfolder} of the file {self.base} does not fit architecture {self.configs}: {error}"
            ) from error
        _refuse_missing(cls, self.base, (n for n, value in network.state_dict().items() if value.is_meta))
        network = with_dtype(network, dtype)  # first, for weights in 8 bits have no extremes
        check_finite(network.state_dict(), f"{subfolder} of the file", self.base)
        return network

    def safety_checker(self) -> tuple[None, None]:
        """Two times ``None``: such a file has none."""
        return None, None

    def tokenizer(self, subfolder: str = "tokenizer") -> CLIPTokenizer | T5TokenizerFast | None:
        """CLIP's beside the image encoder, padded as the text encoder's configuration says, or T5's."""
        config = self.text_config_of(subfolder)
        if config is None:
            return None
        if subfolder == "tokenizer_3":
            return read_tokenizer(self.configs, subfolder, config.vocab_size, **self.options)
        tokenizer = CLIPTokenizer.from_pretrained(self.image_encoder, **self.options)
        # Where there are no files, the library makes an empty one.
        if tokenizer.eos_token_id != config.eos_token_id:
            raise FileNotFoundError(
                f"no tokenizer of CLIP in {self.image_encoder}: a single file has none, so it must be there"
            )
        tokenizer.pad_token = tokenizer.convert_ids_to_tokens(config.pad_token_id)  # type: ignore[arg-type]
        return tokenizer


class RandomSource(ModelSource):
    """An architecture with random weights, the same ones each time: for tests and dry runs, offline."""

    def load(self, cls: Any, subfolder: str, dtype: torch.dtype = torch.float32) -> Any:
        """Build a network with random weights, which depend on the part's name alone."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(zlib.crc32(subfolder.encode()))
            return with_dtype(self.configured(cls, subfolder), dtype).eval()

    def tokenizer(self, subfolder: str = "tokenizer") -> CLIPTokenizer | T5TokenizerFast | None:
        """The architecture's tokenizer, or a stand-in for CLIP's where it has none."""
        if self.has(subfolder):
            return super().tokenizer(subfolder)
        config = self.text_config_of(subfolder)
        return _stand_in_tokenizer(config) if isinstance(config, CLIPTextConfig) else None


def read_tokenizer(base: str | Path, subfolder: str, size: int | None = None, **options: Any) -> Any:
    """Read a tokenizer of CLIP, or of T5 in ``tokenizer_3``.

    Raises:
        ValueError: If it is damaged or has ids beyond ``size``, the text encoder's.
    """
    with naming_damage(f"{subfolder} of", base):
        kind: Any = T5TokenizerFast if subfolder == "tokenizer_3" else CLIPTokenizer
        tokenizer = kind.from_pretrained(base, subfolder=subfolder, **options)
        ids = tokenizer.get_vocab().values()
        if len(set(ids)) < len(ids) or not 0 <= min(ids) <= max(ids) < (size or math.inf):
            raise ValueError(f"its {len(ids)} words do not have the ids 0 to {(size or len(ids)) - 1}")
        if not isinstance(tokenizer.model_max_length, int):
            raise ValueError(f"model_max_length is {tokenizer.model_max_length!r}")
    return tokenizer


def _stand_in_tokenizer(config: CLIPTextConfig) -> CLIPTokenizer:
    """Make a tokenizer with the words of the embedded base and the special tokens of an untrained encoder."""
    model = json.loads(_WORDS.read_text(encoding="utf-8"))["model"]
    special: Any = {"<|startoftext|>": config.bos_token_id, "<|endoftext|>": config.eos_token_id}
    words = {word: index for word, index in model["vocab"].items() if word not in special}
    if max(words.values()) >= min(special.values()):
        raise ValueError(
            f"a vocabulary of {config.vocab_size} with its end at {config.eos_token_id} has no room for "
            f"the {len(words)} words of {_WORDS.parent}"
        )
    pads = {index: word for word, index in (words | special).items()}
    return CLIPTokenizer(
        vocab=words | special,
        merges=[tuple(merge) for merge in model["merges"]],  # type: ignore[misc]
        pad_token=pads[config.pad_token_id],  # type: ignore[index]
        model_max_length=config.max_position_embeddings,
    )


def with_dtype(network: nn.Module, dtype: torch.dtype) -> nn.Module:
    """Cast weights without the warning of diffusers' own cast about layers to keep in float32."""
    return nn.Module.to(network, dtype)


def _without_variant(variant: str, base: str, part: str) -> FileNotFoundError:
    return FileNotFoundError(f"model.variant={variant}: {part}/ of {base} has no weights of this variant")


@contextmanager
def _without_report() -> Iterator[None]:
    """Keep transformers from listing what a file has beyond a network, such as the text half of a CLIP."""
    log = logging.getLogger("transformers.modeling_utils")
    log.addFilter(_is_needed)
    try:
        yield
    finally:
        log.removeFilter(_is_needed)


def _is_needed(record: logging.LogRecord) -> bool:
    message = record.getMessage()
    return "LOAD REPORT" not in message or "MISMATCH" in message or "CONVERSION" in message


def _refuse_missing(cls: Any, base: str, missing: Iterable[Any]) -> None:
    names = sorted(map(str, missing))
    if names:
        listed = ", ".join(names[:12]) + (" …" if len(names) > 12 else "")
        raise ValueError(f"{cls.__name__} from {base} lacks {len(names)} weights: {listed}")
