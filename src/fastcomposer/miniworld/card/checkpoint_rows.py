"""Rows of the card for the FastComposer checkpoints, from an evaluation of both."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from fastcomposer.evaluation.benchmark import Subject
from fastcomposer.evaluation.load_results import (
    FASTCOMPOSER_ID,
    OURS,
    TEXT_ONLY,
    Collected,
    Run,
    Score,
    difference,
)
from fastcomposer.evaluation.results import LEAST_CONSISTENCY, most_similar
from fastcomposer.evaluation.scoring import embed_references
from fastcomposer.metrics.faces import FaceExtractor
from fastcomposer.metrics.identity import identity_score
from fastcomposer.miniworld.card.measures import HeldOutScenes, Row
from fastcomposer.miniworld.render import reference_name
from fastcomposer.miniworld.scenes import held_out_identities
from fastcomposer.utils.json_files import read_json_as

PART = "fastcomposer"
SINGLE, MULTI = "single_subject", "multi_subject"


@dataclass(frozen=True)
class Ceiling:
    """Mean identity of true images by the benchmark's own rule."""

    scenes: float  # of one person in any style, clothing and expression: the score of a perfect method
    portraits: float  # like the reference, which no method gets


def identity_ceiling(
    subjects: Sequence[Subject], scenes: HeldOutScenes, faces: FaceExtractor, size: int | None
) -> Ceiling:
    """Score true images of the subjects, who have images that no method gets.

    For ``size`` see :func:`~fastcomposer.evaluation.scoring.read_reference`.

    Raises:
        ValueError: If nobody has another image, or there is no scene of one of them alone.
    """
    known = {subject.id: embed_references(subject, faces, size) for subject in subjects}
    means = [float((one.others @ one.reference).mean()) for one in known.values() if len(one.others)]
    if not means:
        raise ValueError("no subject has an image besides those that methods get: run prepare again")
    names = {who: reference_name(number, who) for number, who in enumerate(held_out_identities())}
    shown = {row: names[scenes.people[row][0].identity] for row in scenes.rows(1)}
    alone = [row for row, name in shown.items() if name in known]
    if not alone:
        raise ValueError("no held-out scene shows a subject of the benchmark alone: raise num_scenes")
    found = zip(alone, faces(scenes.images[alone]), strict=True)
    scores = [identity_score(one, known[shown[row]].reference[None]).value for row, one in found]
    return Ceiling(sum(scores) / len(scores), sum(means) / len(means))


def evaluation_rows(collected: Collected, ceiling: Ceiling) -> list[Row]:
    """Compare FastComposer with true images, with text alone, and with its twin without localization.

    All rows are at the best α: that of the highest single-subject identity among those that keep
    :data:`LEAST_CONSISTENCY` of the text-only prompt consistency, or among all where none does. Where it is
    evaluated at that α, FastComposer-ID is compared with FastComposer. The error about a missing run names
    what to evaluate.
    """
    text = {name: _text_only(collected, name) for name in (SINGLE, MULTI)}
    candidates = [r.row for r in _runs(collected, OURS, SINGLE) if r.localized and r.alpha is not None]
    if not candidates:
        raise ValueError(_missing(OURS, SINGLE))
    best = float(most_similar(candidates, text[SINGLE].row).settings["alpha"])
    ours = {name: _ours(collected, name, best, localized=True) for name in (SINGLE, MULTI)}
    twin = _ours(collected, MULTI, best, localized=False)
    raised = difference(ours[MULTI], twin, "identity")
    if raised is None:
        raise ValueError("with and without localization: no common images; evaluate both on one benchmark")
    single, multi = (ours[name].row.identity_preservation.mean for name in (SINGLE, MULTI))
    plain_single, plain_multi = (text[name].row.identity_preservation.mean for name in (SINGLE, MULTI))
    kept_single, kept_multi = (
        ours[name].row.prompt_consistency.mean / text[name].row.prompt_consistency.mean
        for name in (SINGLE, MULTI)
    )
    rows: list[tuple[str, float, float | None]] = [
        ("best α", best, None),
        ("identity of true scenes, the ceiling", ceiling.scenes, None),
        ("identity of true portraits", ceiling.portraits, None),
        ("single-subject identity", single, None),
        ("single-subject identity, text only", plain_single, None),
        ("single-subject identity, share of the ceiling", single / ceiling.scenes, 0.60),
        ("single-subject identity, share of true portraits'", single / ceiling.portraits, None),
        ("single-subject identity minus 4 × text only", single - 4 * plain_single, 0.0),
        ("multi-subject identity", multi, None),
        ("multi-subject identity, text only", plain_multi, None),
        ("multi-subject identity minus 3 × text only", multi - 3 * plain_multi, 0.0),
        ("single-subject prompt consistency, share of text only", kept_single, LEAST_CONSISTENCY),
        ("multi-subject prompt consistency, share of text only", kept_multi, LEAST_CONSISTENCY),
        ("multi-subject identity without localization", twin.row.identity_preservation.mean, None),
        ("gain by localization", raised.mean, None),
        ("gain by localization, lower end of its 95 % interval", raised.ci95[0], 0.0),
    ]
    return [Row(PART, *row) for row in rows] + _rows_beyond(collected, ours, best)


