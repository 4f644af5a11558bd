from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from fastcomposer import FastComposer, FastComposerPipeline, PromptError, SubjectFusion
from fastcomposer.models.attention_capture import explicit_attention, fused_attention
from fastcomposer.models.conditioning import fuse_references, parse_prompts
from fastcomposer.models.fusion import FusionConfig, PairedFusion
from fastcomposer.models.resampler import PatchStates, Resampler, free_positions, subject_columns
from fastcomposer.models.weights_io import load_trained_weights, save_trained_weights

PROMPT = "a man <|image|> and a woman <|image|>"
SMALL = {"height": 64, "width": 64, "num_inference_steps": 2, "output_type": "pt"}


def awake(model: Any) -> Any:
    """Give the last layer norms of the resamplers, which start at zero, weights of one."""
    for module in model.modules():
        if isinstance(module, Resampler):
            torch.nn.init.ones_(module.layer_norm.weight)
    return model


def references(count: int = 2) -> list[torch.Tensor]:
    return list(torch.rand(count, 3, 56, 56, generator=torch.Generator().manual_seed(0)))


def conditioned(model: FastComposer, prompt: str, rows: list[torch.Tensor]) -> torch.Tensor:
    """Fuse references (N, 3, R, R) of each subject into a prompt."""
    parsed = parse_prompts([prompt], [len(rows)], model.tokenizer, model.fusion)
    text = model.text.encode(torch.tensor([parsed[0].input_ids])).tokens
    return fuse_references(text, parsed, [rows], model.image_encoder, model.fusion)


def load(base: Path, num_tokens: int) -> FastComposer:
    torch.manual_seed(0)
    return FastComposer.from_pretrained(base, fusion=FusionConfig(num_tokens=num_tokens))


def test_the_last_positions_are_the_first_subjects() -> None:
    ids = torch.tensor([[8, 1, 2, 3, 9, 9, 9, 9, 9, 9], [8, 1, 2, 3, 4, 5, 6, 9, 9, 9]])
    assert free_positions(ids).tolist() == [5, 2]
    words, present = torch.tensor([[1, 3, 0], [2, 3, 4]]), torch.tensor([[True, True, False]] * 2)
    columns = subject_columns(ids, words, present, 3)
    assert columns[0].tolist() == [[1, 8, 9], [3, 6, 7], [-1, -1, -1]]
    assert columns[1].tolist() == [[2, 8, 9], [3, -1, -1], [-1, -1, -1]]


def test_a_subjects_only_token_is_its_word() -> None:
    ids = torch.tensor([[1, 5, 6, 7, 2, 2, 2]])
    words, present = torch.tensor([[2, 0]]), torch.tensor([[True, False]])
    assert torch.equal(subject_columns(ids, words, present, 1), words)
    with_t5 = subject_columns(ids, words, present, 1, words + 7)
    assert torch.equal(with_t5, torch.tensor([[[2, 9], [-1, -1]]]))


def test_padding_that_is_not_the_end_token_leaves_it_alone() -> None:
    assert free_positions(torch.tensor([[8, 1, 9, 0, 0, 0], [8, 1, 2, 3, 4, 9]])).tolist() == [2, 0]


def test_absent_references_do_not_matter_and_their_order_neither() -> None:
    torch.manual_seed(0)
    resampler = awake(Resampler(64, 3, (5, 16)))
    words, states = torch.randn(2, 64), torch.randn(2, 3, 5, 16)
    present = torch.tensor([[True, True, False], [False, False, False]])
    tokens = resampler(words, states, present)
    assert tokens.shape == (2, 3, 64)
    assert tokens.isfinite().all()
    changed = states.clone()
    changed[0] = changed[0, [1, 0, 2]]
    changed[0, 2] += 1
    torch.testing.assert_close(resampler(words, changed, present)[0], tokens[0])


@pytest.mark.parametrize("paired", [False, True])
def test_tokens_are_added_to_the_padding_and_nothing_else_changes(paired: bool) -> None:
    torch.manual_seed(0)
    options: dict[str, Any] = {"num_tokens": 3, "patches": (5, 16)}
    widths = (32, 32) if paired else (32,)
    fusion = PairedFusion(widths, image_dim=32, **options) if paired else SubjectFusion(32, **options)
    text, words = torch.randn(1, 10, sum(widths)), torch.tensor([[1, 3]])
    embeds, present = torch.randn(1, 2, 32), torch.tensor([[True, True]])
    columns = torch.tensor([[[1, 8, 9], [3, 6, 7]]])
    patches = PatchStates(torch.randn(1, 2, 1, 5, 16), present[..., None], columns)
    plain = fusion(text, embeds, words, present)
    assert torch.equal(fusion(text, embeds, words, present, patches), plain)
    changed = (awake(fusion)(text, embeds, words, present, patches) != plain).any(-1)[0]
    assert changed.nonzero().flatten().tolist() == [6, 7, 8, 9]


