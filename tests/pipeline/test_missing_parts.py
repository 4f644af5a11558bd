"""Pipelines without some of their parts, as diffusers' common tests of pipelines make them."""

from __future__ import annotations

import ast
import inspect
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_pipeline import ONE, SIZE, reference, seeded

from fastcomposer import FastComposerPipeline, FastComposerSD3Pipeline, SubjectFusion
from fastcomposer.models.fusion import PairedFusion

CALL: dict[str, Any] = {**SIZE, "output_type": "np", "guidance_scale": 5.0}
NEEDS = {  # arguments of the call that needs a part
    "vae": {"prompt": "a man"},
    "backbone": {"prompt": "a man"},
    "scheduler": {"prompt": "a man"},
    "tokenizer": {"prompt": "a man"},
    "text_encoder": {"prompt": "a man"},
    "image_encoder": {"prompt": ONE, "references": [reference(0)]},
    "fusion": {"prompt": ONE, "references": [reference(0)]},
}


PIPELINES = {"stable_diffusion": "shared", "stable_diffusion_xl": "large", "stable_diffusion_3": "with_t5"}


@pytest.fixture(params=PIPELINES)
def full(request: pytest.FixtureRequest) -> Any:
    """Each of the pipelines, complete."""
    pipe = request.getfixturevalue(PIPELINES[request.param])
    return quiet(type(pipe)(**pipe.components))


def quiet(pipe: Any) -> Any:
    pipe.set_progress_bar_config(disable=True)
    return pipe


def without(pipe: Any, *names: str) -> Any:
    return quiet(type(pipe)(**{**pipe.components, **dict.fromkeys(names)}))


def reads_text(name: str) -> bool:
    return "text" in name or "tokenizer" in name


def encode(pipe: Any, prompt: str = "a man", **more: Any) -> dict[str, torch.Tensor]:
    """Embeddings under the names that encode_prompt returns, which the call of the pipeline also takes."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(type(pipe).encode_prompt)))
    (returned,) = [node.value for node in ast.walk(tree) if isinstance(node, ast.Return)]
    assert isinstance(returned, ast.Tuple)
    names = [element.id for element in returned.elts if isinstance(element, ast.Name)]
    assert set(names) < set(inspect.signature(type(pipe).__call__).parameters)
    values = pipe.encode_prompt(
        prompt=prompt,
        device=torch.device("cpu"),
        num_images_per_prompt=1,
        do_classifier_free_guidance=True,
        negative_prompt="a beach",
        **more,
    )
    return dict(zip(names, values, strict=True))


def test_prompts_are_encoded_and_images_sampled_apart(full: Any) -> None:
    """As diffusers' ``test_encode_prompt_works_in_isolation``."""
    expected = full("a man", negative_prompt="a beach", generator=seeded(), **CALL).images
    text = without(full, *(name for name in full.components if not reads_text(name)))
    embeds = encode(text)
    assert all(isinstance(value, torch.Tensor) for value in embeds.values())
    rest = without(full, *(name for name in full.components if reads_text(name)))
    assert np.array_equal(rest(**embeds, generator=seeded(), **CALL).images, expected)


def test_subjects_are_encoded_and_images_sampled_apart(full: Any) -> None:
    expected = full(
        ONE, references=[reference(0)], alpha=0.5, negative_prompt="a beach", generator=seeded(), **CALL
    ).images
    conditions = without(full, "vae", full.BACKBONE, "scheduler")
    embeds = encode(conditions, ONE)
    subject = encode(conditions, ONE, references=[reference(0)])["prompt_embeds"]
    rest = without(full, *filter(reads_text, full.components), "image_encoder", "fusion")
    found = rest(**embeds, subject_prompt_embeds=subject, alpha=0.5, generator=seeded(), **CALL).images
    assert np.array_equal(found, expected)


def test_text_alone_needs_nothing_for_references(full: Any) -> None:
    expected = full("a man", generator=seeded(), **CALL).images
    plain = without(full, "image_encoder", "fusion")
    assert np.array_equal(plain("a man", generator=seeded(), **CALL).images, expected)
    assert np.array_equal(plain("a man <|image|>", alpha=0, generator=seeded(), **CALL).images, expected)


