"""The paper's claims are judged by the figures, and deviations are said plainly."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fastcomposer.evaluation.load_results import collect, difference
from fastcomposer.evaluation.report.html import named_grid
from fastcomposer.evaluation.report.paper_claims import Expectation, compare, deviations, expectations, tally
from fastcomposer.evaluation.statistics import Estimate, enough_people

Evaluation = tuple[Path, list[Any]]


CLOSE = "[\N{MINUS SIGN}0.070, \N{MINUS SIGN}0.010]."


def judged(folder: Path) -> dict[str, Expectation]:
    found = expectations(collect(folder, alpha=0.6))
    return {expectation.claim: expectation for expectation in found}


def the(found: dict[str, Expectation], start: str) -> Expectation:
    (match,) = (expectation for claim, expectation in found.items() if claim.startswith(start))
    return match


def test_verdicts_follow_the_figures(whole_evaluation: Evaluation) -> None:
    found = judged(whole_evaluation[0])
    identity = the(found, "Single subject: FastComposer's identity")
    assert identity.verdict == "not held"  # DreamBooth is at 0.57
    assert "Text only: 0.550 against 0.140, difference 0.410 [" in identity.evidence[0]
    custom = identity.evidence[3]
    assert custom.startswith("Custom Diffusion: 0.550 against 0.530")
    assert custom.endswith("not apart from 0.")
    assert the(found, "FastComposer's personalisation").verdict == "held"
    together = the(found, "Personalisation and one image")
    assert together.verdict == "not held"
    assert "Custom Diffusion: 302 s against 2.0 s, 151 times as much." in together.evidence
    assert the(found, "FastComposer stores nothing").verdict == "held"
    assert the(found, "Localization raises").verdict == "held"
    assert the(found, "Identity rises").verdict == "held"
    assert the(found, "Prompt consistency falls").verdict == "held"
    assert tally(list(found.values())) == {"held": 5, "not held": 3, "not measured": 0}


def test_what_is_missing_is_not_measured(
    tmp_path: Path, write_evaluation: Callable[..., Evaluation], made_up: Callable[..., Any]
) -> None:
    alone = made_up("fastcomposer", 0.4, 0.25, {"alpha": 0.6}, benchmarks=("single_subject",))
    found = judged(write_evaluation(tmp_path, [alone])[0])
    assert {expectation.verdict for expectation in found.values()} == {"not measured"}
    assert the(found, "Localization raises").evidence == (
        "There is no row of FastComposer with and without localization for multi subject.",
    )


def test_a_gain_that_hangs_on_who_was_depicted_does_not_hold(
    tmp_path: Path, write_evaluation: Callable[..., Evaluation], made_up: Callable[..., Any]
) -> None:
    methods = [
        made_up("fastcomposer", 0.41, 0.25, {"alpha": 0.6, "localization": "mini"}, by_subject=0.1),
        made_up("fastcomposer", 0.40, 0.25, {"alpha": 0.6, "localization": "none"}, by_subject=-0.1),
    ]
    localization = the(judged(write_evaluation(tmp_path, methods)[0]), "Localization raises")
    assert localization.verdict == "not held"
    assert "difference 0.010 [\N{MINUS SIGN}0." in localization.evidence[0]
    assert "over 4 people." in localization.evidence[0]
    assert "people to decide" in localization.evidence[0]


def test_the_number_of_people_that_would_decide() -> None:
    assert enough_people(Estimate(0.1, (-0.1, 0.3)), 6) == 24  # twice as narrow
    assert enough_people(Estimate(-0.1, (-0.5, 0.1)), 6) == 24
    assert enough_people(Estimate(0.0, (-0.1, 0.1)), 6) is None


@pytest.mark.parametrize(
    ("dip", "spread", "verdict"), [(0.01, 0.1, "held"), (0.01, 0.02, "not held"), (0.2, 0.02, "not held")]
)
def test_steps_back_count_where_they_do_not_hang_on_who_was_depicted(
    dip: float,
    spread: float,
    verdict: str,
    tmp_path: Path,
    write_evaluation: Callable[..., Evaluation],
    made_up: Callable[..., Any],
) -> None:
    identities = {0.0: 0.1, 0.5: 0.4, 0.75: 0.4 - dip, 1.0: 0.5}
    methods = [
        made_up(
            "fastcomposer",
            identity,
            0.3 - alpha / 10,
            {"alpha": alpha},
            by_subject=spread if alpha == 0.75 else 0.02,
        )
        for alpha, identity in identities.items()
    ]
    rising = the(judged(write_evaluation(tmp_path, methods)[0]), "Identity rises")
    assert rising.verdict == verdict
    assert "1 of 3 steps go the other way" in rising.evidence[0]


def test_other_orders_than_the_papers_are_said(whole_evaluation: Evaluation) -> None:
    found = deviations(collect(whole_evaluation[0], alpha=0.6))
    assert (
        "Single subject, identity: the paper has Textual Inversion (0.293 [R]) above DreamBooth (0.273 [R]); "
        "here it is below, 0.390 against 0.570, difference \N{MINUS SIGN}0.180 "
        "[\N{MINUS SIGN}0.190, \N{MINUS SIGN}0.170]."
    ) in found
    assert any("the paper has FastComposer (0.514 [R]) above DreamBooth" in text for text in found)
    assert not any("Text only" in text for text in found)
    (close,) = (text for text in found if "Custom Diffusion (0.434 [R]) above DreamBooth" in text)
    assert close.endswith("0.530 against 0.570, difference \N{MINUS SIGN}0.040 " + CLOSE)


def test_orders_are_compared_by_the_published_protocol_alone(whole_evaluation: Evaluation) -> None:
    collected = collect(whole_evaluation[0], alpha=0.6)
    low = Estimate(0.2, (0.1, 0.3))  # as in the paper, while the corrected score is above
    runs = [
        replace(run, row=replace(run.row, identity_published=low)) if run.row.method == "dreambooth" else run
        for run in collected.runs
    ]
    found = deviations(replace(collected, runs=tuple(runs)))
    assert not any("Single subject, identity" in text and "DreamBooth" in text for text in found)


def test_images_of_other_noise_are_not_paired(whole_evaluation: Evaluation) -> None:
    collected = collect(whole_evaluation[0], alpha=0.6)
    ours = collected.fastcomposer("single_subject")
    assert ours is not None
    assert difference(ours, ours, "identity") is not None
    moved = replace(ours, images=ours.images.assign(seed=ours.images.seed + 1000))
    assert difference(ours, moved, "identity") is None
    assert named_grid("single_subject", [("ours", ours), ("moved", moved)], {}, 1) is None


def test_without_common_images_intervals_are_compared(whole_evaluation: Evaluation) -> None:
    collected = collect(whole_evaluation[0], alpha=0.6)
    runs = {run.row.method: replace(run, images=run.images[:0]) for run in collected.main("single_subject")}
    near = compare(runs["custom_diffusion"], runs["fastcomposer"], "identity")
    assert near == (False, ", with intervals that overlap")
    assert compare(runs["text_only"], runs["fastcomposer"], "identity") == (True, "")
