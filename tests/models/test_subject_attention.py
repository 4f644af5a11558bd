from __future__ import annotations

import pytest
import torch
from torch import Tensor

from fastcomposer.models.attention_capture import explicit_attention, fused_attention

COLUMNS = torch.tensor([[3, 9, 0, 0], [5, 0, 76, 76]])


def inputs(dtype: torch.dtype = torch.float32) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    made = [torch.randn(2, 3, size, 16, generator=generator) for size in (64, 77, 77)]
    return [tensor.to(dtype).requires_grad_() for tensor in made]


def results(attend: object, mask: Tensor | None, dtype: torch.dtype, which: str) -> list[Tensor]:
    """Both outputs, then the gradients of a sum over one of them or both."""
    tensors = inputs(dtype)
    output, maps = attend(*tensors, mask, COLUMNS)  # type: ignore[operator]
    generator = torch.Generator().manual_seed(1)
    parts = {"output": output.float(), "maps": maps}
    weights = {name: torch.randn(part.shape, generator=generator) for name, part in parts.items()}
    torch.stack([(parts[name] * weights[name]).sum() for name in parts if name in which]).sum().backward()
    return [output.detach(), maps.detach(), *(torch.zeros(()) if t.grad is None else t.grad for t in tensors)]


@pytest.mark.parametrize("which", ["output", "maps", "output and maps"])
@pytest.mark.parametrize("masked", [False, True])
def test_fused_is_explicit_in_value_and_gradient(which: str, masked: bool) -> None:
    mask = torch.linspace(-3, 3, 2 * 77).view(2, 1, 1, 77) if masked else None
    found = [results(attend, mask, torch.float32, which) for attend in (fused_attention, explicit_attention)]
    for fused, explicit in zip(*found, strict=True):
        assert float((fused - explicit).abs().max()) < 1e-5


def test_columns_are_float32_in_half_precision_too() -> None:
    exact = results(explicit_attention, None, torch.float32, "output and maps")
    half = results(fused_attention, None, torch.bfloat16, "output and maps")
    assert half[1].dtype == torch.float32
    assert half[2].dtype == torch.bfloat16
    for rough, fine in zip(half, exact, strict=True):
        assert float((rough.float() - fine).abs().max() / fine.abs().max()) < 0.02


def test_no_map_of_all_tokens_is_held_for_the_backward_pass() -> None:
    def widest(attend: object) -> int:
        held: list[Tensor] = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t: (held.append(t), t)[1], lambda t: t):
            attend(*inputs(), None, COLUMNS)  # type: ignore[operator]
        return max(tensor.shape[-1] for tensor in held if tensor.ndim == 4 and tensor.shape[2] == 64)

    assert widest(explicit_attention) == 77
    assert widest(fused_attention) == 16


def test_autocast_does_not_reach_the_columns() -> None:
    query, key, value = inputs()
    exact = fused_attention(query, key, value, None, COLUMNS)[1]
    with torch.autocast("cpu", torch.bfloat16):
        for attend in (fused_attention, explicit_attention):
            torch.testing.assert_close(attend(query, key, value, None, COLUMNS)[1], exact)