@pytest.mark.parametrize("part", NEEDS)
def test_the_call_that_needs_a_part_names_it(full: Any, part: str) -> None:
    name = full.BACKBONE if part == "backbone" else part
    with pytest.raises(ValueError, match=f"no .*{name}"):
        without(full, name)(**NEEDS[part], **CALL)


def test_encoding_names_what_it_needs(full: Any) -> None:
    further = [name for name in ("tokenizer_2", "text_encoder_2", "tokenizer_3") if name in full.components]
    for part in ("tokenizer", "text_encoder", *further):
        with pytest.raises(ValueError, match=f"no {part}: give prompt_embeds"):
            encode(without(full, part))
    for part in ("image_encoder", "fusion"):
        pipe = without(full, part)
        encode(pipe, ONE)
        with pytest.raises(ValueError, match=f"no {part}: references"):
            encode(pipe, ONE, references=[reference(0)])
    with pytest.raises(ValueError, match="no image_encoder and no fusion"):
        encode(without(full, "image_encoder", "fusion"), ONE, references=[reference(0)])


def test_guidance_without_negative_embeddings_needs_the_text_encoder(full: Any) -> None:
    embeds = {name: value for name, value in encode(full).items() if not name.startswith("negative")}
    rest = without(full, *filter(reads_text, full.components))
    with pytest.raises(ValueError, match=r"no tokenizer.* and no text_encoder.*negative"):
        rest.encode_prompt(
            None,
            device=torch.device("cpu"),
            num_images_per_prompt=1,
            do_classifier_free_guidance=True,
            negative_prompt="a beach",
            **embeds,
        )
    latents = rest(**embeds, **{**CALL, "guidance_scale": 1.0, "output_type": "latent"}).images
    assert latents.shape[:2] == (1, full.vae.config.latent_channels)


def test_t5_names_what_it_needs_or_leaves_to_the_transformer(with_t5: FastComposerSD3Pipeline) -> None:
    with pytest.raises(ValueError, match="no tokenizer_3"):
        without(with_t5, "tokenizer_3")(ONE, references=[reference(0)], **CALL)
    with pytest.raises(ValueError, match="no transformer"):
        encode(without(with_t5, "text_encoder_3", "transformer"))


def test_latents_need_no_vae(full: Any) -> None:
    options = {**CALL, "output_type": "latent", "height": 64, "width": 64}
    latents = without(full, "vae")("a man", generator=seeded(), **options).images
    # 8 is what diffusers takes for the factor of a VAE that it lacks.
    assert latents.shape == (1, full.vae.config.latent_channels, 8, 8)


def test_optional_parts_stay_away_when_saved(full: Any, tmp_path: Path) -> None:
    """As diffusers' ``test_save_load_optional_components``."""
    embeds = encode(full)
    for name in full._optional_components:
        setattr(full, name, None)
    expected = full(**embeds, generator=seeded(), **CALL).images
    full.save_pretrained(tmp_path)
    again = quiet(type(full).from_pretrained(tmp_path))
    assert {name for name, part in again.components.items() if part is None} == {*full._optional_components}
    assert np.array_equal(again(**embeds, generator=seeded(), **CALL).images, expected)


def test_parts_that_are_there_must_fit(full: Any) -> None:
    large = type(full) is not FastComposerPipeline
    other: Any = PairedFusion([32, 16], image_dim=32) if large else SubjectFusion(48)
    with pytest.raises(ValueError, match=r"the fusion is .* wide, but the text encoder"):
        type(full)(**{**full.components, "fusion": other, "image_encoder": None})
    other = PairedFusion([32, 48], image_dim=20) if large else SubjectFusion(32, image_dim=20)
    with pytest.raises(ValueError, match="projects to 32 numbers"):
        type(full)(**{**full.components, "fusion": other, "text_encoder": None})


def test_variants_name_what_they_need(shared: FastComposerPipeline) -> None:
    from fastcomposer.pipeline.variants import Variant

    for part in ("unet", "vae", "image_encoder"):
        with pytest.raises(ValueError, match=f"no {part}"):
            without(shared, part).sample_variants(
                ONE, [Variant([reference(0)])], generator=seeded(), output_type="np", **SIZE
            )