def _rows_beyond(collected: Collected, ours: dict[str, Run], alpha: float) -> list[Row]:
    """FastComposer-ID minus FastComposer, over the images that both have."""
    rows: list[tuple[str, float, float | None]] = []
    for name, run in ours.items():
        for beyond in (r for r in _runs(collected, FASTCOMPOSER_ID, name) if r.alpha == alpha):
            kind = name.replace("_", "-")
            rows.append((f"{kind} identity", beyond.row.identity_preservation.mean, None))
            scores: tuple[tuple[Score, str], ...] = (
                ("identity", "identity"),
                ("prompt_consistency", "prompt consistency"),
            )
            for score, words in scores:
                gain = difference(beyond, run, score)
                if gain is None:
                    raise ValueError(f"{name}: FastComposer and FastComposer-ID have no common images")
                rows.append((f"{kind} {words}, minus FastComposer's", gain.mean, None))
                low = 0.0 if score == "identity" else None
                rows.append((f"{kind} {words}, minus FastComposer's, lower end", gain.ci95[0], low))
    return [Row(FASTCOMPOSER_ID, *row) for row in rows]


def attention_rows(file: Path, trained: str, twin: str) -> list[Row]:
    """Compare the attention inside the masks of a checkpoint and of its twin, by their names in the file."""
    if not file.is_file():
        raise FileNotFoundError(f"{file}: no such file; fastcomposer attention writes it")
    found = read_json_as(dict[str, dict[str, float]], file, "measured attention")
    for name in (trained, twin):
        if name not in found:
            raise ValueError(f"{file}: checkpoint {name} is not in it; there is {', '.join(found)}")
    inside, without = (found[name]["inside"] for name in (trained, twin))
    return [
        Row(PART, "share of attention inside the mask", inside),
        Row(PART, "share of attention inside the mask, without localization", without),
        Row(PART, "share of attention inside the mask, ratio", inside / without, 1.5),
    ]


def _runs(collected: Collected, method: str, benchmark: str) -> list[Run]:
    return [run for run in collected.runs if (run.row.benchmark, run.row.method) == (benchmark, method)]


def _text_only(collected: Collected, benchmark: str) -> Run:
    for run in _runs(collected, TEXT_ONLY, benchmark):
        return run
    raise ValueError(_missing(TEXT_ONLY, benchmark))


def _ours(collected: Collected, benchmark: str, alpha: float, *, localized: bool) -> Run:
    for run in _runs(collected, OURS, benchmark):
        if run.alpha == alpha and run.localized is localized:
            return run
    label = "" if localized else " and labels='{localization: none}'"
    raise ValueError(f"{_missing(OURS, benchmark)} alphas=[{alpha}]{label}")


def _missing(method: str, benchmark: str) -> str:
    return f"no run of {method} on {benchmark}: evaluate it with methods=[{method}]"
