"""What only the pipeline of Stable Diffusion 3 has; the rest is in tests/models/test_architectures.py."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import StableDiffusion3Pipeline
from tiny_architectures import narrow
from tiny_pipeline import reference, seeded

from fastcomposer import FastComposer, FastComposerSD3Pipeline
from fastcomposer.pipeline.kinds import open_pipeline

SIZE: dict[str, Any] = {"height": 64, "width": 64, "num_inference_steps": 4, "output_type": "np"}
MAN = "a man <|image|> on the beach"


@pytest.fixture(scope="module")
def pipe(tmp_path_factory: pytest.TempPathFactory) -> FastComposerSD3Pipeline:
    folder = narrow("sd3", tmp_path_factory.mktemp("sd3") / "sd3")
    pipe = FastComposer.from_pretrained("no/base", architecture=folder, weights="random").to_pipeline()
    assert isinstance(pipe, FastComposerSD3Pipeline)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="module")
def stock(pipe: FastComposerSD3Pipeline) -> StableDiffusion3Pipeline:
    parts = {name: part for name, part in pipe.components.items() if name != "fusion"}
    stock = StableDiffusion3Pipeline(**parts)
    stock.set_progress_bar_config(disable=True)
    return stock


@pytest.mark.parametrize(
    "options",
    [
        {"prompt_2": "a woman", "negative_prompt": "red", "negative_prompt_2": "blue", "clip_skip": 0},
        {"negative_prompt": "red", "max_sequence_length": 0, "num_images_per_prompt": 2},
        {"sigmas": [1.0, 0.6, 0.2], "guidance_scale": 1.0},
        {"skip_guidance_layers": [1], "num_inference_steps": 6, "skip_layer_guidance_stop": 0.7},
        {"output_type": "latent"},
    ],
)
def test_code_for_stable_diffusion_3_runs_unchanged(
    options: dict[str, Any], pipe: FastComposerSD3Pipeline, stock: StableDiffusion3Pipeline
) -> None:
    given = {**SIZE, **options}
    ours = pipe("a man", generator=seeded(), **given).images
    theirs = stock("a man", generator=seeded(), **given).images
    assert np.array_equal(np.asarray(ours), np.asarray(theirs))


def test_signature_begins_with_that_of_stable_diffusion_3() -> None:
    theirs = inspect.signature(StableDiffusion3Pipeline.__call__).parameters
    ours = inspect.signature(FastComposerSD3Pipeline.__call__).parameters
    assert [*ours][: len(theirs)] == [*theirs]
    more = ["references", "alpha", "subject_prompt_embeds", "return_attention", "guidance_interval"]
    assert [*ours][len(theirs) :] == more
    differing = [name for name in theirs if ours[name].default != theirs[name].default]
    # max_sequence_length has its default in the pipeline's configuration.
    assert differing == ["callback_on_step_end_tensor_inputs", "max_sequence_length"]
    assert inspect.signature(FastComposerSD3Pipeline).parameters["max_sequence_length"].default == 256


def test_a_batch_is_its_images_one_by_one(pipe: FastComposerSD3Pipeline) -> None:
    prompts = [MAN, "a man <|image|> and a woman <|image|>"]
    references = [[reference(0)], [reference(1), reference(2)]]
    given = {**SIZE, "alpha": 0.5, "max_sequence_length": 8}
    together = pipe(prompts, references=references, generator=[seeded(0), seeded(1)], **given).images
    for number, (prompt, own) in enumerate(zip(prompts, references, strict=True)):
        alone = pipe(prompt, references=own, generator=seeded(number), **given).images
        np.testing.assert_allclose(together[number], alone[0], rtol=0, atol=1e-4)


def test_a_saved_pipeline_keeps_its_length_and_its_bits(
    pipe: FastComposerSD3Pipeline, tmp_path: Path
) -> None:
    short = FastComposerSD3Pipeline(**pipe.components, max_sequence_length=3)
    assert short.encode_prompt(MAN)[0].shape[1] == 77 + 3
    short.save_pretrained(tmp_path)
    loaded = open_pipeline(tmp_path)
    assert loaded.config.max_sequence_length == 3 and loaded.text_encoder_3 is None
    again = FastComposer.from_pretrained(tmp_path)
    assert again.family.settings["max_sequence_length"] == 3
    given = {**SIZE, "alpha": 1.0, "references": [reference(0)]}
    images = [each(MAN, generator=seeded(), **given).images for each in (loaded, again.to_pipeline())]
    assert np.array_equal(*images)


def test_training_sees_what_sampling_sees(pipe: FastComposerSD3Pipeline) -> None:
    """The same velocity from the states of CLIP alone and from the pipeline's padded ones."""
    model = FastComposer(
        **{name: getattr(pipe, name) for name in ("vae", "text_encoder", "image_encoder", "fusion")},
        **{name: getattr(pipe, name) for name in ("transformer", "text_encoder_2")},
        **{name: getattr(pipe, name) for name in ("tokenizer", "tokenizer_2")},
        unet=None,
        noise_scheduler=pipe.scheduler,
    )
    text, _, pooled, _ = pipe.encode_prompt("a man", do_classifier_free_guidance=False)
    ids = torch.tensor([model.tokenizer("a man", padding="max_length").input_ids])
    states = model.text.encode(ids)
    noisy, timestep = torch.randn(1, 16, 8, 8, generator=seeded()), torch.tensor([300.0])
    with torch.no_grad():
        ours = model.predict(noisy, timestep, states.tokens, {"text_embeds": states.pooled})
        theirs = pipe.transformer(noisy, text, pooled, timestep).sample
    assert torch.equal(ours, theirs)


def test_references_go_with_one_prompt(pipe: FastComposerSD3Pipeline) -> None:
    with pytest.raises(ValueError, match="prompt_2"):
        pipe(MAN, prompt_2="a man", references=[reference(0)], **SIZE)
