"""LoRA of the backbone by peft: low-rank adapters W + alpha/rank · B·A (Hu et al. 2021, eq. 3)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import asdict
from pathlib import Path
from typing import Any

from diffusers.loaders.lora_base import LoraBaseMixin
from pydantic.dataclasses import dataclass
from torch import Tensor, nn

from fastcomposer.utils.files import save_atomically
from fastcomposer.utils.ranges import Count, Positive

_ADAPTER = "fastcomposer"
_WRAPPED = ((".base_layer.", "."), (f".lora_A.{_ADAPTER}.", ".lora_A."), (f".lora_B.{_ADAPTER}.", ".lora_B."))


@dataclass(frozen=True)
class LoRASettings:
    """Shape of the adapters.

    Attributes:
        rank: Rows of A and columns of B.
        alpha: Numerator of the scale; ``None`` for the rank, a scale of 1.
        targets: Last parts of the adapted layers' names; ``None`` for the projections of attention
            (:attr:`~fastcomposer.models.families.Family.LORA_TARGETS`).
    """

    rank: Count = 16
    alpha: Positive | None = None
    targets: tuple[str, ...] | None = None

    def resolved(self, targets: Sequence[str]) -> LoRASettings:
        """These settings with defaults filled in."""
        return LoRASettings(self.rank, self.alpha or self.rank, tuple(sorted({*(self.targets or targets)})))

    def metadata(self) -> dict[str, Any]:
        """Plain values for a file of weights."""
        return asdict(self)


def lora_settings(backbone: Any) -> LoRASettings | None:
    """Settings of a backbone's adapters; ``None`` without any of ours."""
    config = getattr(backbone, "peft_config", {}).get(_ADAPTER)
    return config and LoRASettings(config.r, config.lora_alpha, tuple(sorted(config.target_modules)))


def set_lora(backbone: Any, settings: LoRASettings | None) -> None:
    """Give a backbone new adapters, frozen, or none; those of the same settings stay.

    Raises:
        ValueError: If a target is the name of no layer, or the backbone has other adapters too.
    """
    present = lora_settings(backbone)
    if present == settings:
        return
    if others := sorted({*getattr(backbone, "peft_config", {})} - {_ADAPTER}):
        raise ValueError(f"the backbone has other adapters: call pipeline.delete_adapters({others}) first")
    names = [] if settings is None else [*(settings.targets or ())]
    layers = [f".{name}" for name, _ in backbone.named_modules()]
    if unknown := [name for name in names if not any(layer.endswith(f".{name}") for layer in layers)]:
        raise ValueError(f"method.lora.targets={names}: no layer's name ends with {', '.join(unknown)}")
    if present is not None:
        backbone.unload_lora()
    if settings is None:
        return
    from peft import LoraConfig  # takes a second

    alpha = settings.alpha or settings.rank
    config = LoraConfig(
        r=settings.rank,
        lora_alpha=alpha,  # type: ignore[arg-type]
        target_modules=names,
        init_lora_weights="gaussian",
    )
    trained = [parameter for parameter in backbone.parameters() if parameter.requires_grad]
    try:
        backbone.add_adapter(config, _ADAPTER)
    except ValueError as error:
        raise ValueError(f"method.lora.targets={names}: {error}") from error
    backbone.requires_grad_(False)
    for parameter in trained:  # peft freezes them
        parameter.requires_grad_(True)


@contextmanager
def kept_lora(backbone: Any) -> Iterator[None]:
    """Give a backbone the adapters back that it had if the block fails."""
    config, adapted = getattr(backbone, "peft_config", None), _adapted_layers(backbone)
    present = lora_settings(backbone)
    try:
        yield
    except BaseException:
        if lora_settings(backbone) != present:
            backbone.unload_lora()
            for name, layer in adapted.items():
                backbone.set_submodule(name, layer)
            if adapted:
                backbone.peft_config, backbone._hf_peft_config_loaded = config, True
        raise


def _adapted_layers(network: Any) -> dict[str, Any]:
    """Layers with adapters by name."""
    if not getattr(network, "peft_config", None):
        return {}
    from peft.tuners.lora import LoraLayer

    return {name: layer for name, layer in network.named_modules() if isinstance(layer, LoraLayer)}


def lora_parts(backbone: Any) -> list[nn.Module]:
    """A and B of every adapted layer."""
    layers = [layer for layer in backbone.modules() if _ADAPTER in getattr(layer, "lora_A", ())]
    return [part[_ADAPTER] for layer in layers for part in (layer.lora_A, layer.lora_B)]


def plain_name(name: str) -> str:
    """Name of a tensor without what peft inserts: as in the base, or in diffusers' file of a LoRA."""
    for inserted, plain in _WRAPPED:
        name = name.replace(inserted, plain)
    return name


def is_lora(name: str) -> bool:
    """Whether a plain name is that of an adapter's tensor."""
    return name.endswith((".lora_A.weight", ".lora_B.weight"))


def is_foreign(name: str) -> bool:
    """Whether a plain name is that of another adapter's tensor, such as one that a pipeline has loaded."""
    return ".lora_" in name and not is_lora(name)


def write_lora(file: Path, part: str, backbone: Any, state: Mapping[str, Tensor]) -> None:
    """Write adapters of the network ``part`` as diffusers does, for ``load_lora_weights``."""
    config = backbone.peft_config[_ADAPTER].to_dict()

    def save(temporary: Path) -> None:
        LoraBaseMixin.write_lora_layers(
            dict(state),
            str(temporary.parent),
            is_main_process=True,
            weight_name=temporary.name,
            save_function=None,  # type: ignore[arg-type]
            safe_serialization=True,
            lora_adapter_metadata={f"{part}.{key}": value for key, value in config.items()},
        )

    save_atomically(file, save)


@contextmanager
def merged_lora(network: Any) -> Iterator[None]:
    """Inside the block, have plain layers with the active adapters merged in, in place of adapted layers."""
    adapted = _adapted_layers(network)
    if not adapted:
        yield
        return
    try:
        for name, layer in adapted.items():
            merged: Any = deepcopy(layer)
            if not merged.disable_adapters:
                merged.merge()
            network.set_submodule(name, merged.get_base_layer())
        network._hf_peft_config_loaded = False  # transformers would save the adapters alone
        yield
    finally:
        for name, layer in adapted.items():
            network.set_submodule(name, layer)
        network._hf_peft_config_loaded = True
