"""Learned people: in prompts, on disk, in pipelines, alone and together."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from fastcomposer.composer import FastComposer
from fastcomposer.data.portraits import ReferenceSet
from fastcomposer.models.text import encode_text
from fastcomposer.pipeline.stable_diffusion import FastComposerPipeline
from fastcomposer.prompt import PromptError
from fastcomposer.training.personalization.concept import (
    Concept,
    apply_concepts,
    read_concepts,
    rewrite_prompt,
    write_concepts,
)
from fastcomposer.training.personalization.tokens import with_tokens

Make = Callable[..., Any]
ALL = ("textual_inversion", "dreambooth", "custom_diffusion")


def concept(method: str = "custom_diffusion", word: str = "man", token: str = "<adam>") -> Concept:
    return Concept(method, word, token, Path("nowhere"), 1.5, 0, 7, 3)


@pytest.fixture(scope="module")
def pipeline(small_base: Path) -> FastComposerPipeline:
    pipe = FastComposer.from_pretrained(small_base).to_pipeline()
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture
def unchanged(pipeline: FastComposerPipeline) -> Iterator[None]:
    """Whatever a test does, the pipeline draws the same afterwards, with the same weights and words."""
    parts = {name: part for name, part in pipeline.components.items() if isinstance(part, torch.nn.Module)}
    before = {name: {k: v.clone() for k, v in part.state_dict().items()} for name, part in parts.items()}
    image, known = draw(pipeline, "a man <adam>"), len(pipeline.tokenizer)
    yield
    for name, part in parts.items():
        assert getattr(pipeline, name) is part
        assert all(torch.equal(before[name][k], v) for k, v in part.state_dict().items()), name
    assert np.array_equal(draw(pipeline, "a man <adam>"), image)
    assert len(pipeline.tokenizer) == known


@pytest.fixture
def learn(make: Make, fit: Make, people: tuple[ReferenceSet, ...], tmp_path: Path) -> Callable[..., Any]:
    """Learn some of the people, by number, in a folder of their own."""

    def run(method: str, *numbers: int) -> tuple[Concept, ...]:
        module = make(method, steps=3)
        fit(module, tuple(people[i] for i in numbers))
        return module.export(tmp_path / f"{method}{numbers}")

    return run


def draw(pipeline: FastComposerPipeline, prompt: str) -> np.ndarray:
    options = {
        "num_inference_steps": 2,
        "height": 16,
        "width": 16,
        "output_type": "np",
        "guidance_scale": 3.0,
    }
    return pipeline(prompt, generator=torch.Generator().manual_seed(0), **options).images[0]


# --- prompts -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("prompt", "concepts", "expected"),
    [
        ("a man <|image|> on the beach", [concept()], "a <adam> man on the beach"),
        ("a man <|image|> on the beach", [concept("textual_inversion")], "a <adam> on the beach"),
        ("A Man<|image|>, smiling", [concept("dreambooth", token="sks")], "A sks man, smiling"),
        (
            "a woman <|image|> and a man <|image|> together",
            [concept(word="woman", token="<eve>"), concept()],
            "a <eve> woman and a <adam> man together",
        ),
        ("an old man <|image|>", [concept(word="old man")], "an <adam> old man"),
        ("in the snow", [], "in the snow"),
    ],
)
def test_tokens_take_the_markers_places(prompt: str, concepts: list[Concept], expected: str) -> None:
    assert rewrite_prompt(prompt, concepts) == expected


@pytest.mark.parametrize(
    ("prompt", "concepts", "message"),
    [
        ("a man <|image|>", [concept(), concept()], r"2 concept\(s\) for 1 marker\(s\)"),
        ("a man", [concept()], r"1 concept\(s\) for 0 marker\(s\)"),
        ("a woman <|image|>", [concept()], r"<adam> is a man, but prompt .* has a marker after 'woman'"),
    ],
)
def test_prompts_that_do_not_fit_are_named(prompt: str, concepts: list[Concept], message: str) -> None:
    with pytest.raises(PromptError, match=message):
        rewrite_prompt(prompt, concepts)


# --- disk --------------------------------------------------------------------------------------------------


def test_what_is_missing_or_broken_is_named(tmp_path: Path, pipeline: FastComposerPipeline) -> None:
    with pytest.raises(FileNotFoundError, match=r"no finished concept.*concept\.json"):
        read_concepts(tmp_path)
    (tmp_path / "concept.json").write_text("{}")
    with pytest.raises(ValueError, match="cannot be read as a concept"):
        read_concepts(tmp_path)
    with pytest.raises(FileNotFoundError, match="nowhere"):
        apply_concepts(pipeline, [concept()])
    (tmp_path / "x.safetensors").write_text("no weights")
    with pytest.raises(ValueError, match=r"x\.safetensors cannot be read"):
        apply_concepts(pipeline, [replace(concept(), file=tmp_path / "x.safetensors")])


# --- pipelines ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ALL)
@pytest.mark.usefixtures("unchanged")
def test_a_concept_from_disk_changes_the_image_and_nothing_of_the_pipeline(
    learn: Make, pipeline: FastComposerPipeline, method: str
) -> None:
    (learned,) = learn(method, 0)
    (found,) = read_concepts(learned.file.parent)
    known = apply_concepts(pipeline, [found])
    prompt = rewrite_prompt("a man <|image|> on the beach", [found])
    assert np.abs(draw(known, prompt) - draw(pipeline, prompt)).mean() > 1e-5
    shared = {"textual_inversion": "unet", "dreambooth": "text_encoder", "custom_diffusion": "vae"}[method]
    assert known.components[shared] is pipeline.components[shared]
    stored = load_file(learned.file)
    for name in (name for name in stored if name.startswith("unet.")):
        assert torch.equal(known.unet.state_dict()[name[5:]], stored[name].float())
    if method != "dreambooth":
        number = known.tokenizer.convert_tokens_to_ids("<adam>")
        assert known.tokenizer(prompt).input_ids.count(number) == 1
        row = known.text_encoder.get_input_embeddings().weight[number]
        assert torch.equal(row, stored["tokens.<adam>"].float())
    known.to(torch.float64)  # moves its own weights, not the shared ones of the networks it copied
    assert next(pipeline.text_encoder.parameters()).dtype == (
        torch.float32 if method != "dreambooth" else torch.float64
    )
    known.to(torch.float32)


@pytest.mark.usefixtures("unchanged")
def test_two_people_of_custom_diffusion_learned_together(learn: Make, pipeline: FastComposerPipeline) -> None:
    both = learn("custom_diffusion", 0, 1)
    assert read_concepts(both[0].file.parent) == both
    assert both[0].file == both[1].file
    assert sum(learned.stored_bytes for learned in both) == pytest.approx(both[0].file.stat().st_size, abs=1)
    assert both[0].steps == 6
    known = apply_concepts(pipeline, both)
    prompt = rewrite_prompt("a man <|image|> and a woman <|image|>", both)
    assert np.abs(draw(known, prompt) - draw(pipeline, prompt)).mean() > 1e-5
    alone = apply_concepts(pipeline, both[1:])  # one of them
    assert alone.tokenizer.convert_tokens_to_ids("<eve>") == 500


@pytest.mark.usefixtures("unchanged")
def test_people_of_custom_diffusion_learned_apart_are_merged(
    learn: Make, pipeline: FastComposerPipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fastcomposer.training.personalization.merge._RIDGE", 1e-9)
    concepts = [*learn("custom_diffusion", 0), *learn("custom_diffusion", 1)]
    rows = [load_file(learned.file) for learned in concepts]
    for k, state in enumerate(rows):  # far enough from each other and from the base to tell them apart
        generator = torch.Generator().manual_seed(k)
        state |= {n: v.float() + 0.3 * torch.randn(v.shape, generator=generator) for n, v in state.items()}
        concepts[k] = write_concepts(tmp_path / str(k), [concepts[k]], state, {})[0]
    known = apply_concepts(pipeline, concepts)
    for learned, state in zip(concepts, rows, strict=True):
        ids = known.tokenizer(
            [f"photo of a {learned.phrase}"], padding="max_length", return_tensors="pt"
        ).input_ids
        states = encode_text(known.text_encoder, ids)[0, 4:7]  # token, class word, end
        for name in (name for name in state if name.startswith("unet.")):
            merged = known.unet.state_dict()[name[5:]]
            base = pipeline.unet.state_dict()[name[5:]]
            wanted = states @ state[name].T
            assert (states @ base.T - wanted).norm() > 0.1 * wanted.norm()
            assert (states @ merged.T - wanted).norm() < 0.01 * wanted.norm()


def test_concepts_that_do_not_go_together_are_named(learn: Make, pipeline: FastComposerPipeline) -> None:
    (one,) = learn("dreambooth", 0)
    with pytest.raises(ValueError, match="dreambooth takes one person at a time, not 2"):
        apply_concepts(pipeline, [one, one])
    with pytest.raises(ValueError, match="not of none"):
        apply_concepts(pipeline, [])
    with pytest.raises(ValueError, match="not of custom_diffusion and dreambooth"):
        apply_concepts(pipeline, [one, concept()])
    (adam,) = learn("textual_inversion", 0)
    with pytest.raises(ValueError, match="two concepts have one token"):
        apply_concepts(pipeline, [adam, adam])


def test_concepts_of_another_base_are_named(
    learn: Make, write_base: Make, tmp_path: Path, pipeline: FastComposerPipeline
) -> None:
    other = FastComposer.from_pretrained(write_base(tmp_path / "base")).to_pipeline()
    (one,) = learn("dreambooth", 0)
    with pytest.raises(ValueError, match=r"does not fit the base model:\n  shape: unet"):
        apply_concepts(other, [one])
    wide = write_concepts(
        tmp_path / "wide", [concept("textual_inversion")], {"tokens.<adam>": torch.ones(9)}, {}
    )
    with pytest.raises(ValueError, match="<adam> has 9 numbers, but the base's tokens have 32"):
        apply_concepts(pipeline, wide)


# --- tokens ------------------------------------------------------------------------------------------------


def test_known_tokens_are_refused(pipeline: FastComposerPipeline) -> None:
    for tokens, taken in ((["<a>", "<A>"], "<a>"), (["man</w>"], "man</w>")):
        with pytest.raises(ValueError, match=f"token {taken} is there already"):
            with_tokens(pipeline.tokenizer, tokens)
