"""What only the pipeline of Stable Diffusion 3 has; the rest is in tests/models/test_architectures.py."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, StableDiffusion3Pipeline
from diffusers.models.attention_processor import SD3IPAdapterJointAttnProcessor2_0
from diffusers.models.embeddings import IPAdapterTimeImageProjection
from diffusers.models.transformers.transformer_sd3 import SD3Transformer2DModel
from tiny_architectures import PROMPT, REFERENCES, batch_of, narrow
from tiny_pipeline import reference, seeded

from fastcomposer import FastComposer, FastComposerSD3Pipeline
from fastcomposer.data.reference import prepare_reference
from fastcomposer.models.fusion import FusionConfig
from fastcomposer.models.weights_io import save_trained_weights
from fastcomposer.pipeline.kinds import open_pipeline
from fastcomposer.pipeline.variants import Variant
from fastcomposer.prompt import parse_prompt
from fastcomposer.training.module import drop_conditions

SIZE: dict[str, Any] = {"height": 64, "width": 64, "num_inference_steps": 4, "output_type": "np"}
MAN = "a man <|image|> on the beach"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> FastComposer:
    folder = narrow("sd3", tmp_path_factory.mktemp("sd3") / "sd3")
    return FastComposer.from_pretrained("no/base", architecture=folder, weights="random")


@pytest.fixture(scope="module")
def pipe(model: FastComposer) -> FastComposerSD3Pipeline:
    pipe = model.to_pipeline()
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
        {"output_type": "latent", "width": None, "height": 32},
    ],
)
def test_code_for_stable_diffusion_3_runs_unchanged(
    options: dict[str, Any], pipe: FastComposerSD3Pipeline, stock: StableDiffusion3Pipeline
) -> None:
    given = {**SIZE, **options}
    ours = pipe("a man", generator=seeded(), **given).images
    theirs = stock("a man", generator=seeded(), **given).images
    assert np.array_equal(np.asarray(ours), np.asarray(theirs))


def test_skipped_layers_count_in_guided_calls_alone(
    pipe: FastComposerSD3Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows: list[tuple[int, bool]] = []

    def forward(*args: Any, **options: Any) -> Any:
        rows.append((len(options["hidden_states"]), "skip_layers" in options))
        return SD3Transformer2DModel.forward(pipe.transformer, *args, **options)

    given = {**SIZE, "num_inference_steps": 6, "references": [reference(0)], "alpha": 1.0}
    given |= {"skip_guidance_layers": [1], "skip_layer_guidance_stop": 0.7}
    expected = pipe(MAN, generator=seeded(), **given).images
    watched = pipe(MAN, generator=seeded(), return_attention=1, **given)
    np.testing.assert_allclose(watched.images, expected, rtol=0, atol=1e-5)
    monkeypatch.setattr(pipe.transformer, "forward", forward)
    pipe(MAN, guidance_interval=(1.0, float("inf")), **given)
    unguided = rows.index((1, False))
    assert rows[:unguided] == [(2, False)] + [(2, False), (1, True)] * ((unguided - 1) // 2)
    assert unguided > 1 and set(rows[unguided:]) == {(1, False)} and len(rows) - unguided > 1


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


def test_training_sees_what_sampling_sees(model: FastComposer, pipe: FastComposerSD3Pipeline) -> None:
    text, negative, pooled, _ = pipe.encode_prompt([PROMPT, "a man"])
    batch = batch_of(model)
    cached = model.text.encode(batch.input_ids, pad=False)
    batch = batch.replace(text_embeds=cached.tokens, pooled_text_embeds=cached.pooled)
    states = model.encode_captions(batch)
    assert cached.tokens.shape == (2, 77, 32 + 48) and torch.equal(states.tokens, text)
    empty = torch.tensor(parse_prompt("", model.tokenizer).input_ids)
    dropped = drop_conditions(batch, empty, 1.0, 0.0, None, model.text.encode(empty[None]))
    assert torch.equal(model.encode_captions(dropped).tokens, negative)
    noisy, timesteps = torch.randn(2, 16, 8, 8, generator=seeded()), torch.tensor([300.0, 700.0])
    with torch.no_grad():
        ours = model.predict(noisy, timesteps, states.tokens, {"text_embeds": states.pooled})
        theirs = pipe.transformer(noisy, text, pooled, timesteps).sample
    assert torch.equal(ours, theirs)


def test_several_tokens_of_a_subject_are_those_of_training(
    pipe: FastComposerSD3Pipeline, tmp_path: Path
) -> None:
    folder = narrow("sd3", tmp_path / "sd3")
    kind = FusionConfig(num_tokens=3)
    model = FastComposer.from_pretrained("no/base", architecture=folder, weights="random", fusion=kind)
    for name, value in model.fusion.named_parameters():
        if "resampler.layer_norm.weight" in name:  # 0 until it is trained
            value.data.fill_(1.0)
    own, batch = model.to_pipeline(), batch_of(model)
    pixels = torch.stack([prepare_reference(image, 28) for image in REFERENCES])
    batch = batch.replace(subject_pixel_values=torch.stack([pixels, pixels]))
    prompts, references = [PROMPT, "a man <|image|>"], [REFERENCES, REFERENCES[:1]]
    fused = own.encode_prompt(prompts, references=references)[0]
    trained = model.encode_batch(batch)[0]
    torch.testing.assert_close(trained, fused)
    assert (trained != model.encode_captions(batch).tokens).any(-1)[0].sum() == 2 * 3
    losses = model.training_losses(batch, generator=seeded())
    losses.loss.backward()
    assert model.fusion.first.resampler.queries.grad.norm() > 0
    save_trained_weights(model, tmp_path / "w.safetensors")
    again = FastComposer.from_checkpoint(
        tmp_path / "w.safetensors", base="no/base", architecture=folder, weights="random"
    )
    given = {**SIZE, "alpha": 0.5, "references": REFERENCES, "return_attention": 1}
    one, other = (each(PROMPT, generator=seeded(), **given) for each in (own, again.to_pipeline()))
    assert np.array_equal(one.images, other.images)
    assert torch.equal(one.attention_maps, other.attention_maps)


def test_routing_is_refused_before_weights_are_loaded(tmp_path: Path) -> None:
    folder, kind = narrow("sd3", tmp_path / "sd3"), FusionConfig(routing=True)
    (folder / "vae" / "config.json").unlink()  # nothing that loading comes to
    with pytest.raises(ValueError, match=r"fusion\.routing"):
        FastComposer.from_pretrained("no/base", architecture=folder, weights="random", fusion=kind)


def test_variants_shift_their_noise_levels_by_the_images_size(pipe: FastComposerSD3Pipeline) -> None:
    own, config = pipe.scheduler, {"use_dynamic_shifting": True, "base_shift": 0.5, "max_shift": 1.15}
    pipe.scheduler = FlowMatchEulerDiscreteScheduler(**config)
    try:
        variants = [Variant([reference(0)], alpha) for alpha in (1.0, 0.5, 0.0)]
        shared = pipe.sample_variants(MAN, variants, generator=seeded(), guidance_scale=7.0, **SIZE).images
        for variant, images in zip(variants, shared, strict=True):
            given = {**SIZE, "references": variant.references, "alpha": variant.alpha}
            assert np.array_equal(images, pipe(MAN, generator=[seeded()], **given).images)
    finally:
        pipe.scheduler = own


def test_parts_are_offloaded_in_the_order_of_stable_diffusion_3() -> None:
    ours, theirs = FastComposerSD3Pipeline, StableDiffusion3Pipeline
    order = [part for part in ours.model_cpu_offload_seq.split("->") if part != "fusion"]
    assert order == theirs.model_cpu_offload_seq.split("->")
    assert ours._exclude_from_cpu_offload == theirs._exclude_from_cpu_offload
    assert {*theirs._optional_components} <= {*ours._optional_components}


def test_references_go_with_one_prompt(pipe: FastComposerSD3Pipeline) -> None:
    with pytest.raises(ValueError, match="prompt_2"):
        pipe(MAN, prompt_2="a man", references=[reference(0)], **SIZE)


@pytest.fixture
def ip_adapter(pipe: FastComposerSD3Pipeline) -> Iterator[torch.Tensor]:
    """Set an IP-Adapter of random weights; gives embeddings of an image and of none, and removes it again."""
    transformer: Any = pipe.transformer
    width, heads = transformer.inner_dim, transformer.config.attention_head_dim
    before = dict(transformer.attn_processors)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        adapters = {name: SD3IPAdapterJointAttnProcessor2_0(width, width, heads, 64) for name in before}
        transformer.set_attn_processor(adapters)
        transformer.image_proj = IPAdapterTimeImageProjection(
            24, width, hidden_dim=64, depth=1, heads=1, num_queries=4
        )
        embeds = torch.randn(2, 5, 24)
    yield embeds
    del transformer.image_proj
    transformer.set_attn_processor(before)


def test_an_ip_adapter_works_as_in_stable_diffusion_3(
    ip_adapter: torch.Tensor, pipe: FastComposerSD3Pipeline, stock: StableDiffusion3Pipeline
) -> None:
    for scale, count in ((5.0, 1), (5.0, 2), (1.0, 1)):
        embeds = ip_adapter if scale > 1 else ip_adapter[1:]
        given = {
            **SIZE,
            "guidance_scale": scale,
            "num_images_per_prompt": count,
            "ip_adapter_image_embeds": embeds,
        }
        theirs = stock("a man", generator=seeded(), **given).images
        ours = pipe("a man", generator=seeded(), **given).images
        assert np.array_equal(ours, theirs)
        without = pipe("a man", generator=seeded(), **{**given, "ip_adapter_image_embeds": None}).images
        assert not np.array_equal(ours, without)
    with_subject = pipe(MAN, references=[[reference(0)]], generator=seeded(), **given).images
    assert not np.array_equal(with_subject, ours)
    with pytest.raises(ValueError, match="give ip_adapter_image_embeds"):
        pipe("a man", ip_adapter_image=reference(0), **SIZE)
    with pytest.raises(ValueError, match="guidance_interval"):
        pipe("a man", guidance_interval=(0.0, 1.0), **{**given, "guidance_scale": 5.0})
    assert pipe.joint_attention_kwargs is None
