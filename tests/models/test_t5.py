"""T5 beside CLIP: its tokenizer's own offsets, its states, and everything that carries them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import StableDiffusion3Pipeline
from tiny_architectures import PROMPT, REFERENCES, add_t5, batch_of, narrow
from tiny_pipeline import reference, seeded

from fastcomposer import FastComposer, FastComposerSD3Pipeline, SubjectBatch
from fastcomposer.losses import LossConfig
from fastcomposer.models.fusion import FusionConfig
from fastcomposer.models.loading import load_tokenizer, open_source
from fastcomposer.models.weights_io import load_trained_weights, save_trained_weights
from fastcomposer.pipeline.kinds import open_pipeline
from fastcomposer.pipeline.variants import Variant
from fastcomposer.prompt import JointTokenizer, PromptError, parse_prompt
from fastcomposer.training.module import drop_conditions

LENGTH = 12
SIZE: dict[str, Any] = {"height": 64, "width": 64, "num_inference_steps": 4, "output_type": "latent"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return add_t5(narrow("sd3", tmp_path_factory.mktemp("t5") / "sd3"), LENGTH)


def load(folder: Path, **options: Any) -> FastComposer:
    loss = LossConfig(mask_loss_probability=0)
    options = {"max_subjects": 3, "loss_config": loss, **options}
    return FastComposer.from_pretrained("no/base", architecture=folder, weights="random", **options)


@pytest.fixture(scope="module")
def model(folder: Path) -> FastComposer:
    return load(folder)


@pytest.fixture(scope="module")
def pipe(model: FastComposer) -> FastComposerSD3Pipeline:
    pipe: Any = model.to_pipeline()
    pipe.set_progress_bar_config(disable=True)
    return pipe


class TestPrompts:
    def test_a_word_is_found_by_the_offsets_of_each_tokenizer(self, folder: Path) -> None:
        tokenizer = load_tokenizer("no/base", architecture=folder, weights="random")
        assert isinstance(tokenizer, JointTokenizer) and tokenizer.length == LENGTH
        caption = "a woman <|image|>, and  a man<|image|> on the beach <|image|>"
        parsed = parse_prompt(caption, tokenizer)
        ids = tokenizer.t5(parsed.text, padding="max_length", max_length=LENGTH, truncation=True).input_ids
        assert parsed.input_ids_3 == ids and parsed.all_ids[77:] == ids
        words = tokenizer.t5.convert_ids_to_tokens([parsed.all_ids[i] for i in parsed.subject_token_idx_3])
        assert words == ["man", "▁man", "ch"]  # of "▁wo man", "▁man" and "▁bea ch"
        alone = parse_prompt(caption, tokenizer.clip)
        assert (alone.input_ids, alone.subject_token_idx) == (parsed.input_ids, parsed.subject_token_idx)

    def test_a_word_beyond_the_tokens_of_t5_is_refused(self, pipe: FastComposerSD3Pipeline) -> None:
        short: dict[str, Any] = {**SIZE, "max_sequence_length": 5}
        with pytest.raises(PromptError, match="subject 2"):
            pipe(PROMPT, references=REFERENCES, **short)
        assert len(pipe("a man <|image|>", references=REFERENCES[:1], **short).images) == 1

    def test_every_encoder_reads_the_subjects_words(self, pipe: FastComposerSD3Pipeline) -> None:
        with pytest.raises(ValueError, match="prompt_3"):
            pipe(PROMPT, prompt_3="a man", references=REFERENCES, **SIZE)


class TestTraining:
    def test_training_conditions_as_sampling_does(
        self, model: FastComposer, pipe: FastComposerSD3Pipeline
    ) -> None:
        batch = batch_of(model)
        prompts = [PROMPT, "a man <|image|>"]
        text, _, pooled, _ = pipe.encode_prompt(prompts)
        states = model.encode_captions(batch)
        assert torch.equal(states.tokens, text) and torch.equal(states.pooled, pooled)
        references = [[reference(0), reference(1)], [reference(2)]]
        fused = pipe.encode_prompt(prompts, references=references)[0]
        changed = (fused != text).any(-1)
        expected = torch.zeros_like(changed)
        for row, (clip, t5) in enumerate([((2, 5), (1, 5)), ((2,), (1,))]):
            expected[row, [*clip, *(77 + index for index in t5)]] = True
        assert torch.equal(changed, expected)
        ours, _ = model.encode_batch(batch)
        assert torch.equal((ours != text).any(-1), expected)

    def test_a_step_reaches_the_third_fusion_and_localizes_all_columns(self, model: FastComposer) -> None:
        model.zero_grad()
        losses = model.train().training_losses(batch_of(model), generator=seeded())
        losses.loss.backward()
        assert all(p.grad is not None and p.grad.norm() > 0 for p in model.fusion.third.parameters())
        assert all(p.grad is None for p in model.text_encoder_3.parameters())

    @pytest.mark.parametrize("num_tokens", [1, 3])
    def test_a_subject_has_a_column_among_those_of_t5(self, folder: Path, num_tokens: int) -> None:
        model = load(folder, fusion=FusionConfig(num_tokens=num_tokens))
        batch = batch_of(model)
        columns = model.subject_columns(batch)
        assert columns.shape == (2, 2, num_tokens + 1)
        assert torch.equal(columns[..., -1][batch.subject_present], torch.tensor([78, 82, 78]))
        losses = model.training_losses(batch, generator=seeded())
        losses.loss.backward()
        assert losses.localization_loss != 0

    def test_captions_and_their_states_are_dropped_together(self, model: FastComposer) -> None:
        batch = batch_of(model)
        empty = torch.tensor(parse_prompt("", model.prompt_tokenizer).all_ids)
        states = model.encode_captions(batch)
        batch = batch.replace(text_embeds=states.tokens, pooled_text_embeds=states.pooled)
        dropped = drop_conditions(batch, empty, 1.0, 0.0, None, model.text.encode(empty[None]))
        again = model.encode_captions(dropped.replace(text_embeds=None))
        assert dropped.text_embeds is not None
        torch.testing.assert_close(again.tokens, dropped.text_embeds)
        assert not dropped.subject_present.any()

    def test_batches_without_the_ids_of_t5_are_refused(self, model: FastComposer) -> None:
        batch = batch_of(model)
        with pytest.raises(ValueError, match="text_encoder_3"):
            model.encode_captions(batch.replace(input_ids=batch.input_ids[:, :77]))


class TestSampling:
    def test_alpha_zero_is_the_stock_pipeline(self, pipe: FastComposerSD3Pipeline) -> None:
        stock = StableDiffusion3Pipeline(**{n: p for n, p in pipe.components.items() if n != "fusion"})
        for options in ({}, {"prompt_3": "the beach", "negative_prompt": "a man"}):
            ours = pipe("a man", generator=seeded(), max_sequence_length=9, **SIZE, **options).images
            theirs = stock("a man", generator=seeded(), max_sequence_length=9, **SIZE, **options).images
            assert torch.equal(ours, theirs)

    def test_without_t5_a_model_is_what_it_is_without_the_files(self, folder: Path, tmp_path: Path) -> None:
        index = json.loads((folder / "model_index.json").read_text())
        plain = narrow("sd3", tmp_path / "sd3")
        (plain / "model_index.json").write_text(
            json.dumps(json.loads((plain / "model_index.json").read_text()) | {"max_sequence_length": LENGTH})
        )
        torch.manual_seed(0)
        one = load(folder, t5=False).to_pipeline()
        torch.manual_seed(0)
        other = load(plain).to_pipeline()
        assert index["text_encoder_3"] and one.text_encoder_3 is None and one.tokenizer_3 is None
        assert one.fusion.text_dims == (32, 48)
        images = [
            each(PROMPT, references=REFERENCES, generator=seeded(), alpha=0.5, **SIZE).images
            for each in (one, other)
        ]
        assert torch.equal(*images)

    def test_a_batch_is_its_images_one_by_one(self, pipe: FastComposerSD3Pipeline) -> None:
        prompts, references = ["a man <|image|>", PROMPT], [[reference(0)], REFERENCES]
        given = {**SIZE, "alpha": 0.5, "return_attention": 1}
        together = pipe(prompts, references=references, generator=[seeded(0), seeded(1)], **given)
        for number, (prompt, own) in enumerate(zip(prompts, references, strict=True)):
            alone = pipe(prompt, references=own, generator=seeded(number), **given)
            np.testing.assert_allclose(together.images[number], alone.images[0], rtol=0, atol=1e-4)
            maps = together.attention_maps[number, :, : len(own)]
            np.testing.assert_allclose(maps, alone.attention_maps[0], rtol=0, atol=1e-4)

    def test_variants_are_single_calls(self, pipe: FastComposerSD3Pipeline) -> None:
        variants = [Variant(REFERENCES, alpha) for alpha in (1.0, 0.5)]
        given = {**SIZE, "guidance_scale": 5.0}
        shared = pipe.sample_variants(PROMPT, variants, generator=seeded(), **given).images
        for variant, images in zip(variants, shared, strict=True):
            alone = pipe(
                PROMPT, references=REFERENCES, alpha=variant.alpha, generator=[seeded()], **given
            ).images
            assert torch.equal(images, alone)


class TestFiles:
    def test_a_saved_pipeline_keeps_its_bits(
        self, model: FastComposer, pipe: FastComposerSD3Pipeline, tmp_path: Path
    ) -> None:
        pipe.save_pretrained(tmp_path)
        again = FastComposer.from_pretrained(tmp_path)
        given = {**SIZE, "references": REFERENCES, "alpha": 0.5}
        images = [
            each(PROMPT, generator=seeded(), **given).images
            for each in (pipe, open_pipeline(tmp_path), again.to_pipeline())
        ]
        assert torch.equal(images[0], images[1]) and torch.equal(images[0], images[2])
        assert load_tokenizer(tmp_path).length == LENGTH
        without = open_pipeline(tmp_path, text_encoder_3=None)
        assert not torch.equal(without(PROMPT, generator=seeded(), **given).images, images[0])

    def test_a_saved_fusion_says_whether_t5_belongs_to_it(
        self, folder: Path, pipe: FastComposerSD3Pipeline, tmp_path: Path
    ) -> None:
        pipe.save_pretrained(tmp_path / "with")
        with pytest.raises(ValueError, match=r"model\.t5=true"):
            open_source(tmp_path / "with", None, t5=False)
        load(folder, t5=False).to_pipeline().save_pretrained(tmp_path / "without")
        for part in ("text_encoder_3", "tokenizer_3"):
            shutil.copytree(tmp_path / "with" / part, tmp_path / "without" / part)
        file = tmp_path / "without" / "model_index.json"
        t5 = {"text_encoder_3": ["transformers", "T5EncoderModel"]}
        file.write_text(json.dumps(json.loads(file.read_text()) | t5))
        with pytest.raises(ValueError, match=r"model\.t5=false"):
            open_source(tmp_path / "without", None)

    def test_trained_weights_hold_the_third_fusion(
        self, model: FastComposer, folder: Path, tmp_path: Path
    ) -> None:
        file = save_trained_weights(model, tmp_path / "weights.safetensors")
        other = load(folder)
        for parameter in other.fusion.parameters():
            parameter.data.zero_()
        load_trained_weights(other, file)
        assert torch.equal(other.encode_batch(batch_of(other))[0], model.encode_batch(batch_of(model))[0])
        with pytest.raises(ValueError, match=r"fusion\.third"):
            load_trained_weights(load(folder, t5=False), file)


def test_batches_join_with_the_positions_of_t5(model: FastComposer) -> None:
    batch = batch_of(model)
    joined = SubjectBatch.collate([batch, batch])
    assert joined.subject_token_idx_3 is not None and joined.subject_token_idx_3.shape == (4, 2)
    with pytest.raises(ValueError, match="subject_token_idx_3"):
        SubjectBatch.collate([batch, batch.replace(subject_token_idx_3=None)])
