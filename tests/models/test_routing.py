"""Routing: one subject at each position, learned by its loss, at sampling as in training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from fastcomposer import FastComposer, FastComposerPipeline
from fastcomposer.losses import LossConfig, routing
from fastcomposer.models.attention_capture import AttentionCapture, select_blocks
from fastcomposer.models.fusion import FusionConfig
from fastcomposer.models.routing import RoutingPlan, SubjectRouter
from fastcomposer.models.weights_io import load_trained_weights, save_trained_weights
from fastcomposer.pipeline.variants import Variant

PROMPT = "a man <|image|> and a woman <|image|>"
SMALL: dict[str, Any] = {"height": 64, "width": 64, "num_inference_steps": 2, "output_type": "pt"}


def load(base: Path, num_tokens: int = 1, routed: bool = True) -> FastComposer:
    torch.manual_seed(0)
    return FastComposer.from_pretrained(base, fusion=FusionConfig(num_tokens=num_tokens, routing=routed))


def references(count: int = 2) -> list[torch.Tensor]:
    return list(torch.rand(count, 3, 56, 56, generator=torch.Generator().manual_seed(0)))


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def gradients(model: FastComposer, batch: Any, name: str = "loss") -> dict[str, torch.Tensor]:
    model.zero_grad()
    getattr(model.training_losses(batch, generator=generator()), name).backward()
    return {key: p.grad.clone() for key, p in model.fusion.router.named_parameters() if p.grad is not None}


def test_one_present_subject_is_chosen_at_each_position() -> None:
    torch.manual_seed(0)
    router, hidden, tokens = SubjectRouter(8, [6]), torch.randn(2, 16, 6), torch.randn(2, 10, 8)
    columns = torch.tensor([[[1, 8, 9], [3, 6, 7], [5, 4, -1]], [[2, -1, -1], [-1, -1, -1], [-1, -1, -1]]])
    present = torch.tensor([[True, False, True], [True, False, False]])
    plan = RoutingPlan(columns, present, (4, 4))
    choices, _ = router.choose(0, hidden, tokens, plan)
    assert torch.equal(choices.sum(-1), torch.ones(2, 16))
    assert not choices[0, :, 1].any() and choices[1, :, 0].all()
    drawn, _ = router.choose(0, hidden, tokens, plan.with_noise(generator()))
    assert not torch.equal(drawn[0], choices[0])
    assert torch.equal(drawn[1], choices[1])


def test_the_loss_by_hand() -> None:
    masks = torch.tensor([[[1.0, 0, 0, 0], [0, 1, 0, 0], [1, 1, 1, 1]]])  # the third subject is absent
    present = torch.tensor([[True, True, False]])
    right = torch.tensor([[[[1.0, 0, 0], [0, 1, 0], [1, 0, 0], [0, 1, 0]]]])
    assert routing(right, masks, present) == 0
    assert routing(right.flip(2), masks, present) == 2 * 2 / 4  # both positions wrong, for both subjects


@pytest.mark.parametrize("implementation", ["fused", "explicit"])
def test_tokens_of_the_others_are_hidden(tiny_base: Path, golden: Any, implementation: Any) -> None:
    model, batch = load(tiny_base, 3).eval(), golden.batch()
    prompts, _ = model.encode_batch(batch)
    columns, size = model.subject_columns(batch), (8, 8)
    capture = AttentionCapture(model.unet, select_blocks(model.unet), implementation)
    plan = RoutingPlan(columns, batch.subject_present, size)
    noisy = torch.randn(len(batch), 4, *size, generator=generator())
    with (
        torch.no_grad(),
        capture.record(columns) as maps,
        model.fusion.router.route(model.unet, plan) as found,
    ):
        model.unet(noisy, torch.tensor(500), prompts)
    for name, attention in maps.items():
        hidden = (found[name] == 0) & batch.subject_present[:, None, None]
        assert hidden.any() and attention[hidden.expand_as(attention)].max() < 1e-4
        seen = (found[name] == 1) & batch.subject_present[:, None, None]
        assert attention[seen.expand_as(attention)].min() > 1e-3
    assert not any(module._forward_pre_hooks for module in model.unet.modules())


def test_the_router_learns_by_both_losses_also_when_checkpointing(tiny_base: Path, golden: Any) -> None:
    model, batch = load(tiny_base).train(), golden.batch()
    names = {name for name, _ in model.fusion.router.named_parameters()}
    by_routing = gradients(model, batch, "routing_loss")
    assert by_routing.keys() == names and all(value.any() for value in by_routing.values())
    by_denoising = gradients(model, batch, "denoise_loss")
    assert by_denoising["query.0.1.weight"].any()
    both = gradients(model, batch)
    model.enable_gradient_checkpointing()
    for name, value in gradients(model, batch).items():
        torch.testing.assert_close(value, both[name], rtol=1e-3, atol=1e-7)
    losses = model.training_losses(batch, generator=generator())
    assert losses.loss == losses.denoise_loss + 0.001 * losses.localization_loss + 0.1 * losses.routing_loss
    with pytest.raises(ValueError, match="routing_weight"):
        LossConfig(routing_weight=-1)


def test_gradients_are_small_where_a_hidden_word_would_have_all_attention() -> None:
    torch.manual_seed(0)
    router, tokens = SubjectRouter(8, [6]), torch.randn(1, 10, 8)
    hidden = torch.randn(1, 16, 6, requires_grad=True)
    plan = RoutingPlan(torch.tensor([[3, 5]]), torch.tensor([[True, True]]), (4, 4))
    _, changed = router._mask(0, plan, lambda _: None, router, (hidden,), {"encoder_hidden_states": tokens})
    scores = torch.zeros(10)
    scores[[3, 5]] = torch.tensor([28.0, 14.0])
    attention = (changed["attention_mask"] + scores).softmax(-1)
    (attention * torch.randn(10)).sum().backward()
    assert hidden.grad is not None and 0 < hidden.grad.abs().max() < 1


def test_routing_changes_images_of_two_and_of_nobody_else(tiny_base: Path, tmp_path: Path) -> None:
    routed, plain = load(tiny_base, 3), load(tiny_base, 3, routed=False)
    load_trained_weights(
        routed, save_trained_weights(plain, tmp_path / "plain.safetensors"), keep_fusion=True
    )
    pipes = [model.to_pipeline() for model in (routed, plain)]

    def images(pipe: Any, prompt: str = PROMPT, **options: Any) -> torch.Tensor:
        return pipe(prompt, generator=generator(), **{**SMALL, **options}).images

    for options in ({"prompt": "a man <|image|>", "references": references(1)}, {"alpha": 0.0}):
        one, other = (images(pipe, **options) for pipe in pipes)
        assert torch.equal(one, other)
    one, other = (images(pipe, references=references(), alpha=1.0) for pipe in pipes)
    assert not torch.equal(one, other)
    pipes[0].save_pretrained(tmp_path / "saved")
    again = FastComposerPipeline.from_pretrained(tmp_path / "saved")
    assert again.fusion.kind == FusionConfig(num_tokens=3, routing=True)
    assert torch.equal(images(again, references=references(), alpha=1.0), one)
    variants = pipes[0].sample_variants(PROMPT, [Variant(references(), 1.0)], generator=generator(), **SMALL)
    assert torch.equal(variants.images[0], one)


def test_files_keep_the_router(tiny_base: Path, tmp_path: Path) -> None:
    routed = load(tiny_base)
    file = save_trained_weights(routed, tmp_path / "routed.safetensors")
    again = load(tiny_base, routed=False)
    load_trained_weights(again, file)
    for name, value in routed.fusion.state_dict().items():
        assert torch.equal(again.fusion.state_dict()[name], value)
    with pytest.raises(ValueError, match="routing"):
        load_trained_weights(load(tiny_base, routed=False), file, keep_fusion=True)


def test_one_subject_is_refused(tiny_base: Path) -> None:
    with pytest.raises(ValueError, match=r"fusion\.routing.*max_subjects"):
        FastComposer.from_pretrained(tiny_base, fusion=FusionConfig(routing=True), max_subjects=1)
