"""How well a FastComposer checkpoint does what the method is for, as rows of the embedded base's card."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from fastcomposer.evaluation.benchmark import Subject
from fastcomposer.evaluation.load_results import OURS, TEXT_ONLY, Collected, Run, difference
from fastcomposer.evaluation.results import LEAST_CONSISTENCY, most_alike
from fastcomposer.evaluation.scoring import know_subject
from fastcomposer.metrics.faces import FaceExtractor
from fastcomposer.metrics.identity import identity_score
from fastcomposer.miniworld.card.quality import HeldOutScenes, Row
from fastcomposer.miniworld.render import reference_name
from fastcomposer.miniworld.scenes import held_out_identities

PART = "fastcomposer"
SINGLE, MULTI = "single_subject", "multi_subject"


@dataclass(frozen=True)
class Ceiling:
    """How alike true images of a person are to the reference, by the benchmark's own rule.

    Attributes:
        scenes: Mean over scenes of one person, drawn by the world as those that a method learns to draw: in
            any style, clothing and expression. A method that drew perfectly would reach it.
        portraits: Mean over portraits like the reference, which no method gets.
    """

    scenes: float
    portraits: float


def identity_ceiling(
    subjects: Sequence[Subject], scenes: HeldOutScenes, faces: FaceExtractor, size: int | None
) -> Ceiling:
    """Score true images of people who have a reference.

    Args:
        subjects: The people, by the names that ``prepare`` gives them, with images that no method gets.
        scenes: Renders of these people.
        faces: Finds and embeds faces.
        size: See :func:`~fastcomposer.evaluation.scoring.read_reference`.

    Raises:
        ValueError: If nobody has another image, or there is no scene of one of them alone.
    """
    known = {subject.id: know_subject(subject, faces, size) for subject in subjects}
    means = [float((one.others @ one.reference).mean()) for one in known.values() if len(one.others)]
    if not means:
        raise ValueError("no subject has an image besides those that methods get: run prepare again")
    names = {who: reference_name(number, who) for number, who in enumerate(held_out_identities())}
    shown = {row: names[scenes.people[row][0].identity] for row in scenes.rows(1).tolist()}
    alone = [row for row, name in shown.items() if name in known]
    if not alone:
        raise ValueError("no held-out scene shows a subject of the benchmark alone: raise num_scenes")
    found = zip(alone, faces(scenes.images[alone]), strict=True)
    scores = [identity_score(one, known[shown[row]].reference[None]).value for row, one in found]
    return Ceiling(sum(scores) / len(scores), sum(means) / len(means))


def likeness_rows(collected: Collected, ceiling: Ceiling) -> list[Row]:
    """Compare FastComposer with true images, with text alone, and with its twin without localization.

    All is said at the best α: the one of highest single-subject identity among those that keep
    :data:`LEAST_CONSISTENCY` of the text-only prompt consistency, or among all where none does.

    Args:
        collected: Runs of both benchmarks by FastComposer, with and without localization, and by text alone.
        ceiling: See :func:`identity_ceiling`.

    Raises:
        ValueError: If a run is missing, with what to evaluate.
    """
    text = {name: _text_only(collected, name) for name in (SINGLE, MULTI)}
    best = best_alpha(collected)
    ours = {name: _ours(collected, name, best, localized=True) for name in (SINGLE, MULTI)}
    twin = _ours(collected, MULTI, best, localized=False)
    alone, together = (ours[name].row for name in (SINGLE, MULTI))
    single, multi = alone.identity_preservation.mean, together.identity_preservation.mean
    plain_single, plain_multi = (text[name].row.identity_preservation.mean for name in (SINGLE, MULTI))
    raised = difference(ours[MULTI], twin, "identity")
    if raised is None:
        raise ValueError("with and without localization: no common images; evaluate both on one benchmark")
    return [
        Row(PART, "best α", best),
        Row(PART, "identity of true scenes, the ceiling", ceiling.scenes),
        Row(PART, "identity of true portraits", ceiling.portraits),
        Row(PART, "single-subject identity", single),
        Row(PART, "single-subject identity, text only", plain_single),
        Row(PART, "single-subject identity, share of the ceiling", single / ceiling.scenes, 0.60),
        Row(PART, "single-subject identity, share of true portraits'", single / ceiling.portraits),
        Row(PART, "single-subject identity minus 4 × text only", single - 4 * plain_single, 0.0),
        Row(PART, "multi-subject identity", multi),
        Row(PART, "multi-subject identity, text only", plain_multi),
        Row(PART, "multi-subject identity minus 3 × text only", multi - 3 * plain_multi, 0.0),
        *(
            Row(PART, f"{name}, share of text only", _consistency(ours[key], text[key]), LEAST_CONSISTENCY)
            for key, name in (
                (SINGLE, "single-subject prompt consistency"),
                (MULTI, "multi-subject prompt consistency"),
            )
        ),
        Row(PART, "multi-subject identity without localization", twin.row.identity_preservation.mean),
        Row(PART, "gain by localization", raised.mean),
        Row(PART, "gain by localization, lower end of its 95 % interval", raised.ci95[0], 0.0),
    ]


def attention_rows(file: Path, trained: str, twin: str) -> list[Row]:
    """Compare the attention inside the masks of a checkpoint and of its twin without localization.

    Args:
        file: ``attention.json``, as ``fastcomposer attention`` writes it.
        trained: Name of the checkpoint in the file.
        twin: Name of its twin.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If a checkpoint is not in it.
    """
    if not file.is_file():
        raise FileNotFoundError(f"{file}: no such file; fastcomposer attention writes it")
    found = json.loads(file.read_text())
    for name in (trained, twin):
        if name not in found:
            raise ValueError(f"{file}: checkpoint {name} is not in it; there is {', '.join(found)}")
    ratio = found[trained]["inside"] / found[twin]["inside"]
    return [
        Row(PART, "share of attention inside the mask", found[trained]["inside"]),
        Row(PART, "share of attention inside the mask, without localization", found[twin]["inside"]),
        Row(PART, "share of attention inside the mask, ratio", ratio, 1.5),
    ]


def best_alpha(collected: Collected) -> float:
    """Choose α as :func:`likeness_rows` says.

    Raises:
        ValueError: If FastComposer was not evaluated on single subjects.
    """
    text = _text_only(collected, SINGLE)
    runs = [run for run in _of_ours(collected, SINGLE) if run.localized and run.alpha is not None]
    if not runs:
        raise ValueError(_missing(OURS, SINGLE))
    return float(most_alike([run.row for run in runs], text.row).settings["alpha"])


def _consistency(run: Run, text: Run) -> float:
    return run.row.prompt_consistency.mean / text.row.prompt_consistency.mean


def _text_only(collected: Collected, benchmark: str) -> Run:
    runs = [r for r in collected.runs if (r.row.benchmark, r.row.method) == (benchmark, TEXT_ONLY)]
    if not runs:
        raise ValueError(_missing(TEXT_ONLY, benchmark))
    return runs[0]


def _ours(collected: Collected, benchmark: str, alpha: float, *, localized: bool) -> Run:
    for run in _of_ours(collected, benchmark):
        if run.alpha == alpha and run.localized is localized:
            return run
    label = "" if localized else " and labels='{localization: none}'"
    raise ValueError(f"{_missing(OURS, benchmark)} alphas=[{alpha}]{label}")


def _of_ours(collected: Collected, benchmark: str) -> list[Run]:
    return [run for run in collected.runs if (run.row.benchmark, run.row.method) == (benchmark, OURS)]


def _missing(method: str, benchmark: str) -> str:
    return f"no run of {method} on {benchmark}: evaluate it with methods=[{method}]"
