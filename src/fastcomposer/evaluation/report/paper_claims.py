"""What the paper makes one expect, held against what was measured."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations, pairwise, product
from typing import Literal

from fastcomposer.evaluation.benchmark import PLACEHOLDERS
from fastcomposer.evaluation.load_results import (
    BENCHMARKS,
    TEXT_ONLY,
    Collected,
    PublishedFigure,
    Run,
    Score,
    difference,
    distinguishing,
    on_common_cases,
    read_published,
)
from fastcomposer.evaluation.report.tables import first_image, written
from fastcomposer.evaluation.statistics import Estimate, enough_people

Verdict = Literal["held", "not held", "not measured"]
FACTOR = 300
"""How many times faster than fine-tuning the paper says FastComposer is, at least."""


@dataclass(frozen=True)
class Expectation:
    """What is expected, whether it holds, and the figures or what is missing."""

    claim: str
    verdict: Verdict
    evidence: tuple[str, ...]


def expectations(collected: Collected) -> list[Expectation]:
    """Hold the paper's claims against the rows."""
    return [
        *(identity_above_baselines(collected, benchmark) for benchmark in PLACEHOLDERS),
        _against_fine_tuned(
            collected,
            f"FastComposer's personalisation takes less than 1/{FACTOR} of every fine-tuning baseline's.",
            lambda run: run.row.personalization_seconds_per_subject,
            lambda ours, theirs: ours * FACTOR < theirs,
        ),
        _against_fine_tuned(  # which is how the paper counts
            collected,
            f"Personalisation and one image together are at least {FACTOR} times as fast.",
            first_image,
            lambda ours, theirs: ours * FACTOR <= theirs,
        ),
        _against_fine_tuned(
            collected,
            "FastComposer stores nothing for a subject; every fine-tuning baseline does.",
            lambda run: float(run.row.stored_bytes_per_subject),
            lambda ours, theirs: ours == 0 < theirs,
            "bytes",
        ),
        localization_helps(collected),
        *alpha_trades(collected),
    ]


def identity_above_baselines(collected: Collected, benchmark: str) -> Expectation:
    """Whether FastComposer's mean identity, by the published protocol, is above all baselines'."""
    claim = f"{BENCHMARKS[benchmark]}: FastComposer's identity is above every baseline's."
    ours, baselines = collected.fastcomposer(benchmark), collected.baselines(benchmark)
    if ours is None or not baselines:
        return _not_measured(claim, "FastComposer" if ours is None else "a baseline", benchmark)
    evidence = [
        f"{name}: {_against(ours, run, 'identity_published')}."
        for run, name in zip(baselines, distinguishing(baselines), strict=True)
    ]
    held = all(_lower(run, ours, "identity_published") for run in baselines)
    return Expectation(claim, _verdict(held), tuple(evidence))


def localization_helps(collected: Collected) -> Expectation:
    """Whether it raises multi-subject identity, with the interval of the paired difference above 0."""
    claim = "Localization raises multi-subject identity, with an interval apart from 0."
    pair = collected.ablation("multi_subject")
    if pair is None:
        return _not_measured(claim, "FastComposer with and without localization", "multi_subject")
    raised = difference(*pair, "identity")
    if raised is None:
        return Expectation(claim, "not measured", ("The two runs have no scored case in common.",))
    on, off = (written(run.row.identity_preservation.mean, "score") for run in pair)
    people = pair[0].people or 0
    evidence = f"{on} with, {off} without; difference {_estimate(raised)} over {people} people."
    if not raised.excludes() and (enough := enough_people(raised, people)):
        evidence += f" With this mean and spread it would take about {enough:,} people to decide."
    return Expectation(claim, _verdict(raised.ci95[0] > 0), (evidence,))


def alpha_trades(collected: Collected) -> list[Expectation]:
    """Whether identity rises and prompt consistency falls with alpha, with no clear step back."""
    claims: dict[str, tuple[int, Score]] = {
        "Identity rises with α.": (1, "identity"),
        "Prompt consistency falls with α.": (-1, "prompt_consistency"),
    }
    benchmark = next((name for name in collected.benchmarks() if collected.sweep(name)), None)
    if benchmark is None:
        missing = ("FastComposer was measured at one α at most.",)
        return [Expectation(claim, "not measured", missing) for claim in claims]
    runs = collected.sweep(benchmark)
    alphas = ", ".join(f"{run.alpha:g}" for run in runs)
    found = []
    for claim, (sign, score) in claims.items():
        means = [sign * _score(run, score).mean for run in runs]
        back = [pair for pair, step in zip(pairwise(runs), pairwise(means), strict=True) if step[1] < step[0]]
        clear = [pair for pair in back if compare(*pair, score)[0]]
        evidence = f"{BENCHMARKS[benchmark]}: " + ", ".join(written(sign * mean, "score") for mean in means)
        evidence += f" at α = {alphas}; {len(back)} of {len(runs) - 1} steps go the other way"
        evidence += f", {len(clear)} of them clearly." if back else "."
        found.append(Expectation(claim, _verdict(means[-1] > means[0] and not clear), (evidence,)))
    return found


