"""Variants of a prompt share the steps that see the text alone, and equal single calls."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_pipeline import ALL_SCHEDULERS, ONE, TWO, reference, with_scheduler

from fastcomposer import FastComposer, FastComposerPipeline, PromptError
from fastcomposer.pipeline.variants import Variant

KEEPING_STATE = ["ancestral", "pndm", "runge_kutta", "dpm", "sde", "heun", "unipc", "lms"]
"""One of every kind: state in lists or alone, and random numbers."""
SIZE: dict[str, Any] = {"height": 16, "width": 16, "num_inference_steps": 5, "guidance_scale": 3.0}


def seeded(*seeds: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]


@pytest.fixture(scope="module")
def shared(small_base: Path) -> FastComposerPipeline:
    torch.manual_seed(0)  # of the fusion's weights
    return FastComposer.from_pretrained(small_base).to_pipeline()


@contextmanager
def counted(pipe: FastComposerPipeline) -> Iterator[list[int]]:
    """Rows of every U-Net call; with guidance, both rows of an image are one."""
    rows: list[int] = []
    hook = pipe.unet.register_forward_pre_hook(
        lambda _, args: rows.append(len(args[0]) // (2 if pipe.do_classifier_free_guidance else 1))
    )
    yield rows
    hook.remove()


class TestSameAsAlone:
    @pytest.mark.parametrize("scheduler", list(ALL_SCHEDULERS))
    def test_bit_for_bit_in_batches_of_one_variant(
        self, scheduler: str, shared: FastComposerPipeline
    ) -> None:
        pipe = with_scheduler(shared, scheduler)
        people = [[reference(0)], [reference(1)]]
        variants = [
            Variant(people[i], alpha) for i, alpha in ((0, 0.6), (0, 0.0), (1, 1.0), (1, 0.6), (1, 0.0))
        ]
        options = {**SIZE, "output_type": "pt"}
        output = pipe.sample_variants(ONE, variants, generator=seeded(7, 8), **options)
        for variant, images in zip(variants, output.images, strict=True):
            alone = pipe(
                ONE,
                references=variant.references,
                alpha=variant.alpha,
                num_images_per_prompt=2,
                generator=seeded(7, 8),
                **options,
            ).images
            assert torch.equal(images, alone), variant.alpha
        assert not torch.equal(output.images[0], output.images[3])  # subjects are seen
        assert torch.equal(output.images[1], output.images[4])  # but not at α = 0

    @pytest.mark.parametrize("scheduler", KEEPING_STATE)
    def test_within_rounding_in_larger_batches(self, scheduler: str, shared: FastComposerPipeline) -> None:
        pipe = with_scheduler(shared, scheduler)
        people = [[reference(seed), reference(seed + 1)] for seed in range(3)]
        variants = [Variant(row, alpha) for row in people for alpha in (0.6, 0.2)]
        options = {**SIZE, "output_type": "pt"}
        output = pipe.sample_variants(TWO, variants, generator=seeded(7, 8), batch_size=5, **options)
        for variant, images in zip(variants, output.images, strict=True):
            for row, seed in enumerate((7, 8)):
                alone = pipe(
                    TWO, references=variant.references, alpha=variant.alpha, generator=seeded(seed), **options
                ).images
                assert (images[row] - alone[0]).abs().max() < 1e-4

    def test_output_types_negative_prompt_and_given_latents(self, pipe: FastComposerPipeline) -> None:
        latents = torch.randn(2, 4, 8, 8, generator=seeded(0)[0])
        options = {**SIZE, "negative_prompt": "a beach", "guidance_rescale": 0.5, "latents": latents}
        variants = [Variant([reference(0)], 0.6), Variant([reference(1)], 0.6)]
        arrays = pipe.sample_variants(
            ONE, variants, generator=seeded(0, 1), output_type="np", batch_size=4, **options
        )
        images = pipe.sample_variants(ONE, variants, generator=seeded(0, 1), **options)
        assert [array.shape for array in arrays.images] == [(2, 16, 16, 3)] * 2
        assert [[p.size for p in row] for row in images.images] == [[(16, 16)] * 2] * 2
        assert images.nsfw_content_detected == [None, None]
        alone = pipe(
            ONE,
            references=[reference(1)],
            num_images_per_prompt=2,
            output_type="np",
            **{**options, "latents": latents.clone()},
        ).images
        assert np.abs(arrays.images[1] - alone).max() < 1e-4

    def test_attention_is_that_of_the_steps_that_see_the_subjects(self, pipe: FastComposerPipeline) -> None:
        people = [reference(0), reference(1)]
        options = {**SIZE, "output_type": "latent", "return_attention": 2}
        variants = [Variant(people, 1.0), Variant(people, 0.4), Variant(people, 0.0)]
        output = pipe.sample_variants(TWO, variants, generator=seeded(4, 5), batch_size=4, **options)
        alone = pipe(
            TWO, references=people, alpha=1.0, num_images_per_prompt=2, generator=seeded(4, 5), **options
        )
        full, late, none = output.attention_maps
        assert full is not None and late is not None and none is None
        torch.testing.assert_close(full, alone.attention_maps)
        assert late.shape == (2, 2, 2, 8, 8)
        assert not late[:, 0].any() and late[:, 1].min() > 0  # calls 3 and 4 of 5 are in the second half

    def test_the_pipeline_is_left_as_it_was(self, pipe: FastComposerPipeline) -> None:
        scheduler, timesteps = pipe.scheduler, SIZE["num_inference_steps"]
        before = pipe(ONE, references=[reference(0)], generator=seeded(0), output_type="pt", **SIZE).images
        pipe.sample_variants(ONE, [Variant([reference(0)], 0.4)] * 2, generator=seeded(0), **SIZE)
        assert pipe.scheduler is scheduler and pipe.num_timesteps == timesteps
        after = pipe(ONE, references=[reference(0)], generator=seeded(0), output_type="pt", **SIZE).images
        assert torch.equal(before, after)
        with pytest.raises(RuntimeError), counted(pipe):
            pipe.unet.register_forward_pre_hook(_fail)
            pipe.sample_variants(ONE, [Variant([reference(0)], 0.4)] * 2, generator=seeded(0), **SIZE)
        pipe.unet._forward_pre_hooks.clear()
        assert pipe.scheduler is scheduler


def _fail(*_: Any) -> None:
    raise RuntimeError


class TestCost:
    @pytest.mark.parametrize("scheduler", ["ddim", "pndm", "heun"])
    def test_a_sweep_of_alpha_costs_at_most_60_percent(
        self, scheduler: str, shared: FastComposerPipeline
    ) -> None:
        pipe = with_scheduler(shared, scheduler)
        options = {**SIZE, "num_inference_steps": 10, "output_type": "latent"}
        sweep = [Variant([reference(0)], step / 10) for step in range(11)]
        with counted(pipe) as rows:
            output = pipe.sample_variants(ONE, sweep, generator=seeded(0), **options)
        with counted(pipe) as alone:
            pipe(ONE, references=sweep[6].references, alpha=0.6, generator=seeded(0), **options)
        naive = 11 * sum(alone)
        assert sum(rows) <= 0.6 * naive
        assert sum(output.unet_calls) == pytest.approx(sum(rows))
        if scheduler == "ddim":
            assert (sum(rows), naive) == (65, 110)
            # At 0.9 one step is shared by ten variants, and nine steps are its own.
            assert output.unet_calls[10] == pytest.approx(10)
            assert output.unet_calls[9] == pytest.approx(9 + 1 / 10)
            assert output.unet_calls[8] == pytest.approx(8 + 1 / 10 + 1 / 9)

    def test_the_same_references_are_encoded_once(self, pipe: FastComposerPipeline) -> None:
        calls: list[int] = []
        hook = pipe.image_encoder.register_forward_hook(lambda *_: calls.append(1))
        person = reference(0)
        variants = [Variant([person], alpha) for alpha in (0.2, 0.6, 1.0)]
        pipe.sample_variants(ONE, [*variants, Variant([reference(1)], 0.6)], generator=seeded(0), **SIZE)
        hook.remove()
        assert len(calls) == 2


class TestArguments:
    @pytest.mark.parametrize(
        ("prompt", "variants", "options", "error", "message"),
        [
            (ONE, [], {}, ValueError, "at least one variant"),
            (ONE, [Variant(None, 0.5)], {}, PromptError, r"0 reference image\(s\) for 1 marker"),
            (ONE, [Variant(["x.png"] * 2, 0.5)], {}, PromptError, r"2 reference image\(s\) for 1 marker"),
            (ONE, [Variant(None, 0), Variant(None, 1.5)], {}, ValueError, r"alpha must lie in \[0, 1\]"),
            (ONE, [Variant(None, 0)], {"batch_size": 1}, ValueError, "batch_size=1: less than the 2 images"),
            (ONE, [Variant(None, 0)], {"height": 33}, ValueError, "multiples of 2, not 33 and 16"),
            ([ONE], [Variant(None, 0)], {}, TypeError, "one prompt, not"),
        ],
    )
    def test_bad_calls(
        self,
        prompt: Any,
        variants: list[Variant],
        options: dict[str, Any],
        error: type[Exception],
        message: str,
        pipe: FastComposerPipeline,
    ) -> None:
        with pytest.raises(error, match=message):
            pipe.sample_variants(prompt, variants, generator=seeded(0, 1), **{**SIZE, **options})

    def test_a_prompt_without_subjects(self, pipe: FastComposerPipeline) -> None:
        options = {**SIZE, "output_type": "pt"}
        with counted(pipe) as rows:
            output = pipe.sample_variants("a beach", [Variant(alpha=0.4)] * 2, generator=seeded(0), **options)
        assert sum(rows) == 5 and output.unet_calls == [2.5, 2.5]
        assert torch.equal(output.images[0], pipe("a beach", generator=seeded(0), **options).images)
