"""Find and load a model's parts, which are checked before any weight is read."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from torch import nn
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

from fastcomposer.models.base_files import (
    DEFAULT_IMAGE_ENCODER,
    declares,
    folder_or_hub_id,
    image_encoder_folder,
    is_single_file,
    without_t5,
)
from fastcomposer.models.conditioning import check_widths, patch_shape
from fastcomposer.models.fusion import Fusion, FusionConfig, PairedFusion, SubjectFusion
from fastcomposer.models.routing import routed_widths
from fastcomposer.models.source import (
    ModelSource,
    RandomSource,
    SingleFileSource,
    read_tokenizer,
    with_dtype,
)
from fastcomposer.models.text import ENCODERS, sequence_length
from fastcomposer.prompt import JointTokenizer
from fastcomposer.utils.assets import asset
from fastcomposer.utils.files import existing_file
from fastcomposer.utils.network_files import naming_damage
from fastcomposer.utils.settings import base_fingerprint

Weights = Literal["pretrained", "random"]
_Read = TypeVar("_Read")


def open_source(
    base: str | Path,
    image_encoder: str | Path | None,
    *,
    architecture: str | Path | None = None,
    weights: Weights = "pretrained",
    variant: str | None = None,
    t5: bool = True,
    **options: Any,
) -> ModelSource:
    """Find a base model and an image encoder and check that they fit, reading configurations only.

    Args:
        base: Folder in the diffusers layout, hub id, or a single file in Stability's layout.
        image_encoder: Folder or hub id, of an encoder or of a model with an ``image_encoder/``; ``None`` is
            the base's own where it has one, else CLIP ViT-L/14.
        architecture: Folder with the configurations of a single file's or random model's parts.
        weights: ``pretrained``, or ``random`` for the architecture alone, with nothing to download.
        variant: See :meth:`~fastcomposer.models.networks.Networks.from_pretrained`.
        t5: See :meth:`~fastcomposer.models.networks.Networks.from_pretrained`.
        **options: Arguments for hub downloads: ``revision``, ``local_files_only``, ``cache_dir``, ``token``.

    Raises:
        FileNotFoundError: If one of them does not exist or has no files of the variant; the message names the
            path.
        ValueError: If a saved fusion does not fit, random or a single file's weights lack an architecture, or
            a single file is asked for a variant.
    """
    if weights not in get_args(Weights):
        raise ValueError(f"model.weights={weights}: one of {', '.join(get_args(Weights))}")
    kind: type[ModelSource] = ModelSource
    configs = base
    if weights == "random":
        kind, image_encoder = RandomSource, None
        base = configs = _needed(architecture, "model.weights=random")
    elif is_single_file(base):
        base = existing_file(base, "base model")
        if variant is not None:
            raise ValueError(f"model.variant={variant}: the single file {base} has none; name another file")
        kind, configs = SingleFileSource, _needed(architecture, f"the single file {base}")
        image_encoder = image_encoder or DEFAULT_IMAGE_ENCODER
    configs = folder_or_hub_id(configs, "base model" if kind is ModelSource else "architecture")
    encoder = None if image_encoder is None else folder_or_hub_id(image_encoder, "image encoder")
    index: Any = _read("base model", configs, lambda: DiffusionPipeline.load_config(configs, **options))
    index = index if t5 else without_t5(index)
    encoder, subfolder = image_encoder_folder(encoder, configs, index)
    text = tuple(
        _read(
            "text encoder of base model",
            configs,
            partial(cls.config_class.from_pretrained, configs, subfolder=name, **options),
        )
        for name, cls in ENCODERS.items()
        if declares(index, name)
    )
    read_vision = partial(CLIPVisionConfig.from_pretrained, encoder, subfolder=subfolder, **options)
    vision = _read("image encoder", encoder, read_vision)
    base = configs if kind is ModelSource else str(base)
    source = kind(base, configs, index, encoder, subfolder, text, vision, options, variant)
    _check_saved_fusion(source)
    if kind is ModelSource:
        source.check_variant()
    return source


def source_fingerprint(
    base: str | Path,
    architecture: str | Path | None = None,
    weights: Weights = "pretrained",
    variant: str | None = None,
) -> str:
    """Fingerprint of the base of :func:`open_source`, which has the same arguments; nothing is loaded."""
    if weights == "random":
        return f"random {base_fingerprint(_needed(architecture, 'model.weights=random'))}"
    if is_single_file(base):
        configs = base_fingerprint(_needed(architecture, f"the single file {base}"))
        return f"{base_fingerprint(base)} {configs}"
    return base_fingerprint(base) if variant is None else f"{base_fingerprint(base)} {variant}"


def load_tokenizer(
    base: str | Path,
    image_encoder: str | Path | None = None,
    architecture: str | Path | None = None,
    weights: Weights = "pretrained",
    t5: bool = True,
) -> Any:
    """Load what captions are read by for a base model of :func:`open_source`, whose arguments these are.

    Returns:
        Its CLIP tokenizer, the first where it has two, or a ``JointTokenizer`` where it has T5.
    """
    if weights == "random" or is_single_file(base):
        source = open_source(base, image_encoder, architecture=architecture, weights=weights, t5=t5)
        return _joined(source.tokenizer(), partial(source.tokenizer, "tokenizer_3"), source.index)
    try:
        clip, folder = read_tokenizer(base, "tokenizer"), Path(base).expanduser()
        known = t5 and ((folder / "model_index.json").is_file() or not folder.is_dir())
        index: Any = DiffusionPipeline.load_config(base) if known else {}
        return _joined(clip, partial(read_tokenizer, base, "tokenizer_3"), index)
    except OSError as error:
        raise FileNotFoundError(f"model.base={base}: no tokenizer there: {error}") from error


def load_networks(
    source: ModelSource,
    max_subjects: int | None,
    dtype: torch.dtype | None,
    kind: FusionConfig | None = None,
) -> dict[str, Any]:
    """Load every network; the fusion is new unless the base is a saved FastComposer pipeline of that kind."""
    fusion = _fusion_class(source)
    if kind is not None and kind.routing and max_subjects == 1:
        raise ValueError("method.model.fusion.routing: needs a second subject, and model.max_subjects is 1")
    if kind is not None and source.has("fusion"):
        own = source.config(fusion, "fusion")
        saved = FusionConfig(
            own.get("mode", "mlp"),
            own.get("pooling", "mean"),
            own.get("num_tokens", 1),
            bool(own.get("routed")),
        )
        if saved != kind:
            raise ValueError(
                f"the pipeline {source.base} brings a fusion of num_tokens {saved.num_tokens}, mode "
                f"{saved.mode}, pooling {saved.pooling} and routing {saved.routing}: set "
                "method.model.fusion to these"
            )
    if kind is not None and kind.routing and not source.family.ROUTES:
        raise ValueError(f"method.model.fusion.routing: not for the {source.family.NAME} of {source.base}")
    dtype = dtype or torch.float32
    networks = {name: source.load(cls, name, dtype) for name, cls in network_classes(source).items()}
    if source.has("fusion"):
        return networks | {"fusion": source.load(fusion, "fusion", dtype)}
    new = _new_fusion(source, max_subjects, kind, networks[source.family.NAME])
    return networks | {"fusion": with_dtype(new, dtype)}


def configured_networks(source: ModelSource, max_subjects: int | None) -> dict[str, nn.Module]:
    """Build every network from its configuration, for weights that come from elsewhere."""
    networks = {name: source.configured(cls, name) for name, cls in network_classes(source).items()}
    return networks | {"fusion": _new_fusion(source, max_subjects)}


def network_classes(source: ModelSource) -> dict[str, Any]:
    """Classes of a base's networks and of its image encoder by name."""
    return {
        "vae": AutoencoderKL,
        source.family.NAME: source.family.NETWORK,
        **source.text_encoders,
        "image_encoder": CLIPVisionModelWithProjection,
    }