def deviations(collected: Collected) -> list[str]:
    """Pairs of methods whose order differs from the paper's by the published protocol, in plain words."""
    published: dict[tuple[str, str, str], PublishedFigure] = {}
    for figure in read_published():
        if not figure.note:  # the paper's own figure, not a re-run
            published.setdefault((figure.benchmark, figure.method, figure.measure), figure)
    measures: dict[str, tuple[str, Score]] = {
        "identity": ("identity", "identity_published"),
        "prompt": ("prompt consistency", "prompt_consistency"),
    }
    found = []
    for benchmark, (measure, (name, score)) in product(collected.benchmarks(), measures.items()):
        main = reversed(collected.main(benchmark))
        runs = {run.row.method: run for run in main if run.row.origin is None}
        known = [(run, published.get((benchmark, method, measure))) for method, run in runs.items()]
        ranked = [(run, figure) for run, figure in reversed(known) if figure is not None]
        for pair in combinations(ranked, 2):
            (best, high), (other, low) = sorted(pair, key=lambda one: -one[1].value)
            if high.value > low.value and _lower(best, other, score):
                found.append(
                    f"{BENCHMARKS[benchmark]}, {name}: the paper has {best.name} ({high.value:.3f} "
                    f"[{high.tag}]) above {other.name} ({low.value:.3f} [{low.tag}]); here it is below, "
                    f"{_against(best, other, score)}."
                )
    return found


def compare(one: Run, other: Run, score: Score) -> tuple[bool, str]:
    """Compare two runs case by case, or by their intervals where they have no images in common.

    Returns whether they differ by more than whom they depict, and a phrase on the difference.
    """
    paired = difference(one, other, score)
    if paired is not None:
        clear = paired.excludes()
        return clear, f", difference {_estimate(paired)}" + ": not apart from 0" * (not clear)
    (low, high), (start, end) = _score(one, score).ci95, _score(other, score).ci95
    clear = high < start or end < low
    return clear, ", with intervals that overlap" * (not clear)


def _lower(one: Run, other: Run, score: Score) -> bool:
    """Whether the mean of ``one`` is below that of ``other``, on the cases that both have."""
    low, high = (_score(run, score).mean for run in on_common_cases([one, other]))
    return low < high


def _against(one: Run, other: Run, score: Score) -> str:
    """The means of two runs on the cases that both have, and how they compare."""
    one, other = on_common_cases([one, other])
    means = " against ".join(written(_score(run, score).mean, "score") for run in (one, other))
    return means + compare(one, other, score)[1]


def _score(run: Run, score: Score) -> Estimate:
    name = "identity_preservation" if score == "identity" else score
    estimate: Estimate = getattr(run.row, name)
    return estimate


def _against_fine_tuned(
    collected: Collected,
    claim: str,
    get: Callable[[Run], float],
    holds: Callable[[float, float], bool],
    unit: Literal["seconds", "bytes"] = "seconds",
) -> Expectation:
    ours = collected.first_ours()
    benchmark = ours.row.benchmark if ours else "single_subject"
    others = [run for run in collected.baselines(benchmark) if run.row.method != TEXT_ONLY]
    if ours is None or not others:
        return _not_measured(claim, "FastComposer" if ours is None else "a fine-tuning baseline", benchmark)
    value = get(ours)
    evidence = []
    for run, name in zip(others, distinguishing(others), strict=True):
        theirs, own = (written(amount, unit) + " s" * (unit == "seconds") for amount in (get(run), value))
        ratio = f", {written(get(run) / value, 'ratio').rstrip('×')} times as much" if value > 0 else ""
        evidence.append(f"{name}: {theirs} against {own}{ratio}.")
    return Expectation(claim, _verdict(all(holds(value, get(run)) for run in others)), tuple(evidence))


def _not_measured(claim: str, missing: str, benchmark: str) -> Expectation:
    evidence = f"There is no row of {missing} for {BENCHMARKS[benchmark].lower()}."
    return Expectation(claim, "not measured", (evidence,))


def _verdict(held: bool) -> Verdict:
    return "held" if held else "not held"


def _estimate(estimate: Estimate) -> str:
    mean, low, high = (written(value, "score") for value in (estimate.mean, *estimate.ci95))
    return f"{mean} [{low}, {high}]"


def tally(found: Sequence[Expectation]) -> dict[Verdict, int]:
    """How many expectations there are of each verdict."""
    verdicts: tuple[Verdict, ...] = ("held", "not held", "not measured")
    return {verdict: sum(e.verdict == verdict for e in found) for verdict in verdicts}
