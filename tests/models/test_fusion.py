from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.hooks import ModelHook, add_hook_to_module

from fastcomposer import SubjectFusion
from fastcomposer.models.fusion import FusionConfig, PairedFusion, ReferenceAttention

B, T, K, D = 3, 7, 2, 8


def inputs() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    text = torch.randn(B, T, D, generator=generator)
    subjects = torch.randn(B, K, D, generator=generator)
    token_idx = torch.tensor([[2, 5], [4, 0], [0, 0]])
    present = torch.tensor([[True, True], [True, False], [False, False]])
    return text, subjects, token_idx, present


def test_only_the_tokens_of_present_subjects_change() -> None:
    text, subjects, token_idx, present = inputs()
    fused = SubjectFusion(D)(text, subjects, token_idx, present)
    changed = (fused != text).any(-1)
    expected = torch.zeros(B, T, dtype=torch.bool)
    expected[0, 2] = expected[0, 5] = expected[1, 4] = True
    assert torch.equal(changed, expected)
    assert torch.equal(fused[~expected], text[~expected])
    half = SubjectFusion(D).bfloat16()(text.bfloat16(), subjects, token_idx, present)
    assert half.dtype == torch.bfloat16


def test_each_subject_is_fused_as_the_paper_writes_it() -> None:
    text, subjects, token_idx, present = inputs()
    fusion = SubjectFusion(D)
    fused = fusion(text, subjects, token_idx, present)

    def mlp(block, x):  # type: ignore[no-untyped-def]
        return block.fc2(torch.nn.functional.gelu(block.fc1(block.layernorm(x))))

    for row, slot in ((0, 0), (0, 1), (1, 0)):
        position = int(token_idx[row, slot])
        word = text[row, position]
        hidden = mlp(fusion.mlp1, torch.cat([word, subjects[row, slot]])) + word
        expected = fusion.layer_norm(mlp(fusion.mlp2, hidden) + hidden)
        torch.testing.assert_close(fused[row, position], expected, rtol=1e-5, atol=1e-6)


def test_gradients_reach_present_subjects_only() -> None:
    text, subjects, token_idx, present = inputs()
    subjects.requires_grad_()
    SubjectFusion(D)(text, subjects, token_idx, present).square().sum().backward()
    assert subjects.grad is not None
    assert torch.equal(subjects.grad.abs().sum(-1) > 0, present)


def test_no_slots_leave_the_text_as_it_is() -> None:
    text = torch.randn(2, T, D)
    empty = torch.zeros(2, 0, dtype=torch.long)
    assert SubjectFusion(D)(text, torch.zeros(2, 0, D), empty, empty.bool()) is text


@pytest.mark.parametrize("mode", ["add", "replace"])
def test_other_modes_see_less(mode: Any) -> None:
    text, subjects, token_idx, present = inputs()
    fusion = SubjectFusion(D, mode=mode)
    assert not [name for name in fusion.state_dict() if name.startswith("mlp1")]
    fused = fusion(text, subjects, token_idx, present)
    seen = subjects[0, 1] + (text[0, 5] if mode == "add" else 0)
    assert torch.allclose(fused[0, 5], fusion.layer_norm(fusion.mlp2(seen)), atol=1e-6)
    assert torch.equal(fused[2], text[2])
    other = fusion(text + 1, subjects, token_idx, present)
    assert torch.equal(other[0, 5], fused[0, 5]) == (mode == "replace")


def test_one_reference_comes_out_bit_for_bit() -> None:
    embeds = torch.randn(B, K, 3, D, generator=torch.Generator().manual_seed(0))
    first = torch.tensor([True, False, False]).expand(B, K, 3)
    for pooling in ("mean", "attention"):
        fusion = SubjectFusion(D, pooling=pooling)  # type: ignore[arg-type]
        if fusion.reference_attention is not None:
            torch.nn.init.normal_(fusion.reference_attention.query)
        assert torch.equal(fusion.pool(embeds[:, :, :1], first[:, :, :1]), embeds[:, :, 0])
        assert torch.equal(fusion.pool(embeds, first), embeds[:, :, 0])


def test_the_mean_is_over_the_references_that_there_are() -> None:
    embeds = torch.tensor([[[2.0, 4.0], [4.0, 0.0], [100.0, 100.0]]])
    pooled = SubjectFusion(2).pool(embeds, torch.tensor([[True, True, False]]))
    assert pooled.tolist() == [[3.0, 2.0]]
    assert SubjectFusion(2).pool(embeds, torch.tensor([[False] * 3])).tolist() == [[0.0, 0.0]]


def test_untrained_attention_is_the_mean_of_the_references_that_there_are() -> None:
    torch.manual_seed(0)
    embeds, there = torch.randn(4, 3, D), torch.tensor([True, True, False]).expand(4, 3)
    attention = ReferenceAttention(D)
    assert torch.allclose(attention(embeds, there), embeds[:, :2].mean(1), atol=1e-6)
    torch.nn.init.normal_(attention.query)
    changed = embeds.clone()
    changed[:, 2] = 1000.0
    assert torch.equal(attention(changed, there), attention(embeds, there))
    nobody = attention(embeds, torch.zeros(4, 3, dtype=torch.bool))
    assert nobody.isfinite().all()


def test_pooling_is_saved_with_the_fusion_and_exists_only_where_asked_for(tmp_path: Path) -> None:
    assert not [name for name in SubjectFusion(D).state_dict() if "attention" in name]
    fusion = SubjectFusion(D, max_subjects=3, pooling="attention", mode="add")
    fusion.save_pretrained(tmp_path)
    again = SubjectFusion.from_pretrained(tmp_path)
    assert again.kind == FusionConfig("add", "attention") and again.config.max_subjects == 3
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in fusion.state_dict().items())


@pytest.mark.parametrize("make", [partial(SubjectFusion, D), partial(PairedFusion, (D, 2 * D), image_dim=D)])
def test_pooling_fetches_an_offloaded_fusion(make: Any) -> None:
    """``enable_model_cpu_offload`` moves a model when it is called; several references are pooled before."""
    fetched: list[torch.nn.Module] = []

    class Offload(ModelHook):
        def pre_forward(self, module: torch.nn.Module, *args: Any, **options: Any) -> Any:
            fetched.append(module)
            return args, options

    fusion = make(pooling="attention")
    add_hook_to_module(fusion, Offload())
    fusion.pool(torch.randn(1, 2, D), torch.ones(1, 2, dtype=torch.bool))
    assert fetched == [fusion]


@pytest.mark.parametrize("name", ["mode", "pooling"])
def test_unknown_kinds_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match=rf"method\.model\.fusion\.{name}='max': one of m"):
        FusionConfig(**{name: "max"})
