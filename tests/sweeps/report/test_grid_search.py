"""Searches of settings: people of the training split, the rule for the best, the objective."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from fastcomposer.evaluation.benchmark import Subset
from fastcomposer.evaluation.report.tables import to_markdown
from fastcomposer.evaluation.results import ResultRow, write_results
from fastcomposer.evaluation.statistics import Estimate
from fastcomposer.miniworld.people import rendered_people
from fastcomposer.miniworld.scenes import AvatarScenes, held_out_identities
from fastcomposer.sweeps.jobs import Job
from fastcomposer.sweeps.report.grid_search import best_settings, load_search
from fastcomposer.sweeps.report.measured import read_measured
from fastcomposer.sweeps.report.sampling_objective import SamplingObjective

DEFINITIONS = Path(__file__).resolve().parents[3] / "data" / "benchmarks" / "mini"


def row(
    method: str,
    identity: float,
    prompt: float,
    images: int = 8,
    benchmark: str = "single_subject",
    **settings: float,
) -> ResultRow:
    scores = [Estimate(value, (value - 0.01, value + 0.01)) for value in (identity, prompt)]
    costs, sharpness = (1.5, 7.5, 0, 0, 10), {"sharpness": Estimate(7.0, (7.0, 7.0))}
    more = {"measures": sharpness, "identity_published": scores[0]}
    return ResultRow(benchmark, method, settings, 5, images, *scores, *costs, **more)


def job(
    folder: Path, method: str, number: int, chosen: str, identity: float, prompt: float, images: int = 8
) -> None:
    """Write what a job leaves behind."""
    overrides = tuple(f"methods.x.{text}" for text in chosen.split())
    Job(number, folder / str(number), overrides).ended("finished").write()
    rows = [row("text_only", 0.0, 0.25, images), row(method, identity, prompt, images)]
    write_results(folder / str(number) / "results.json", rows, {})


def test_held_out_people_are_not_in_the_search(tmp_path: Path) -> None:
    world = AvatarScenes(num_identities=40)
    people = rendered_people(world, [0, 1, 2], tmp_path, count=8, size=32)
    (benchmark,) = load_search(DEFINITIONS, people, part=Subset(prompts_per_category=2, images_per_prompt=1))
    assert [subject.id for subject in benchmark.subjects] == ["train_0000", "train_0001", "train_0002"]
    assert len(benchmark.cases) == 3 * 4 * 2
    assert {case.category for case in benchmark.cases} == {"accessory", "style", "expression", "context"}
    for subject in benchmark.subjects:
        assert len(subject.tuning_images) == 5 and len(subject.other_images) == 3
    assert not {world.train_identities[n] for n in range(3)} & set(held_out_identities())
    assert len(load_search(DEFINITIONS, people)[0].cases) == 3 * 40 * 4


def test_the_best_keeps_most_of_the_prompt(tmp_path: Path) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    job(one, "dreambooth", 0, "lr=1e-4 method.steps=40", 0.30, 0.24)
    job(one, "dreambooth", 1, "lr=1e-4 method.steps=80", 0.40, 0.22)
    job(one, "dreambooth", 2, "lr=1e-3 method.steps=80", 0.60, 0.21)  # 84 % of 0.25
    sentences, (table,) = best_settings(read_measured(one))
    assert sentences == ["DreamBooth, best of 3: methods.x.lr=1e-4 methods.x.method.steps=80"]
    text = to_markdown(table)
    best = "| **x.lr 1e-4, method.steps 80: DreamBooth (best)** | 0.400 [0.390, 0.410]"
    assert text.index("| x.lr 1e-3, method.steps 80: DreamBooth | 0.600 [0.590, 0.610] | 0.210") < text.index(
        f"{best} | 0.220 [0.210, 0.230] | 88.0 % |"
    )
    assert "keep 85% of the prompt consistency of text alone" in text
    # Where none keeps so much, the highest identity of all.
    job(other, "textual_inversion", 0, "method.steps=60", 0.20, 0.10)
    job(other, "textual_inversion", 1, "method.steps=120", 0.10, 0.12)
    sentences, _ = best_settings(read_measured(other))
    assert sentences == ["Textual Inversion, best of 2: methods.x.method.steps=60"]


def test_jobs_of_different_cases_have_no_best(tmp_path: Path) -> None:
    job(tmp_path, "dreambooth", 0, "steps=40", 0.30, 0.24)
    job(tmp_path, "dreambooth", 1, "steps=80", 0.40, 0.22, images=16)
    assert best_settings(read_measured(tmp_path)) == ([], [])
    write_results(tmp_path / "1" / "results.json", [row("dreambooth", 0.1, 0.2)], {})  # without text alone
    assert best_settings(read_measured(tmp_path)) == ([], [])


ROWS = [
    row("text_only", 0.1, 0.9),
    row("fastcomposer", 0.4, 0.5, benchmark="single_subject", alpha=0.6),
    row("fastcomposer", 0.9, 0.9, benchmark="single_subject", alpha=0.8),
    row("fastcomposer", 0.2, 0.5, benchmark="multi_subject", alpha=0.6),
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
    objective = SamplingObjective.read(text, ["sharpness"])
    assert objective.value(ROWS, "fastcomposer", {"alpha": 0.6}) == pytest.approx(value)


def test_one_method_at_one_alpha_is_scored() -> None:
    text = SimpleNamespace(name="text_only", settings=({},))
    ours = SimpleNamespace(name="fastcomposer", settings=({"alpha": 0.6},))
    both = SimpleNamespace(name="fastcomposer", settings=({"alpha": 0.6}, {"alpha": 0.8}))
    objective = SamplingObjective.read("multi_subject/identity_preservation")
    assert objective.chosen([text, ours], ["multi_subject"]) == ("fastcomposer", {"alpha": 0.6})
    with pytest.raises(ValueError, match="not by 2: change methods or alphas"):
        objective.chosen([text, both], ["multi_subject"])
    with pytest.raises(ValueError, match="not by 0"):
        objective.chosen([text], ["multi_subject"])
    with pytest.raises(ValueError, match="multi_subject/identity_preservation: only single_subject is"):
        objective.chosen([ours], ["single_subject"])
    with pytest.raises(ValueError, match="was measured on none"):
        objective.value(ROWS, "dreambooth", {})


def test_an_unknown_objective_is_refused() -> None:
    with pytest.raises(ValueError, match=r"objective=identity: no such measure; there is .*, sharpness"):
        SamplingObjective.read("identity", ["sharpness"])
    with pytest.raises(ValueError, match="no such benchmark; there is single_subject, multi_subject"):
        SamplingObjective.read("both/identity_preservation")
