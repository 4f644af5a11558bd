"""Prompts and batches are conditioned alike."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch

from fastcomposer import FastComposer, PromptError
from fastcomposer.losses import LossConfig
from fastcomposer.models.fusion import FusionConfig
from fastcomposer.prompt import parse_prompt

if TYPE_CHECKING:
    from tests.conftest import Golden


class TestPrompts:
    def test_prompts_and_batches_are_conditioned_alike(
        self, golden_model: FastComposer, golden: Golden
    ) -> None:
        prompts = [
            "a man <|image|> and a woman <|image|> on the beach",
            "a photo of a person <|image|>",
            "a beach",
        ]
        references = golden.tensors["batch.object_pixel_values"]
        rows = [[references[0, 0], references[0, 1]], [references[1, 0]], []]
        encoded = golden_model.encode_prompts(prompts, rows)
        assert encoded.subject_present.tolist() == [[True, True], [True, False], [False, False]]
        parsed = [parse_prompt(prompt, golden_model.tokenizer) for prompt in prompts]
        batch = golden.batch().replace(
            input_ids=torch.tensor([p.input_ids for p in parsed]),
            subject_pixel_values=references[:, :2],
            subject_token_idx=encoded.subject_token_idx,
            subject_present=encoded.subject_present,
        )
        prompt_embeds, subject_embeds = golden_model.encode_batch(batch)
        present = encoded.subject_present
        torch.testing.assert_close(encoded.prompt_embeds, prompt_embeds, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(
            encoded.subject_embeds[present], subject_embeds[present], rtol=1e-5, atol=1e-5
        )
        assert not encoded.subject_embeds[~present].any()
        assert torch.equal(encoded.prompt_embeds[2], encoded.text_embeds[2])

    @pytest.mark.parametrize("pooling", ["mean", "attention"])
    def test_several_references_are_pooled_in_prompts_as_in_batches(
        self, pooling: Any, golden_model: FastComposer, golden: Golden
    ) -> None:
        golden_model.adopt_fusion(FusionConfig(pooling=pooling))
        for parameter in golden_model.fusion.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
        a, b, c = golden.tensors["batch.object_pixel_values"].flatten(0, 1)[:3]
        prompt = "a man <|image|> and a woman <|image|>"
        encoded = golden_model.encode_prompts([prompt], [[torch.stack([a, b]), c]])
        pixels = torch.stack([a, c])[None]
        extra = torch.stack([b, torch.rand_like(b)])[None, :, None]
        batch = golden.batch()
        batch = batch.replace(
            input_ids=torch.tensor([parse_prompt(prompt, golden_model.tokenizer).input_ids]),
            subject_pixel_values=pixels,
            subject_token_idx=encoded.subject_token_idx,
            subject_present=encoded.subject_present,
            extra_pixel_values=extra,
            extra_present=torch.tensor([[[True], [False]]]),
        )
        for skip_empty in (False, True):
            prompts, subjects = golden_model.encode_batch(batch, skip_empty=skip_empty)
            torch.testing.assert_close(encoded.subject_embeds, subjects, rtol=1e-5, atol=1e-5)
            torch.testing.assert_close(encoded.prompt_embeds, prompts, rtol=1e-5, atol=1e-5)
        one, two = (golden_model.encode_prompts(["a man <|image|>"], [[x]]).subject_embeds for x in (a, b))
        if pooling == "mean":
            torch.testing.assert_close(subjects[0, 0], (one + two)[0, 0] / 2, rtol=1e-5, atol=1e-5)
        else:
            assert not torch.allclose(subjects[0, 0], (one + two)[0, 0] / 2, atol=1e-3)

    def test_masked_references_change_nothing(self, golden_model: FastComposer, golden: Golden) -> None:
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

    def test_references_must_match(self, golden_model: FastComposer) -> None:
        with pytest.raises(PromptError, match="1 lists of references for 2 prompts"):
            golden_model.encode_prompts(["a man", "a woman"], [[]])
        with pytest.raises(PromptError, match=r"0 reference image\(s\) for 1 marker"):
            golden_model.encode_prompts(["a man <|image|>"])
        many = "a man <|image|> " * 5
        with pytest.raises(PromptError, match=r"5 subjects .* the model takes 4 at most"):
            golden_model.encode_prompts([many], [[torch.zeros(3, 56, 56)] * 5])

    def test_missing_tokenizer_matters_only_for_prompts(
        self, v_base: Path, published_checkpoint: Path, golden: Golden
    ) -> None:
        model = FastComposer.from_published_checkpoint(published_checkpoint, base=v_base)
        assert model.tokenizer is None
        model.training_losses(golden.batch(), **golden.drawn())
        with pytest.raises(ValueError, match="no tokenizer, so it cannot read prompts"):
            model.encode_prompts(["a man"])
