from __future__ import annotations

import sys
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from fastcomposer.training.optimizers import AdamW


@pytest.mark.parametrize("before", [None, {"foreach": True}, {"fused": True}])
@pytest.mark.parametrize("implementation", ["fused", "foreach"])
def test_checkpoints_of_any_implementation_resume_with_the_configured_one(
    before: dict[str, bool] | None, implementation: Any
) -> None:
    def steps(optimizer: torch.optim.Optimizer, weight: torch.nn.Parameter, number: int) -> None:
        for _ in range(number):
            weight.grad = weight.detach() * 0.5 + 1
            optimizer.step()

    weight = torch.nn.Parameter(torch.tensor([1.0, -2.0]))
    first = torch.optim.AdamW([weight], lr=0.1, **(before or {}))  # type: ignore[arg-type]
    steps(first, weight, 2)
    resumed = torch.nn.Parameter(weight.detach().clone())
    second = AdamW(lr=0.1, implementation=implementation)([resumed])
    second.load_state_dict(deepcopy(first.state_dict()))  # loading shares tensors
    assert [second.param_groups[0][name] for name in ("fused", "foreach")] == [
        True if name == implementation else second.defaults[name] for name in ("fused", "foreach")
    ]
    assert not (second.param_groups[0]["fused"] and second.param_groups[0]["foreach"])
    steps(first, weight, 3)
    steps(second, resumed, 3)
    torch.testing.assert_close(resumed, weight)


def test_eight_bits_come_from_their_library_where_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(ValueError, match=r"implementation=8bit needs bitsandbytes.*or take fused"):
        AdamW(implementation="8bit")
    library: Any = ModuleType("bitsandbytes")
    library.__spec__ = object()
    library.optim = ModuleType("bitsandbytes.optim")
    library.optim.AdamW8bit = lambda parameters, **settings: (parameters, settings)
    monkeypatch.setitem(sys.modules, "bitsandbytes", library)
    monkeypatch.setitem(sys.modules, "bitsandbytes.optim", library.optim)
    made: Any = AdamW(lr=0.5, implementation="8bit")([])
    assert made == ([], {"lr": 0.5, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.01})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"implementation": "4bit"}, r"method\.optimizer\nimplementation\n"),
        ({"lr": -1}, r"method\.optimizer\nlr\n"),
        ({"eps": float("nan")}, r"method\.optimizer\neps\n"),
        ({"betas": [0.9]}, r"method\.optimizer\nbetas\.1\n"),
    ],
)
def test_bad_settings_are_refused_when_it_is_configured(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        AdamW(**settings)


def test_a_resumed_training_uses_the_present_settings(
    make_module: Callable[..., Any], fit: Callable[..., Any], tmp_path: Path
) -> None:
    trainer = fit(make_module(optimizer=AdamW(lr=1e-3), warmup_steps=4), 2)
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    lower = AdamW(lr=1e-4, betas=(0.8, 0.9), weight_decay=0.5, implementation="foreach")
    trainer = fit(make_module(optimizer=lower, warmup_steps=10), 3, resume=tmp_path / "last.ckpt")
    assert trainer.callback_metrics["train/learning_rate"].item() == pytest.approx(1e-4 * 3 / 10)
    (group,) = trainer.optimizers[0].param_groups
    assert (group["betas"], group["weight_decay"], group["fused"]) == ((0.8, 0.9), 0.5, None)
