"""Projections against numbers by hand and against what small trainings take."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from fastcomposer.bench.projection import (
    Machines,
    Measured,
    project_growth,
    project_sampling,
    weigh_records,
)
from fastcomposer.cli import bench
from fastcomposer.data.shards import write_shards

_BYTES = {"activation_bytes": 70.0, "cache_bytes": 3.0, "shard_bytes": 5.0, "index_bytes": 100.0}
ONE = Measured(seconds_per_step=1.0, batch_size=10, trained=1000, frozen=500, averaged=True, **_BYTES)
SLOW = Machines(per_node=4, node_bandwidth=6000.0, network_bandwidth=2000.0, overlap=0.5)


def project(measured: Measured, machines: Machines, devices: int, records: int, strategy: str) -> Any:
    """The only row of a projection."""
    return project_growth(measured, machines, [devices], [records], [strategy]).iloc[0]


def test_one_device_sends_nothing() -> None:
    plan = project(ONE, SLOW, 1, 36_000, "ddp")
    assert plan.memory_bytes == 4 * 1000 * 5 + 4 * 500 + 700
    assert (plan.network_bytes, plan.seconds_per_step, plan.hours_per_epoch) == (0, 1.0, 1.0)
    assert (plan.cache_bytes, plan.shard_bytes, plan.index_bytes) == (108_000, 180_000, 108 * 36_000)
    assert project(replace(ONE, averaged=False), SLOW, 1, 1, "ddp").memory_bytes == plan.memory_bytes - 4000


def test_rings_of_devices() -> None:
    two, eight = (project(ONE, SLOW, devices, 80, "ddp") for devices in (2, 8))
    assert (two.network_bytes, eight.network_bytes) == (4000, 7000)
    assert two.seconds_per_step == pytest.approx(1 + 4000 / 6000 - 0.5)  # within a node
    assert eight.seconds_per_step == pytest.approx(1 + 7000 / 2000 - 0.5)  # over the network
    assert two.memory_bytes == project(ONE, SLOW, 1, 80, "ddp").memory_bytes
    hidden = project(ONE, replace(SLOW, overlap=1.0), 2, 80, "ddp")
    assert hidden.seconds_per_step == 1.0
    divided = project(ONE, SLOW, 4, 80, "fsdp")
    assert divided.network_bytes == 9000
    assert divided.memory_bytes == 4 * 1000 * 5 / 4 + 4 * 500 + 700


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: project(ONE, SLOW, 0, 1, "ddp"), r"\[0\] devices and \[1\] records"),
        (lambda: project(ONE, SLOW, 1, 1, "zero"), r"plan\.strategies: 'zero' is not one of ddp, fsdp"),
        (lambda: Machines(overlap=2), r"plan\.machines\.overlap=2"),
        (lambda: Machines(network_bandwidth=0), r"plan\.machines\.network_bandwidth=0"),
    ],
)
def test_wrong_settings(call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


def test_shards_take_what_is_projected(world: Path, tmp_path: Path) -> None:
    write_shards(world, tmp_path / "shards", ("train",), records_per_shard=8, num_workers=0)
    real = sum(file.stat().st_size for file in (tmp_path / "shards").rglob("*") if file.is_file())
    per_record, index_bytes = weigh_records(world)
    projected = project(replace(ONE, shard_bytes=per_record), SLOW, 1, 24, "ddp").shard_bytes
    # Segment maps are compressed in shards, and all of a small map's file is its header.
    assert 0.3 * projected < real < 1.2 * projected
    assert 100 < index_bytes < 5000


def test_bench_plans(run: Any, world: Path, small_base: Path) -> None:
    settings = [f"model.base={small_base}", "model.resolution=32", "model.reference_size=56"]
    settings += [f"data.root={world}", "batch_size=2", "repeats=1", "suites=[plan]", "plan.devices=[1,512]"]
    status, _, err = run(bench, *settings)
    assert status == 0, err
    content = json.loads(Path("outputs/bench/plan.json").read_text())
    assert content["projection"] is True
    measured = content["measured"]
    assert measured["seconds_per_step"] > 0
    assert measured["activation_bytes"] > 1e5
    assert measured["cache_bytes"] == 4 * (8 * 16 * 16 + 77 * 32)
    assert len(content["rows"]) == 2 * 2 * 4
    one, many = (row for row in content["rows"] if row["records"] == 70_000 and row["strategy"] == "ddp")
    assert many["network_bytes"] == pytest.approx(8 * measured["trained"], rel=0.01)
    assert one["hours_per_epoch"] > 100 * many["hours_per_epoch"]
    assert run(bench, *settings, "method.gradient_checkpointing=true")[0] == 0
    content = json.loads(Path("outputs/bench/plan.json").read_text())
    assert content["measured"]["activation_bytes"] < 0.8 * measured["activation_bytes"]


def test_sampling_is_measured_in_steps_and_around_them(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = SimpleNamespace(now=0.0)
    calls: list[dict[str, Any]] = []

    def pipeline(prompt: str, **options: Any) -> None:
        calls.append(options)
        clock.now += 5.0 + 2.0 * options["num_inference_steps"]

    monkeypatch.setattr("fastcomposer.bench.projection.timer", lambda: clock.now)
    sampler = {"num_inference_steps": 50, "guidance_scale": 5.0, "alpha": 0.6}
    projected = project_sampling(pipeline, sampler, 32, repeats=4)  # type: ignore[arg-type]
    assert projected.seconds_per_sampling_step == pytest.approx(2)
    assert projected.seconds_around_sampling == pytest.approx(5)
    tuned = replace(projected, seconds_per_training_step=0.5, training_steps=800).as_dict()
    assert tuned["projected_personalization_seconds"] == pytest.approx(400)
    assert tuned["projected_seconds"] == pytest.approx(400 + 105)
    assert [call["num_inference_steps"] for call in calls] == [1, 1, 5]
    assert all(call["alpha"] == 1.0 and call["guidance_scale"] == 5.0 for call in calls)
    with pytest.raises(ValueError, match="repeats=0: at least 1"):
        project_sampling(pipeline, sampler, 32, repeats=0)  # type: ignore[arg-type]
