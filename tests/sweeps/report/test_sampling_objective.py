"""What a search of drawing goes by."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from fastcomposer.evaluation.results import ResultRow
from fastcomposer.evaluation.statistics import Estimate
from fastcomposer.sweeps.report.sampling_objective import Objective


def row(benchmark: str, method: str, alpha: float, identity: float, prompt: float) -> ResultRow:
    one, two = (Estimate(mean, (mean, mean)) for mean in (identity, prompt))
    sharpness = {"sharpness": Estimate(7.0, (7.0, 7.0))}
    settings = {"alpha": alpha} if method == "fastcomposer" else {}
    return ResultRow(
        benchmark,
        method,
        settings,
        1,
        8,
        one,
        two,
        1.5,
        0.0,
        0,
        0,
        10,
        measures=sharpness,
        identity_published=one,
    )


ROWS = [
    row("single_subject", "text_only", 0.0, 0.1, 0.9),
    row("single_subject", "fastcomposer", 0.6, 0.4, 0.5),
    row("single_subject", "fastcomposer", 0.8, 0.9, 0.9),
    row("multi_subject", "fastcomposer", 0.6, 0.2, 0.5),
]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("identity_x_prompt", (0.4 * 0.5 + 0.2 * 0.5) / 2),
        ("multi_subject/identity_x_prompt", 0.1),
        ("single_subject/identity_preservation", 0.4),
        ("prompt_consistency", 0.5),
        ("seconds_per_image", 1.5),
        ("sharpness", 7.0),
    ],
)
def test_an_objective_is_the_mean_over_its_rows(text: str, value: float) -> None:
    objective = Objective.read(text, ["sharpness"])
    assert objective.value(ROWS, "fastcomposer", {"alpha": 0.6}) == pytest.approx(value)


def test_one_method_at_one_alpha_is_judged() -> None:
    text = SimpleNamespace(name="text_only", settings=({},))
    ours = SimpleNamespace(name="fastcomposer", settings=({"alpha": 0.6},))
    both = SimpleNamespace(name="fastcomposer", settings=({"alpha": 0.6}, {"alpha": 0.8}))
    objective = Objective.read("multi_subject/identity_preservation")
    assert objective.chosen([text, ours], ["multi_subject"]) == ("fastcomposer", {"alpha": 0.6})
    with pytest.raises(ValueError, match="not by 2: change methods or alphas"):
        objective.chosen([text, both], ["multi_subject"])
    with pytest.raises(ValueError, match="not by 0"):
        objective.chosen([text], ["multi_subject"])
    with pytest.raises(ValueError, match="multi_subject/identity_preservation: only single_subject is drawn"):
        objective.chosen([ours], ["single_subject"])
    with pytest.raises(ValueError, match="was measured on none"):
        objective.value(ROWS, "dreambooth", {})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "identity",
            "objective=identity: no such measure; there is identity_x_prompt, identity_pres.*, sharp",
        ),
        ("both/identity_preservation", "no such benchmark; there is single_subject, multi_subject"),
    ],
)
def test_an_unknown_objective_is_refused(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Objective.read(text, ["sharpness"])
