"""Measuring speed from the command line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from fastcomposer.cli import bench

Run = Callable[..., tuple[int, str, str]]

TINY_STEP = [
    "step.resolution=64",
    "step.unet.sample_size=8",
    "step.unet.block_out_channels=[8,8,16,16]",
    "step.unet.layers_per_block=1",
    "step.unet.norm_num_groups=4",
    "step.unet.cross_attention_dim=16",
    "step.vae.block_out_channels=[8,8,8,8]",
    "+step.vae.norm_num_groups=4",
    "step.text_encoder={vocab_size:99,hidden_size:16,intermediate_size:16,num_hidden_layers:1,num_attention_heads:2,"
    "max_position_embeddings:77}",
    "step.image_encoder={hidden_size:16,intermediate_size:16,num_hidden_layers:2,num_attention_heads:2,image_size:32,"
    "patch_size:16,projection_dim:16}",
]


def test_bench_measures_loader_and_step(run: Run, small_base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fastcomposer.bench.training_step.peak_memory", lambda *_: 2**28)
    call = [f"model.base={small_base}", "min_seconds=0", "min_rounds=2", "loader={records:1,side:96}"]
    call += ["document=speed.md", *TINY_STEP]
    Path("speed.md").write_text(
        "before\n<!-- bench: written by make bench -->\nold\n<!-- bench: end -->\nafter\n"
    )
    status, _, err = run(bench, *call, "suites=[loader,step]", "variants=[tuned without localization]")
    assert status == 0, err
    rows = json.loads(Path("outputs/bench/bench.json").read_text())["rows"]
    assert [row["suite"] for row in rows] == ["loader"] * 3 + ["step"]
    assert all(row["value"] > 0 for row in rows)
    assert rows[-1]["peak_memory_bytes"] == 2**28
    assert 0 < rows[-1]["share_of_peak"] < 1
    page = Path("speed.md").read_text()
    assert page.startswith("before\n") and page.endswith("after\n") and "\nold\n" not in page
    assert page.count("\n| step | tuned without localization | ") == 1
    assert "- loader over plain order: " in page


def test_bench_counts_unet_calls_of_sampling(run: Run, small_base: Path) -> None:
    call = [f"model.base={small_base}", "model.resolution=32", "model.reference_size=56", "min_seconds=0"]
    steps = ["min_rounds=2", "sampler.num_inference_steps=4", "sampler_batches=[2]"]
    status, _, err = run(bench, *call, *steps, "suites=[sampler,evaluation]")
    assert status == 0, err
    rows = json.loads(Path("outputs/bench/bench.json").read_text())["rows"]
    calls = [(row["what"], row["unet_calls"]) for row in rows]
    assert calls[:2] == [("4 steps, batch 2", 8)] * 2  # images and steps a second
    assert calls[2:] == [
        ("one token of each subject", 8),
        ("9 tokens of each subject", 8),
        ("three alphas, each by itself", 12),
        ("three alphas, shared steps", 11),
    ]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ("suites=[nothing]", "suites: unknown nothing"),
        ("variants=[quick]", "variants: there are 'plain"),
        ("document=nowhere.md", "document=nowhere.md: no such file"),
    ],
)
def test_bench_refuses_wrong_settings(run: Run, wrong: str, message: str) -> None:
    status, _, err = run(bench, "data.root=.", wrong)
    assert status == 1 and message in err


def test_bench_measures_reading_beside_the_step_it_is_for(run: Run, small_base: Path) -> None:
    call = [f"model.base={small_base}", "model.resolution=64", "model.reference_size=56", "min_seconds=0"]
    few = ["reading.records=9", "reading.batch_size=4", "reading.workers=[1]", "min_rounds=2"]
    status, out, err = run(bench, *call, *few, "suites=[reading]")
    assert status == 0, err
    rows = {row["what"]: row for row in json.loads(Path("outputs/bench/bench.json").read_text())["rows"]}
    sources = ["data folder", "data folder and cache", "shards", "shards and cache"]
    steps, one = ["training step", "training step from a cache"], "batches from data folder, 1 workers"
    assert [*rows] == ["fill a cache", *(f"batches from {source}" for source in sources), *steps, one]
    assert all(row["value"] > 0 for row in rows.values())
    reading, step = rows["batches from shards and cache"]["value"], rows[steps[1]]["value"]
    share = step / (step + reading)
    assert f"- reading from shards and cache: {share:.1%} of the time" in out


@pytest.mark.parametrize("weights", ["pretrained", "random"])
def test_bench_projects_what_personalisation_takes(run: Run, small_base: Path, weights: str) -> None:
    call = [f"model.base={small_base}", "model.resolution=32", "sampler.num_inference_steps=40", "repeats=2"]
    architecture = f"model.architecture={small_base}"
    status, out, err = run(bench, *call, architecture, "suites=[personalization]", f"weights={weights}")
    assert status == 0, err
    assert "Projection" in out
    content = json.loads(Path("outputs/bench/projection.json").read_text())
    assert content["projection"] is True
    ours, *others = content["rows"]
    assert (ours["method"], ours["projected_personalization_seconds"]) == ("fastcomposer", 0)
    steps = {row["method"]: row["training_steps"] for row in others}
    assert steps == {"textual_inversion": 3000, "dreambooth": 800, "custom_diffusion": 250}
    for row in others:
        assert row["seconds_per_training_step"] > 0
        learned = row["seconds_per_training_step"] * row["training_steps"]
        assert row["projected_personalization_seconds"] == pytest.approx(learned)
        assert row["projected_seconds"] == pytest.approx(learned + row["projected_seconds_per_image"])
        assert row["projected_seconds_per_image"] == ours["projected_seconds_per_image"]
    assert not Path("outputs/bench/bench.json").exists()
