from __future__ import annotations

import torch

from fastcomposer import SubjectFusion

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


def test_dtype_of_the_text_is_kept() -> None:
    text, subjects, token_idx, present = inputs()
    fused = SubjectFusion(D).to(torch.bfloat16)(text.bfloat16(), subjects, token_idx, present)
    assert fused.dtype == torch.bfloat16


def test_saving_keeps_weights_and_subject_limit(tmp_path) -> None:  # type: ignore[no-untyped-def]
    fusion = SubjectFusion(D, max_subjects=3)
    fusion.save_pretrained(tmp_path)
    again = SubjectFusion.from_pretrained(tmp_path)
    assert again.config.max_subjects == 3
    for name, value in fusion.state_dict().items():
        assert torch.equal(again.state_dict()[name], value)
