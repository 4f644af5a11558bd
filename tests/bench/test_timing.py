from __future__ import annotations

import time
from functools import partial
from typing import Any

import pytest
import torch

from fastcomposer.bench.suites import limits
from fastcomposer.bench.timing import Speed, Stopwatch, TimedCase, table
from fastcomposer.bench.training_step import (
    IDENTITY,
    TOKENS,
    TUNED,
    VARIANTS,
    StepBench,
    StepSettings,
    peak_memory,
)


def row(what: str, value: float, memory: int | None = None) -> Speed:
    return Speed("step", what, value, 0.1, "images/s", 0.4, memory)


def test_cases_take_turns_and_medians_are_kept() -> None:
    order: list[str] = []

    def slow(name: str, seconds: float) -> TimedCase:
        function = partial(time.sleep, seconds)
        return TimedCase(function, 4, prepare=lambda: order.append(name))

    watch = Stopwatch(min_seconds=0, min_rounds=3)
    watch.interleave("suite", "images/s", {"a": slow("a", 0.02), "b": slow("b", 0.04)})
    assert "".join(order) == "ab" * 4  # one uncounted round, then three
    first, second = watch.rows
    assert 100 < first.value < 200.1
    assert 50 < second.value < 100.1
    assert (first.share_of_peak, first.peak_memory_bytes) == (None, None)
    watch.interleave("start", "s", {"c": slow("c", 0.02)})
    assert 0.02 <= watch.rows[2].value < 0.1


def test_flops_are_counted_and_compared_with_a_matrix_product() -> None:
    square = torch.ones(512, 512)
    watch = Stopwatch(0.05)
    cases = {"product": TimedCase(lambda: square @ square, dtype=torch.float32)}
    watch.interleave("suite", "products/s", cases | {"nothing": TimedCase(lambda: None, dtype=torch.float32)})
    product, nothing = watch.rows
    assert product.share_of_peak is not None
    assert 0.02 < product.share_of_peak < 3
    assert nothing.share_of_peak == 0


def test_the_table_has_machine_and_figures() -> None:
    metadata = {"processor": "abacus", "cores": 2, "threads": 1, "torch": "2", "load_average": 0.5}
    text = table([row("tuned: cached, fused attention", 1.234, 3 * 2**29)], metadata)
    assert "abacus, 2 cores, 1 threads, torch 2; load 0.5 at the start." in text
    assert "| step | tuned: cached, fused attention | 1.23 | 0.1 | images/s | 40% | 1.50 GiB |  |" in text


def test_limits_of_what_was_measured() -> None:
    rows = [
        row("plain: uncached, explicit attention", 1.0, 400),
        row("tuned: cached, fused attention", 2.0, 100),
        row("tuned without localization", 2.1),
        row("loader, 1024 px", 50.0),
        row("plain order, 1024 px", 10.0),
        row("training step", 30.0),
        row("training step from a cache", 40.0),
        row("batches from data folder, 4 workers", 100.0),
        row(TOKENS, 1.0),
        row(IDENTITY, 0.5),
        row("help", 1.25),
        row("first training step", 9.0),
    ]
    assert limits(rows) == [
        "tuned over plain step: 2.00 times as fast (at least 1.6)",
        "tuned over plain memory: 0.25 (at most 0.75)",
        "step with localization over without: 1.050 times as long (at most 1.05)",
        "step with 9 tokens over one: 2.000 times as long (at most 1.1)",
        "step with the identity loss over without: 4.00 times as long",
        "loader over plain order: 5.00 times as fast (at least 3)",
        "reading with 4 workers over training from a cache: 2.50 times as fast (at least 1)",
        "start-up, help: 1.2 s (less than 2)",
        "start-up, first training step: 9.0 s (less than 12)",
    ]
    assert limits(rows[:1]) == []


@pytest.fixture(scope="module")
def settings() -> StepSettings:
    blocks: dict[str, Any] = {"block_out_channels": (8, 8, 16, 16), "norm_num_groups": 4}
    attention = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    kinds = {"down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4}
    return StepSettings(
        unet={**blocks, "sample_size": 8, "cross_attention_dim": 16, "attention_head_dim": 2},
        vae={**blocks, **kinds, "latent_channels": 4},
        text_encoder={**attention, "vocab_size": 99, "max_position_embeddings": 77},
        image_encoder={**attention, "image_size": 32, "patch_size": 16, "projection_dim": 16},
        resolution=64,
    )


@pytest.fixture(scope="module")
def bench(settings: StepSettings) -> StepBench:
    return StepBench(settings)


def test_peak_memory_is_that_of_another_process(settings: StepSettings) -> None:
    assert 2**27 < peak_memory(settings, VARIANTS[TUNED]) < 2**33


@pytest.mark.parametrize(
    "name",
    [
        name
        for name, variant in VARIANTS.items()
        if variant.localization and not variant.compiled and variant.num_tokens == 1
    ],
)
def test_every_variant_of_the_step_computes_the_same(bench: StepBench, name: str) -> None:
    def gradients(chosen: str) -> list[torch.Tensor]:
        bench.use(VARIANTS[chosen])
        bench.losses(VARIANTS[chosen]).loss.backward()
        found = [p.grad.clone() for p in bench.model.trainable_parameters() if p.grad is not None]
        bench.optimizer.zero_grad()
        return found

    plain, other = gradients("plain: uncached, explicit attention"), gradients(name)
    assert len(plain) == len(other) > 100
    scale = torch.stack([g.abs().max() for g in plain]).max()
    worst = max(float((a - b).abs().max()) for a, b in zip(plain, other, strict=True)) / float(scale)
    assert worst < (0.1 if "bfloat16" in name else 1e-5)


def test_steps_with_tokens_and_with_the_identity_loss_train_more(
    bench: StepBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    def step(name: str) -> tuple[int, torch.Tensor]:
        bench.use(VARIANTS[name])
        with monkeypatch.context() as patch:
            patch.setattr(bench.optimizer, "step", lambda: None)
            patch.setattr(bench.optimizer, "zero_grad", lambda: None)
            bench.step(VARIANTS[name])
        gradient = torch.cat([p.grad.flatten() for p in bench.model.unet.parameters() if p.grad is not None])
        bench.optimizer.zero_grad()
        return len(list(bench.model.trainable_parameters())), gradient

    plain, tokens, identity = (step(name) for name in (TUNED, TOKENS, IDENTITY))
    assert tokens[0] > plain[0] == identity[0]
    assert not torch.allclose(identity[1], plain[1])
