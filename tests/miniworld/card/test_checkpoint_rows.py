"""Rows of the card for the checkpoints, on runs whose figures are known."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest
import torch

from fastcomposer.evaluation.benchmark import Subject
from fastcomposer.evaluation.load_results import Collected, Run
from fastcomposer.evaluation.results import ResultRow
from fastcomposer.evaluation.statistics import Estimate
from fastcomposer.metrics.faces import Faces
from fastcomposer.miniworld.avatars import Appearance, Identity
from fastcomposer.miniworld.card import checkpoint_rows
from fastcomposer.miniworld.card.measures import HeldOutScenes
from fastcomposer.miniworld.render import reference_name
from fastcomposer.miniworld.scenes import Person, held_out_identities

COLUMNS = [
    "case",
    "category",
    "subjects",
    "seed",
    "identity",
    "identity_published",
    "prompt_consistency",
    "file",
]


def run(benchmark: str, method: str, identity: float, prompt: float, **settings: Any) -> Run:
    row = ResultRow(
        benchmark=benchmark,
        method=method,
        settings=settings,
        reference_images=1,
        images=6,
        identity_preservation=Estimate(identity, (identity, identity)),
        prompt_consistency=Estimate(prompt, (prompt, prompt)),
        seconds_per_image=1.0,
        personalization_seconds_per_subject=0.0,
        stored_bytes_per_subject=0,
        peak_memory_bytes=1,
        unet_calls=1,
        identity_published=Estimate(max(identity, 0.0), (0.0, 1.0)),
    )
    images = [
        (f"{benchmark}/{i}", "style", (str(i),), 0, identity + 0.01 * i, 0.0, prompt, Path("x.png"))
        for i in range(6)
    ]
    return Run(row, None, pd.DataFrame(images, columns=COLUMNS))


RUNS = (
    run("single_subject", "text_only", 0.10, 0.30),
    run("multi_subject", "text_only", 0.02, 0.30),
    run("single_subject", "fastcomposer", 0.40, 0.29, alpha=0.6, localization="balanced_l1"),
    run("single_subject", "fastcomposer", 0.60, 0.27, alpha=0.8, localization="balanced_l1"),
    run("single_subject", "fastcomposer", 0.70, 0.20, alpha=1.0, localization="balanced_l1"),
    run("multi_subject", "fastcomposer", 0.50, 0.27, alpha=0.8, localization="balanced_l1"),
    run("multi_subject", "fastcomposer", 0.45, 0.27, alpha=0.8, localization="none"),
)


def rows_of(*runs: Run) -> dict[str, Any]:
    ceiling = checkpoint_rows.Ceiling(scenes=0.8, portraits=1.0)
    rows = checkpoint_rows.evaluation_rows(Collected(runs, {}, 0.8), ceiling)
    return {row.measure: row for row in rows}


def test_figures_by_hand() -> None:
    rows = rows_of(*RUNS)
    assert rows["best α"].value == 0.8  # 1.0 keeps two thirds of the prompt consistency only
    assert rows["single-subject identity, share of the ceiling"].value == pytest.approx(0.75)
    assert rows["single-subject identity minus 4 × text only"].value == pytest.approx(0.2)
    assert rows["multi-subject identity minus 3 × text only"].value == pytest.approx(0.44)
    assert rows["single-subject prompt consistency, share of text only"].value == pytest.approx(0.9)
    assert rows["gain by localization"].value == pytest.approx(0.05)
    assert all(row.holds for row in rows.values() if row.at_least is not None)


def test_fastcomposer_id_is_compared_with_fastcomposer() -> None:
    single = run("single_subject", "fastcomposer_id", 0.75, 0.26, alpha=0.8)
    other_alpha = run("multi_subject", "fastcomposer_id", 0.70, 0.26, alpha=0.6)
    rows = rows_of(*RUNS, single, other_alpha)
    assert rows["single-subject identity, minus FastComposer's"].value == pytest.approx(0.15)
    assert rows["single-subject prompt consistency, minus FastComposer's"].value == pytest.approx(-0.01)
    assert rows["single-subject identity, minus FastComposer's, lower end"].holds
    assert "multi-subject identity, minus FastComposer's" not in rows


def test_without_a_faithful_alpha_the_highest_identity_counts_and_does_not_hold() -> None:
    rows = rows_of(RUNS[0], RUNS[1], RUNS[4], *(at_one(r) for r in RUNS[5:]))
    assert rows["best α"].value == 1.0
    assert rows["single-subject prompt consistency, share of text only"].holds is False


def at_one(other: Run) -> Run:
    settings = {**other.row.settings, "alpha": 1.0}
    return run("multi_subject", "fastcomposer", other.row.identity_preservation.mean, 0.27, **settings)


@pytest.mark.parametrize(
    ("left_out", "message"),
    [
        (0, r"no run of text_only on single_subject: .*methods=\[text_only\]"),
        (5, r"no run of fastcomposer on multi_subject.*alphas=\[0.8\]"),
        (6, r"labels='\{localization: none\}'"),
    ],
)
def test_a_missing_run_is_named(left_out: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        rows_of(*(one for i, one in enumerate(RUNS) if i != left_out))


def test_the_ceiling_is_what_true_images_score(monkeypatch: pytest.MonkeyPatch) -> None:
    first, second, third = held_out_identities()[:3]
    ids = [reference_name(i, who) for i, who in enumerate((first, second, third))]
    east, north = torch.tensor([1.0, 0]), torch.tensor([0, 1.0])
    known = {
        ids[0]: SimpleNamespace(reference=east, others=torch.stack([east, north])),
        ids[1]: SimpleNamespace(reference=east, others=torch.tensor([[0.9, 0.1]])),
        ids[2]: SimpleNamespace(reference=east, others=torch.zeros(0, 2)),
    }
    monkeypatch.setattr(checkpoint_rows, "embed_references", lambda subject, faces, size: known[subject.id])
    people = [Subject(name, "man", (Path("x.png"),)) for name in known]

    def person(who: Identity) -> Person:
        return Person(who, Appearance(), 0, (0, 0, 1, 1), (0, 0, 1, 1))

    shown = ((person(first),), (person(first), person(second)), (person(second),), (person(first),))
    scenes = HeldOutScenes(
        torch.arange(4.0).expand(8, 8, 3, 4).permute(3, 2, 0, 1), ("",) * 4, ("",) * 4, shown
    )

    def faces(images: torch.Tensor) -> list[Faces]:
        """In scene 0 the reference's face, in scene 2 half of it, in scene 3 none."""
        vectors = {0.0: [[1.0, 0]], 2.0: [[0.5, 0.75**0.5]], 3.0: []}
        rows = [torch.tensor(vectors[float(image.flatten()[0])]).reshape(-1, 2) for image in images]
        return [
            Faces(torch.ones(len(v), 4) * torch.tensor([0, 0, 1, 1.0]), torch.ones(len(v)), v) for v in rows
        ]

    ceiling = checkpoint_rows.identity_ceiling(people, scenes, faces, 64)
    assert ceiling.portraits == pytest.approx((0.5 + 0.9) / 2)
    assert ceiling.scenes == pytest.approx((1.0 + 0.5 + 0.0) / 3)
    with pytest.raises(ValueError, match="run prepare again"):
        checkpoint_rows.identity_ceiling(people[2:], scenes, faces, 64)
    with pytest.raises(ValueError, match="num_scenes"):
        checkpoint_rows.identity_ceiling(
            people, replace(scenes, people=((person(third), person(first)),) * 4), faces, 64
        )


def test_attention_is_compared(tmp_path: Path) -> None:
    file = tmp_path / "attention.json"
    with pytest.raises(FileNotFoundError, match="fastcomposer attention"):
        checkpoint_rows.attention_rows(file, "a", "b")
    file.write_text(json.dumps({"a": {"inside": 0.66}, "b": {"inside": 0.4}}))
    ratio = checkpoint_rows.attention_rows(file, "a", "b")[-1]
    assert ratio.value == pytest.approx(1.65) and ratio.holds
    with pytest.raises(ValueError, match="checkpoint c is not in it; there is a, b"):
        checkpoint_rows.attention_rows(file, "a", "c")
