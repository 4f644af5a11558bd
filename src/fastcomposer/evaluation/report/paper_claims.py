"""What the paper makes one expect, held against what was measured."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations, pairwise
from typing import Literal

from fastcomposer.evaluation.load_results import (
    BENCHMARKS,
    TEXT_ONLY,
    Collected,
    Run,
    Score,
    difference,
    distinguishing,
)
from fastcomposer.evaluation.published import PublishedFigure, read_published
from fastcomposer.evaluation.report.table import written
from fastcomposer.evaluation.report.tables import first_image
from fastcomposer.evaluation.statistics import Estimate

Verdict = Literal["held", "not held", "not measured"]
FACTOR = 300
"""How many times faster than fine-tuning the paper says FastComposer is, at least."""


@dataclass(frozen=True)
class Expectation:
    """One expectation.

    Attributes:
        claim: What is expected.
        verdict: Whether it is so.
        evidence: The figures, or what is missing.
    """

    claim: str
    verdict: Verdict
    evidence: tuple[str, ...]


def expectations(collected: Collected) -> list[Expectation]:
    """Hold the paper's claims against the rows."""
    return [
        *(identity_above_baselines(collected, benchmark) for benchmark in BENCHMARKS),
        quick_personalization(collected),
        quick_first_image(collected),
        nothing_stored(collected),
        localization_helps(collected),
        *alpha_trades(collected),
    ]


def identity_above_baselines(collected: Collected, benchmark: str) -> Expectation:
    """FastComposer keeps identity better than every baseline, by the published protocol as in the paper.

    It holds where its mean is above all of theirs; differences whose interval includes 0 are pointed out.
    """
    claim = f"{BENCHMARKS[benchmark]}: FastComposer's identity is above every baseline's."
    ours, baselines = collected.ours(benchmark), collected.baselines(benchmark)
    if ours is None or not baselines:
        return _not_measured(claim, "FastComposer" if ours is None else "a baseline", benchmark)
    value = ours.row.identity_published.mean
    evidence = []
    for run, name in zip(baselines, distinguishing(baselines), strict=True):
        against = f"{_figure(value)} against {_figure(run.row.identity_published.mean)}"
        evidence.append(f"{name}: {against}{compare(ours, run, 'identity_published').words}.")
    held = all(run.row.identity_published.mean < value for run in baselines)
    return Expectation(claim, _verdict(held), tuple(evidence))


def quick_personalization(collected: Collected) -> Expectation:
    """Personalisation takes less than 1/300 of the fine-tuning methods'."""
    claim = f"FastComposer's personalisation takes less than 1/{FACTOR} of every fine-tuning baseline's."
    return _against_fine_tuned(
        collected,
        claim,
        lambda run: run.row.personalization_seconds_per_subject,
        lambda ours, theirs: ours * FACTOR < theirs,
        "seconds",
    )


def quick_first_image(collected: Collected) -> Expectation:
    """Personalisation and one image together are 300 times as fast, which is how the paper counts."""
    claim = f"Personalisation and one image together are at least {FACTOR} times as fast."
    return _against_fine_tuned(
        collected, claim, first_image, lambda ours, theirs: ours * FACTOR <= theirs, "seconds"
    )


def nothing_stored(collected: Collected) -> Expectation:
    """No storage for each subject."""
    claim = "FastComposer stores nothing for a subject; every fine-tuning baseline does."
    return _against_fine_tuned(
        collected,
        claim,
        lambda run: float(run.row.stored_bytes_per_subject),
        lambda ours, theirs: ours == 0 < theirs,
        "bytes",
    )


def localization_helps(collected: Collected) -> Expectation:
    """Localization raises multi-subject identity, with the interval of the paired difference above 0."""
    claim = "Localization raises multi-subject identity, with an interval apart from 0."
    pair = collected.ablation("multi_subject")
    if pair is None:
        return _not_measured(claim, "FastComposer with and without localization", "multi_subject")
    raised = difference(*pair, "identity")
    if raised is None:
        return Expectation(claim, "not measured", ("The two runs have no scored case in common.",))
    means = [run.row.identity_preservation.mean for run in pair]
    evidence = f"{_figure(means[0])} with, {_figure(means[1])} without; difference {_estimate(raised)}."
    return Expectation(claim, _verdict(raised.ci95[0] > 0), (evidence,))


