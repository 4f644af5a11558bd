"""Capture in joint attention: outputs and gradients are those of diffusers' own processor."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import SD3Transformer2DModel
from diffusers.models.attention_processor import JointAttnProcessor2_0
from torch import Tensor

from fastcomposer.models.attention_capture import AttentionCapture, select_blocks

WORDS = torch.tensor([[1, 4], [2, 2]])
TOKENS = 7


@pytest.fixture
def transformer() -> SD3Transformer2DModel:
    return small()


def small(dual_attention_layers: tuple[int, ...] = (0,), qk_norm: str | None = "rms_norm") -> Any:
    torch.manual_seed(0)
    return SD3Transformer2DModel(
        sample_size=8,
        patch_size=2,
        in_channels=4,
        out_channels=4,
        num_layers=3,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=12,
        caption_projection_dim=16,
        pooled_projection_dim=6,
        pos_embed_max_size=4,
        dual_attention_layers=dual_attention_layers,
        qk_norm=qk_norm,
    )


def inputs() -> dict[str, Tensor]:
    rng = torch.Generator().manual_seed(1)
    return {
        "hidden_states": torch.randn(2, 4, 8, 8, generator=rng),
        "encoder_hidden_states": torch.randn(2, TOKENS, 12, generator=rng),
        "pooled_projections": torch.randn(2, 6, generator=rng),
        "timestep": torch.tensor([10.0, 700.0]),
    }


def gradients(model: SD3Transformer2DModel, loss: Tensor) -> dict[str, Tensor]:
    model.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def captured(model: Any, words: Tensor = WORDS, **options: Any) -> tuple[Tensor, dict[str, Tensor]]:
    capture = AttentionCapture(model, select_blocks(model), **options)
    with capture.record(words) as maps:
        output = model(**inputs()).sample
    return output, maps


@pytest.mark.parametrize("implementation", ["fused", "explicit"])
@pytest.mark.parametrize("keys", ["text", "all"])
def test_output_and_gradients_are_those_of_the_stock_processor(
    transformer: SD3Transformer2DModel, keys: str, implementation: str
) -> None:
    plain = transformer(**inputs()).sample
    expected = gradients(transformer, plain.square().mean())
    output, maps = captured(transformer, keys=keys, implementation=implementation)
    assert [*maps] == [f"transformer_blocks.{n}.attn" for n in range(3)]
    assert all(layer.shape == (2, 2, 16, 2) for layer in maps.values())
    torch.testing.assert_close(output, plain, rtol=0, atol=1e-5)
    found = gradients(transformer, output.square().mean())
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=0, atol=1e-5)
    assert all(type(p) is JointAttnProcessor2_0 for p in transformer.attn_processors.values())


@pytest.mark.parametrize("keys", ["text", "all"])
@pytest.mark.parametrize("words", [WORDS, torch.tensor([[[1, 6], [4, -1]], [[2, 5], [3, -1]]])])
def test_fused_maps_and_their_gradients_are_the_explicit_ones(
    transformer: SD3Transformer2DModel, keys: str, words: Tensor
) -> None:
    results = []
    for implementation in ("fused", "explicit"):
        output, maps = captured(transformer, words, keys=keys, implementation=implementation)
        loss = output.mean() + sum((layer.square().sum() for layer in maps.values()), torch.zeros(()))
        results.append((maps, gradients(transformer, loss)))
    for one, other in zip(*results, strict=True):
        for name, value in one.items():
            torch.testing.assert_close(value, other[name], rtol=0, atol=1e-5)


def test_text_keys_share_what_all_keys_leave_to_the_text(transformer: SD3Transformer2DModel) -> None:
    every = torch.arange(TOKENS).expand(2, -1)
    text, mass = (captured(transformer, every, keys=keys)[1] for keys in ("text", "all"))
    for name, layer in text.items():
        total = mass[name].sum(-1, keepdim=True)
        assert (total < 1).all()
        torch.testing.assert_close(layer.sum(-1), torch.ones_like(layer[..., 0]))
        torch.testing.assert_close(mass[name] / total, layer, rtol=1e-4, atol=1e-6)


def test_unknown_keys_are_refused(transformer: SD3Transformer2DModel) -> None:
    with pytest.raises(ValueError, match="'image'"):
        AttentionCapture(transformer, ["transformer_blocks.0"], keys="image")  # type: ignore[arg-type]


def test_fused_projections_are_captured_as_the_others() -> None:
    model = small((), None).requires_grad_(False)
    expected, expected_maps = captured(model)
    model.fuse_qkv_projections()
    found, maps = captured(model)
    torch.testing.assert_close(model(**inputs()).sample, expected)
    assert torch.equal(found, expected)
    assert all(torch.equal(maps[name], value) for name, value in expected_maps.items())


def test_fused_projections_that_leave_out_norms_are_refused() -> None:
    model = small(()).requires_grad_(False)
    model.fuse_qkv_projections()
    with pytest.raises(RuntimeError, match="FusedJointAttnProcessor2_0"):
        captured(model)
