"""AdamW in the implementations that save time or memory."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Annotated, Any, Literal

import torch
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

from fastcomposer.utils.ranges import Amount

_Decay = Annotated[float, Field(ge=0, lt=1)]


@dataclass(frozen=True, config=ConfigDict(title="method.optimizer", extra="forbid", allow_inf_nan=False))
class AdamW:
    """Makes AdamW over given parameters; the defaults are the paper's (docs/method.md).

    Attributes:
        lr: Learning rate.
        betas: Decay of the averages of gradients and of their squares.
        eps: Added to the root of the latter.
        weight_decay: Decoupled weight decay.
        implementation: ``foreach`` is torch's default on GPUs; ``fused`` is the same in one kernel, and takes
            half the time on a CPU; ``8bit`` is that of bitsandbytes, whose averages take 2 bytes a parameter
            instead of 8. A checkpoint of one of the first two resumes with the other.

    Raises:
        ValueError: If a number is out of range, or the implementation is unknown or not installed.
    """

    lr: Amount = 1e-5
    betas: tuple[_Decay, _Decay] = (0.9, 0.999)
    eps: Amount = 1e-8
    weight_decay: Amount = 0.01
    implementation: Literal["foreach", "fused", "8bit"] = "fused"

    def __post_init__(self) -> None:
        if self.implementation == "8bit" and find_spec("bitsandbytes") is None:
            raise ValueError(
                "method.optimizer.implementation=8bit needs bitsandbytes, which is not installed: "
                "pip install bitsandbytes, or take fused"
            )

    def __call__(self, parameters: list[Any]) -> torch.optim.Optimizer:
        """Make the optimizer of tensors, or of groups of them."""
        settings = {"lr": self.lr, "betas": self.betas, "eps": self.eps, "weight_decay": self.weight_decay}
        if self.implementation == "8bit":
            from bitsandbytes.optim import AdamW8bit

            return AdamW8bit(parameters, **settings)
        made = torch.optim.AdamW(parameters, **settings, **{self.implementation: True})  # type: ignore[arg-type]
        made.register_load_state_dict_pre_hook(_keep_implementation)
        return made


def _keep_implementation(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> dict[str, Any]:
    """Let a checkpoint of the other implementation resume with this one."""
    own = {name: optimizer.defaults[name] for name in ("foreach", "fused")}
    return {**state, "param_groups": [{**group, **own} for group in state["param_groups"]]}