def alpha_trades(collected: Collected) -> list[Expectation]:
    """Identity rises and prompt consistency falls with alpha.

    It holds where the ends are in that order and no step the other way is a clear one.
    """
    claims: dict[str, tuple[int, Score]] = {
        "Identity rises with α.": (1, "identity"),
        "Prompt consistency falls with α.": (-1, "prompt_consistency"),
    }
    benchmark = next((name for name in collected.benchmarks() if collected.sweep(name)), None)
    if benchmark is None:
        return [
            Expectation(claim, "not measured", ("FastComposer was measured at one α at most.",))
            for claim in claims
        ]
    runs = collected.sweep(benchmark)
    alphas = ", ".join(f"{run.alpha:g}" for run in runs)
    found = []
    for claim, (sign, score) in claims.items():
        means = [_score(run, score).mean for run in runs]
        steps = [(one, other) for one, other in pairwise(runs)]
        back = [(a, b) for a, b in steps if sign * (_score(b, score).mean - _score(a, score).mean) < 0]
        clear = [pair for pair in back if compare(*pair, score).clear]
        held = sign * (means[-1] - means[0]) > 0 and not clear
        evidence = f"{BENCHMARKS[benchmark]}: " + ", ".join(map(_figure, means))
        evidence += f" at α = {alphas}; {len(back)} of {len(steps)} steps go the other way"
        evidence += f", {len(clear)} of them clearly." if back else "."
        found.append(Expectation(claim, _verdict(held), (evidence,)))
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
    for benchmark in collected.benchmarks():
        runs = list({run.row.method: run for run in reversed(collected.main(benchmark))}.values())
        for measure, (name, score) in measures.items():
            known = [(run, published.get((benchmark, run.row.method, measure))) for run in reversed(runs)]
            ranked = [(run, figure) for run, figure in known if figure is not None]
            for (one, first), (other, second) in combinations(ranked, 2):
                here = _score(one, score).mean - _score(other, score).mean
                there = first.value - second.value
                if here * there >= 0:
                    continue
                best = (one, other, first, second) if there > 0 else (other, one, second, first)
                found.append(
                    f"{BENCHMARKS[benchmark]}, {name}: the paper has {best[0].name} "
                    f"({best[2].value:.3f} [{best[2].tag}]) above {best[1].name} ({best[3].value:.3f} "
                    f"[{best[3].tag}]); here it is below, {_figure(_score(best[0], score).mean)} against "
                    f"{_figure(_score(best[1], score).mean)}{compare(best[0], best[1], score).words}."
                )
    return found


@dataclass(frozen=True)
class Comparison:
    """Whether two runs differ by more than whom they depicted.

    Attributes:
        clear: Whether they do.
        words: The difference with its interval, or what is known in its place, to stand after the two means.
    """

    clear: bool
    words: str


def compare(one: Run, other: Run, score: Score) -> Comparison:
    """Compare two runs case by case, or by their own intervals where they have no images in common.

    Args:
        one: Less the other.
        other: See there.
        score: Of what.
    """
    paired = difference(one, other, score)
    if paired is not None:
        clear = paired.excludes()
        return Comparison(clear, f", difference {_estimate(paired)}" + ": not apart from 0" * (not clear))
    (low, high), (start, end) = _score(one, score).ci95, _score(other, score).ci95
    clear = high < start or end < low
    return Comparison(clear, ", with intervals that overlap" * (not clear))


def _score(run: Run, score: Score) -> Estimate:
    scores = {
        "identity": run.row.identity_preservation,
        "identity_published": run.row.identity_published,
        "prompt_consistency": run.row.prompt_consistency,
    }
    return scores[score]


def _figure(value: float) -> str:
    return written(value, "score")


def _against_fine_tuned(
    collected: Collected,
    claim: str,
    get: Callable[[Run], float],
    holds: Callable[[float, float], bool],
    unit: Literal["seconds", "bytes"],
) -> Expectation:
    benchmark = next((name for name in collected.benchmarks() if collected.ours(name)), "single_subject")
    ours = collected.ours(benchmark)
    others = [run for run in collected.baselines(benchmark) if run.row.method != TEXT_ONLY]
    if ours is None or not others:
        return _not_measured(claim, "FastComposer" if ours is None else "a fine-tuning baseline", benchmark)
    value = get(ours)
    evidence = []
    for run, name in zip(others, distinguishing(others), strict=True):
        text = f"{name}: {_amount(get(run), unit)} against {_amount(value, unit)}"
        ratio = f", {written(get(run) / value, 'ratio').rstrip('×')} times as much" if value > 0 else ""
        evidence.append(f"{text}{ratio}.")
    return Expectation(claim, _verdict(all(holds(value, get(run)) for run in others)), tuple(evidence))


def _amount(value: float, unit: Literal["seconds", "bytes"]) -> str:
    return written(value, unit) + (" s" if unit == "seconds" else "")


def _not_measured(claim: str, missing: str, benchmark: str) -> Expectation:
    where = BENCHMARKS[benchmark].lower()
    return Expectation(claim, "not measured", (f"There is no row of {missing} for {where}.",))


def _verdict(held: bool) -> Verdict:
    return "held" if held else "not held"


def _estimate(estimate: Estimate) -> str:
    mean, low, high = (written(value, "score") for value in (estimate.mean, *estimate.ci95))
    return f"{mean} [{low}, {high}]"


def tally(found: Sequence[Expectation]) -> dict[Verdict, int]:
    """How many expectations there are of each verdict."""
    verdicts: tuple[Verdict, ...] = ("held", "not held", "not measured")
    return {verdict: sum(e.verdict == verdict for e in found) for verdict in verdicts}
