"""Batches, and calls that do not fit."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from diffusers.pipelines.stable_diffusion import pipeline_stable_diffusion
from tiny_pipeline import ONE, SIZE, TWO, reference, seeded

from fastcomposer import FastComposerPipeline, PromptError
from fastcomposer.pipeline import stable_diffusion as ours


class TestBatches:
    def test_batched_prompts_equal_one_by_one(self, pipe: FastComposerPipeline) -> None:
        prompts = [TWO, ONE, "a beach"]
        references = [[reference(0), reference(1)], [reference(2)], []]
        options: dict[str, Any] = {**SIZE, "output_type": "np", "guidance_scale": 5.0}
        options["generator"] = [seeded(i) for i in range(6)]
        together = pipe(prompts, references=references, num_images_per_prompt=2, **options).images
        assert together.shape == (6, 32, 32, 3)
        for index in range(6):
            prompt, row = prompts[index // 2], references[index // 2]
            options["generator"] = seeded(index)
            alone = pipe(prompt, references=row, **options).images
            assert np.abs(together[index] - alone[0]).max() < 1e-4

    def test_several_references_of_a_subject(self, pipe: FastComposerPipeline) -> None:
        a, b, c = map(reference, range(3))

        def embeds(prompt: Any, references: Any) -> torch.Tensor:
            return pipe.encode_prompt(prompt, torch.device("cpu"), 1, False, references=references)[0]

        both = embeds(TWO, [[a, b], c])
        assert torch.equal(both, embeds(TWO, [[a, b], [c]]))
        assert torch.equal(embeds(TWO, [[a], [c]]), embeds(TWO, [a, c]))
        assert torch.allclose(embeds(TWO, [[a, a, a], c]), embeds(TWO, [a, c]), atol=1e-5)
        first, second = (both != embeds(TWO, None))[0].any(-1).nonzero().flatten().tolist()
        assert torch.allclose(both[0, second], embeds(TWO, [a, c])[0, second], atol=1e-5)
        for other in (a, b):
            assert not torch.allclose(both[0, first], embeds(TWO, [other, c])[0, first], atol=1e-4)
        # The same for a list of prompts, one level deeper.
        rows = embeds([TWO, ONE], [[[a, b], c], [b]])
        assert torch.allclose(rows[0], both[0], atol=1e-5)
        assert torch.allclose(rows[1], embeds(ONE, b)[0], atol=1e-5)

    def test_nesting_that_does_not_fit_is_refused_before_anything_runs(
        self, pipe: FastComposerPipeline
    ) -> None:
        a, b = reference(0), reference(1)
        with pytest.raises(PromptError, match=r"1 reference image\(s\) for 2 marker.*a list of their own"):
            pipe(TWO, references=[[a, b]], **SIZE)
        with pytest.raises(PromptError, match=r"references\[0\] holds lists of lists"):
            pipe(TWO, references=[[[a, b]], [[a]]], **SIZE)
        with pytest.raises(PromptError, match=r"references for 1 prompt\(s\), but 2 prompt"):
            pipe([TWO, ONE], references=[[a, b]], **SIZE)

    def test_embeddings_stand_in_for_prompt_and_references(self, pipe: FastComposerPipeline) -> None:
        images, device = [reference(0), reference(1)], torch.device("cpu")
        text, negative = pipe.encode_prompt(TWO, device, 1, True)
        subject, _ = pipe.encode_prompt(TWO, device, 1, False, references=images)
        assert not torch.equal(text, subject)
        expected = pipe(TWO, references=images, generator=seeded(), output_type="np", **SIZE).images
        embeds = {"negative_prompt_embeds": negative, "subject_prompt_embeds": subject}
        for prompt in ({"prompt_embeds": text}, {"prompt": TWO}):
            again = pipe(**prompt, **embeds, generator=seeded(), output_type="np", **SIZE).images
            assert np.array_equal(again, expected)

    def test_clip_skip_takes_an_earlier_layer(self, pipe: FastComposerPipeline) -> None:
        device = torch.device("cpu")
        tokens = pipe.tokenizer("a man", padding="max_length", max_length=77, return_tensors="pt").input_ids
        states = pipe.text_encoder(tokens, output_hidden_states=True).hidden_states
        expected = pipe.text_encoder.final_layer_norm(states[-2])
        skipped, _ = pipe.encode_prompt("a man", device, 1, False, clip_skip=1)
        assert torch.equal(skipped, expected)
        image = pipe(
            ONE, references=[reference(0)], clip_skip=1, generator=seeded(), output_type="np", **SIZE
        )
        other = pipe(ONE, references=[reference(0)], generator=seeded(), output_type="np", **SIZE)
        assert not np.array_equal(image.images, other.images)

    def test_scale_of_lora_layers_holds_for_an_earlier_layer_too(
        self, pipe: FastComposerPipeline, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Layers that are scaled stand in for LoRA's, whose library is not needed here."""
        weight = pipe.text_encoder.encoder.layers[0].mlp.fc1.weight.data

        def encode(scale: float, clip_skip: int | None) -> torch.Tensor:
            device = torch.device("cpu")
            return pipe.encode_prompt("a man", device, 1, False, lora_scale=scale, clip_skip=clip_skip)[0]

        for module in (ours, pipeline_stable_diffusion):
            monkeypatch.setattr(module, "USE_PEFT_BACKEND", True)
            monkeypatch.setattr(module, "scale_lora_layers", lambda _, scale: weight.mul_(scale))
            monkeypatch.setattr(module, "unscale_lora_layers", lambda _, scale: weight.div_(scale))
        assert torch.equal(encode(0.5, 0), encode(0.5, None))
        assert not torch.allclose(encode(0.5, 1), encode(1.0, 1), atol=1e-3)


