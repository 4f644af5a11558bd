"""The scheduler of a sampler's settings, in place of the base's own, and its noise levels."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor


def split_scheduler(sampler: Mapping[str, Any]) -> tuple[Mapping[str, Any] | None, dict[str, Any]]:
    """Split a sampler's settings into its scheduler and the arguments of the pipeline call.

    Args:
        sampler: Arguments of the pipeline call; ``scheduler`` among them is ``None`` for the base's own, or
            the ``name`` of a diffusers scheduler with settings that differ from the base's.

    Raises:
        ValueError: If diffusers has no such scheduler, or it does not have one of the settings.
    """
    options = dict(sampler)
    scheduler = options.pop("scheduler", None)
    if scheduler is not None:
        known = inspect.signature(_scheduler_class(scheduler).__init__).parameters
        unknown = sorted(scheduler.keys() - {"name", *known})
        if unknown:
            raise ValueError(f"sampler.scheduler: {scheduler['name']} does not take {', '.join(unknown)}")
    return scheduler, options


def use_scheduler(pipeline: Any, scheduler: Mapping[str, Any] | None) -> None:
    """Set the scheduler of :func:`split_scheduler`, if any; other settings stay those of the present one."""
    if scheduler is not None:
        settings = {key: value for key, value in scheduler.items() if key != "name"}
        pipeline.scheduler = _scheduler_class(scheduler).from_config(pipeline.scheduler.config, **settings)


def guided_calls(timesteps: Tensor, scheduler: Any, low: float, high: float) -> tuple[bool, ...]:
    """Where guidance is applied: at noise levels in (low, high] (Kynkäänniemi et al. 2024, eq. 6).

    The noise level of a timestep is σ = √((1 − ᾱ) / ᾱ), whatever the scheduler makes of it.

    Args:
        timesteps: (calls,) of the schedule.
        scheduler: Has ᾱ of every training timestep as ``alphas_cumprod``.
        low: σ up to which there is none.
        high: σ above which there is none.

    Raises:
        ValueError: If the scheduler has no ᾱ.
    """
    if not hasattr(scheduler, "alphas_cumprod"):
        raise ValueError(f"guidance_interval: {type(scheduler).__name__} has no noise levels to compare with")
    alphas = scheduler.alphas_cumprod.double().cpu()
    indices = timesteps.detach().double().cpu().round().long().clamp(0, len(alphas) - 1)
    sigmas = ((1 - alphas) / alphas).sqrt()[indices]
    return tuple(((sigmas > low) & (sigmas <= high)).tolist())


def _scheduler_class(scheduler: Mapping[str, Any]) -> Any:
    import diffusers

    name = str(scheduler.get("name"))
    found = getattr(diffusers, name, None) if name.endswith("Scheduler") else None
    if found is None:
        raise ValueError(f"sampler.scheduler.name={name}: no scheduler of diffusers")
    return found