@pytest.mark.parametrize("attend", [fused_attention, explicit_attention])
def test_a_subjects_map_is_the_sum_of_its_columns(attend: Callable[..., Any]) -> None:
    torch.manual_seed(0)
    inputs = [torch.randn(2, 2, 6, 4), torch.randn(2, 2, 10, 4), torch.randn(2, 2, 10, 4)]
    columns = torch.tensor([[[1, 8, 9], [3, 6, 7]], [[2, 9, -1], [-1, -1, -1]]])
    weights = torch.randn(2, 2, 6, 2)

    def gradients(maps: Callable[..., Any]) -> tuple[torch.Tensor, list[torch.Tensor]]:
        leaves = [value.clone().requires_grad_() for value in inputs]
        output, found = maps(*leaves)
        (output.square().sum() + (found * weights).sum()).backward()
        return found.detach(), [leaf.grad for leaf in leaves if leaf.grad is not None]

    def plain(query: Any, key: Any, value: Any) -> Any:
        probabilities = (query @ key.transpose(-1, -2) * 4**-0.5).softmax(-1)
        found = torch.stack(
            [
                torch.stack([probabilities[b][..., [c for c in row if c >= 0]].sum(-1) for row in rows], -1)
                for b, rows in enumerate(columns.tolist())
            ]
        )
        return probabilities @ value, found

    expected, expected_gradients = gradients(plain)
    found, found_gradients = gradients(lambda *qkv: attend(*qkv, None, columns))
    torch.testing.assert_close(found, expected)
    for one, other in zip(found_gradients, expected_gradients, strict=True):
        torch.testing.assert_close(one, other)


def test_an_untrained_resampler_samples_the_same_images(tiny_base: Path) -> None:
    plain, several = load(tiny_base, 1), load(tiny_base, 4)
    several.fusion.load_state_dict(plain.fusion.state_dict(), strict=False)
    options: dict[str, Any] = {
        "references": references(),
        "num_inference_steps": 2,
        "output_type": "pt",
        **SMALL,
    }
    images = [
        model.to_pipeline()(PROMPT, generator=torch.Generator().manual_seed(0), alpha=1.0, **options).images
        for model in (plain, several)
    ]
    assert torch.equal(*images)


def test_alpha_0_is_the_base_and_tokens_change_the_rest(tiny_base: Path) -> None:
    pipe = awake(load(tiny_base, 4)).to_pipeline()
    options: dict[str, Any] = {**SMALL, "alpha": 0.0}
    text = pipe(PROMPT, generator=torch.Generator().manual_seed(0), **options).images
    both = [
        pipe(PROMPT, generator=torch.Generator().manual_seed(0), references=references(), **{**options, **o})
        for o in ({}, {"alpha": 1.0, "return_attention": 2})
    ]
    assert torch.equal(both[0].images, text)
    assert not torch.equal(both[1].images, text)
    assert both[1].attention_maps.shape[:3] == (1, 2, 2)


def test_several_references_of_a_subject(tiny_base: Path) -> None:
    model = awake(load(tiny_base, 4))
    one, other, third = references(3)
    single = conditioned(model, PROMPT, [one[None], other[None]])
    several = conditioned(model, PROMPT, [torch.stack([one, third]), other[None]])
    changed = ((single - several).abs() > 1e-5).any(-1)[0].nonzero().flatten().tolist()
    assert len(changed) == 1 + 3
    assert changed[-3:] == [74, 75, 76]


def test_a_prompt_without_room_is_refused(tiny_base: Path) -> None:
    model = load(tiny_base, 20)
    with pytest.raises(PromptError, match="positions"):
        conditioned(model, "a man <|image|> " + "man " * 60, [references(1)[0][None]])


def test_tokens_that_no_prompt_holds_are_refused(tiny_base: Path) -> None:
    model = load(tiny_base, 77)
    with pytest.raises(ValueError, match="num_tokens=77"):
        conditioned(model, "man <|image|>", [references(1)[0][None]])


def test_pipelines_keep_their_tokens(tiny_base: Path, tmp_path: Path) -> None:
    pipe = awake(load(tiny_base, 4)).to_pipeline()
    pipe.save_pretrained(tmp_path)
    again = FastComposerPipeline.from_pretrained(tmp_path)
    assert again.fusion.kind == FusionConfig(num_tokens=4)
    options: dict[str, Any] = {
        "references": references(),
        "num_inference_steps": 2,
        "output_type": "pt",
        **SMALL,
    }
    images = [p(PROMPT, generator=torch.Generator().manual_seed(0), **options).images for p in (pipe, again)]
    assert torch.equal(*images)


def test_weights_without_tokens_start_a_model_with_them(tiny_base: Path, tmp_path: Path) -> None:
    plain = load(tiny_base, 1)
    file = save_trained_weights(plain, tmp_path / "plain.safetensors")
    several = awake(load(tiny_base, 4))
    load_trained_weights(several, file, keep_fusion=True)
    kept = save_trained_weights(several, tmp_path / "several.safetensors")
    again = load(tiny_base, 1)
    load_trained_weights(again, kept)
    assert again.fusion.kind.num_tokens == 4
    for name, value in several.fusion.state_dict().items():
        assert torch.equal(again.fusion.state_dict()[name], value)
    with pytest.raises(ValueError, match="num_tokens"):
        load_trained_weights(load(tiny_base, 1), kept, keep_fusion=True)


def test_training_reaches_the_resampler_and_its_columns(tiny_base: Path, golden: Any) -> None:
    model = awake(load(tiny_base, 4))
    losses = model.training_losses(golden.batch(), generator=torch.Generator().manual_seed(0))
    losses.localization_loss.backward(retain_graph=True)
    gradient = model.fusion.resampler.queries.grad
    assert gradient is not None
    assert gradient.abs().sum() > 0