class TestErrors:
    @pytest.mark.parametrize(
        ("options", "error", "message"),
        [
            ({"references": [reference(0)] * 2}, PromptError, r"2 reference image\(s\) for 1 marker"),
            ({"references": []}, PromptError, r"0 reference image\(s\) for 1 marker"),
            ({}, PromptError, r"0 reference image\(s\) for 1 marker"),
            ({"references": [reference(0)], "prompt": [ONE, ONE]}, PromptError, r"references for 1 prompt"),
            ({"references": [reference(0)], "prompt": "<|image|> on"}, PromptError, "no word before it"),
            ({"references": [reference(0)], "alpha": float("nan")}, ValueError, "alpha must lie in"),
            ({"references": [reference(0)], "height": 36}, ValueError, "divisible by 8"),
            ({"references": [reference(0)], "width": 33}, ValueError, "multiples of 2, not 32 and 33"),
            ({"references": ["absent.png"]}, FileNotFoundError, "absent.png does not exist"),
            ({"references": [reference(0)], "return_attention": -1}, ValueError, "number of groups of steps"),
            (
                {"references": [reference(0)], "subject_prompt_embeds": torch.zeros(1, 77, 32)},
                ValueError,
                "references or subject_prompt_embeds, not both",
            ),
            (
                {"subject_prompt_embeds": torch.zeros(2, 77, 32)},
                ValueError,
                r"subject_prompt_embeds are \(2, 77, 32\), the prompt's embeddings \(1, 77, 32\)",
            ),
            (
                {"prompt": None, "prompt_embeds": torch.zeros(1, 77, 32), "references": [reference(0)]},
                ValueError,
                "references need a prompt with markers",
            ),
            (
                {"prompt": None, "prompt_embeds": torch.zeros(1, 77, 32), "return_attention": 1},
                ValueError,
                "return_attention needs a prompt with markers",
            ),
        ],
    )
    def test_bad_calls(
        self, options: dict[str, Any], error: type[Exception], message: str, pipe: FastComposerPipeline
    ) -> None:
        with pytest.raises(error, match=message):
            pipe(**{"prompt": ONE, **SIZE, **options})

    def test_unknown_argument(self, pipe: FastComposerPipeline) -> None:
        with pytest.raises(TypeError, match="reference"):
            pipe(ONE, reference=[reference(0)])
