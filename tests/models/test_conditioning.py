"""Prompts with references are conditioned as batches are."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import Tensor

from fastcomposer import FastComposer
from fastcomposer.losses import LossConfig
from fastcomposer.models.conditioning import fuse_references, parse_prompts, subject_slots
from fastcomposer.models.fusion import FusionConfig

if TYPE_CHECKING:
    from tests.conftest import Golden


def encoded(
    model: FastComposer, prompts: list[str], references: list[list[Tensor]]
) -> tuple[Tensor, dict[str, Tensor]]:
    """Prompt embeddings as a pipeline makes them, and the fields of a batch of the same prompts."""
    parsed = parse_prompts(prompts, [len(row) for row in references], model.tokenizer, model.fusion)
    input_ids = torch.tensor([prompt.input_ids for prompt in parsed])
    text = model.text.encode(input_ids).tokens
    positions, present = subject_slots(parsed, "cpu")
    fields = {"input_ids": input_ids, "subject_token_idx": positions, "subject_present": present}
    return fuse_references(text, parsed, references, model.image_encoder, model.fusion), fields


def test_prompts_are_conditioned_as_batches(golden_model: FastComposer, golden: Golden) -> None:
    prompts = [
        "a man <|image|> and a woman <|image|> on the beach",
        "a photo of a person <|image|>",
        "a beach",
    ]
    pixels = golden.tensors["batch.object_pixel_values"]
    rows = [[pixels[0, :1], pixels[0, 1:2]], [pixels[1, :1]], []]
    found, fields = encoded(golden_model, prompts, rows)
    assert fields["subject_present"].tolist() == [[True, True], [True, False], [False, False]]
    batch = golden.batch().replace(subject_pixel_values=pixels[:, :2], **fields)
    torch.testing.assert_close(found, golden_model.encode_batch(batch)[0], rtol=1e-5, atol=1e-5)
    assert torch.equal(found[2], golden_model.encode_captions(batch).tokens[2])


@pytest.mark.parametrize("pooling", ["mean", "attention"])
def test_several_references_are_pooled_in_prompts_as_in_batches(
    pooling: Any, golden_model: FastComposer, golden: Golden
) -> None:
    golden_model.adopt_fusion(FusionConfig(pooling=pooling))
    for parameter in golden_model.fusion.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    a, b, c = golden.tensors["batch.object_pixel_values"].flatten(0, 1)[:3]
    prompt = "a man <|image|> and a woman <|image|>"
    found, fields = encoded(golden_model, [prompt], [[torch.stack([a, b]), c[None]]])
    batch = golden.batch().replace(
        subject_pixel_values=torch.stack([a, c])[None],
        extra_pixel_values=torch.stack([b, torch.rand_like(b)])[None, :, None],
        extra_present=torch.tensor([[[True], [False]]]),
        **fields,
    )
    for skip_empty in (False, True):
        prompts, subjects = golden_model.encode_batch(batch, skip_empty=skip_empty)
        torch.testing.assert_close(found, prompts, rtol=1e-5, atol=1e-5)
    single = {"extra_pixel_values": None, "extra_present": None}
    one, two = (
        golden_model.encode_batch(batch.replace(subject_pixel_values=torch.stack([x, c])[None], **single))[1]
        for x in (a, b)
    )
    if pooling == "mean":
        torch.testing.assert_close(subjects[0, 0], (one + two)[0, 0] / 2, rtol=1e-5, atol=1e-5)
    else:
        assert not torch.allclose(subjects[0, 0], (one + two)[0, 0] / 2, atol=1e-3)


def test_masked_references_change_nothing(golden_model: FastComposer, golden: Golden) -> None:
    batch, drawn = golden.batch(), golden.drawn()
    golden_model.loss_config = LossConfig(mask_loss_probability=0)
    plain = golden_model.training_losses(batch, **drawn, skip_empty=True)
    shape = batch.subject_pixel_values.shape
    padded = batch.replace(
        extra_pixel_values=torch.rand(*shape[:2], 2, *shape[2:]),
        extra_present=torch.zeros(*shape[:2], 2, dtype=torch.bool),
    )
    losses = golden_model.training_losses(padded, **drawn, skip_empty=True)
    assert losses.loss.item() == plain.loss.item()
    assert torch.equal(losses.subject_embeds, plain.subject_embeds)


def test_missing_tokenizer_matters_only_for_prompts(
    v_base: Path, published_checkpoint: Path, golden: Golden
) -> None:
    model = FastComposer.from_published_checkpoint(published_checkpoint, base=v_base)
    assert model.tokenizer is None
    model.training_losses(golden.batch(), **golden.drawn())
    with pytest.raises(ValueError, match="no tokenizer, so it cannot read prompts"):
        parse_prompts(["a man"], None, model.tokenizer, model.fusion)
