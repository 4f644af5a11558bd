"""Times of single steps are multiplied by the numbers of steps, and by nothing else."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from fastcomposer.bench import personalization_cost as projection
from fastcomposer.bench.personalization_cost import Projection, project_sampling


def test_sums_by_hand() -> None:
    projected = Projection("dreambooth", 0.5, 800, 0.1, 50, 2.0)
    assert projected.personalization_seconds == pytest.approx(400)
    assert projected.seconds_per_image == pytest.approx(7)
    assert projected.as_dict()["projected_seconds"] == pytest.approx(407)


def test_sampling_is_measured_in_steps_and_around_them(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = SimpleNamespace(now=0.0)
    calls: list[dict[str, Any]] = []

    def pipeline(prompt: str, **options: Any) -> None:
        calls.append(options)
        clock.now += 5.0 + 2.0 * options["num_inference_steps"]

    monkeypatch.setattr(projection, "_now", lambda: clock.now)
    sampler = {"num_inference_steps": 50, "guidance_scale": 5.0, "alpha": 0.6}
    projected = project_sampling(pipeline, sampler, 32, repeats=4)  # type: ignore[arg-type]
    assert projected.seconds_per_sampling_step == pytest.approx(2)
    assert projected.seconds_around_sampling == pytest.approx(5)
    assert projected.seconds == pytest.approx(105)
    assert [call["num_inference_steps"] for call in calls] == [1, 1, 5]
    assert all(call["alpha"] == 1.0 and call["guidance_scale"] == 5.0 for call in calls)
    with pytest.raises(ValueError, match="repeats=0: at least 1"):
        project_sampling(pipeline, sampler, 32, repeats=0)  # type: ignore[arg-type]