def _fusion_class(source: ModelSource) -> Any:
    return SubjectFusion if len(source.text_configs) == 1 else PairedFusion


def _new_fusion(
    source: ModelSource, max_subjects: int | None, kind: FusionConfig | None = None, backbone: Any = None
) -> Fusion:
    kind, image_dim = kind or FusionConfig(), source.vision_config.projection_dim
    more: dict[str, Any] = {}
    if kind.num_tokens > 1:
        more |= {"num_tokens": kind.num_tokens, "patches": patch_shape(source.vision_config)}
    if kind.routing:
        more["routed"] = routed_widths(backbone)
    widths = [config.hidden_size for config in source.text_configs]
    if len(widths) > 1:
        return PairedFusion(widths, max_subjects, kind.mode, kind.pooling, image_dim=image_dim, **more)
    # Left out where it is the text's, as in the released model.
    other = None if image_dim == widths[0] else image_dim
    return SubjectFusion(widths[0], max_subjects, kind.mode, kind.pooling, image_dim=other, **more)


def _check_saved_fusion(source: ModelSource) -> None:
    if source.has("fusion"):
        cls = _fusion_class(source)
        with torch.device("meta"), naming_damage("configuration fusion of", source.base):
            fusion = cls.from_config(source.config(cls, "fusion"))
        widths = tuple(config.hidden_size for config in source.text_configs)
        own, trained = len(widths), len(fusion.text_dims)
        if {own, trained} == {2, 3} and widths[:2] == fusion.text_dims[:2]:
            with_t5 = trained > own
            raise ValueError(
                f"the fusion of {source.base} was trained {'with' if with_t5 else 'without'} T5: set "
                f"model.t5={str(with_t5).lower()}" + ", which needs a text_encoder_3/ in the base" * with_t5
            )
        names = {"base": source.base, "image_encoder": source.image_encoder}
        check_widths(source.text_configs, source.vision_config, fusion, **names)


def _joined(clip: Any, t5: Callable[[], Any], index: Mapping[str, Any]) -> Any:
    """The tokenizers of a base, of whose T5 one is read where it is there."""
    return JointTokenizer(clip, t5(), sequence_length(index)) if declares(index, "text_encoder_3") else clip


def _needed(architecture: str | Path | None, what: str) -> str | Path:
    if architecture is None:
        raise ValueError(
            f"{what} needs an architecture: a folder of configurations, such as data/architectures/sd15 "
            "(model.architecture)"
        )
    return asset(architecture)


def _read(what: str, path: str, read: Callable[[], _Read]) -> _Read:
    try:
        found = read()
        if found is None or isinstance(found, str | int | list):
            raise TypeError(f"no object, but {type(found).__name__}")
        return found
    except Exception as error:  # damaged content may raise anything
        where = "" if Path(path).is_dir() else ": there is no such folder, and the hub did not give it"
        raise FileNotFoundError(f"{what} {path} has no readable configuration{where} ({error})") from error
