"""Identity preservation against figures worked out by hand, under both protocols."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from fastcomposer.metrics.faces import Faces
from fastcomposer.metrics.identity import identity_score

PROTOCOLS = ("corrected", "published")


def vector(*cosines: float) -> Tensor:
    """A unit vector with these cosines to the subjects, of at most three."""
    given = torch.zeros(4)
    given[: len(cosines)] = torch.tensor(cosines)
    given[3] = (1 - given.square().sum()).sqrt()
    return given


def subjects(count: int) -> Tensor:
    """References (K, 4) at right angles."""
    return torch.eye(4)[:count]


def faces(*cosines: tuple[float, ...], sizes: tuple[float, ...] | None = None) -> Faces:
    """Faces in the order of the detector, with their cosines to the subjects; by default of one size."""
    sides = torch.tensor(sizes or (10.0,) * len(cosines))
    boxes = torch.stack([torch.zeros_like(sides), torch.zeros_like(sides), sides, sides], dim=1)
    embeddings = torch.stack([vector(*row) for row in cosines]) if cosines else torch.zeros(0, 4)
    return Faces(boxes.reshape(-1, 4), torch.linspace(0.9, 0.8, len(cosines)), embeddings)


BLANK = vector(0.1, 0.05, 0.02)


def score(found: Faces, count: int, protocol: Any) -> Any:
    return identity_score(found, subjects(count), protocol, BLANK)


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("count", [1, 2, 3])
def test_no_face_scores_zero_with_every_protocol(protocol: Any, count: int) -> None:
    found = score(faces(), count, protocol)
    assert (found.value, found.detected) == (0, 0)
    assert found.matched == (0.0,) * count
    assert found.faces == (None,) * count


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_as_many_faces_as_subjects(protocol: Any) -> None:
    one = score(faces((0.8,)), 1, protocol)
    assert (one.value, one.detected, one.faces) == (pytest.approx(0.8), 1, (0,))
    # Each face goes to the subject it resembles, whatever its place.
    two = score(faces((0.1, 0.6), (0.7, 0.2)), 2, protocol)
    assert two.matched == pytest.approx((0.7, 0.6))
    assert (two.value, two.faces) == (pytest.approx(0.6), (1, 0))
    three = score(faces((0, 0, 0.5), (0.6, 0.1, 0), (0.1, 0.7, 0)), 3, protocol)
    assert three.matched == pytest.approx((0.6, 0.7, 0.5))
    assert (three.value, three.detected, three.faces) == (pytest.approx(0.5), 3, (1, 2, 0))


def test_one_face_for_two_subjects() -> None:
    found = faces((0.2, 0.7))
    corrected = score(found, 2, "corrected")
    assert corrected.matched == (0.0, pytest.approx(0.7))  # exactly 0
    assert (corrected.value, corrected.detected, corrected.faces) == (0.0, 1, (None, 0))
    # The blank crop takes the first subject, to whom its cosine is 0.1.
    published = score(found, 2, "published")
    assert published.matched == pytest.approx((0.1, 0.7))
    assert (published.value, published.detected, published.faces) == (pytest.approx(0.1), 1, (None, 0))


def test_one_and_two_faces_for_three_subjects() -> None:
    one = faces((0.1, 0.2, 0.8))
    assert score(one, 3, "corrected").matched == (0, 0, pytest.approx(0.8))
    # Two blank crops, equal to each other: the one that is chosen first takes the first subject.
    assert score(one, 3, "published").matched == pytest.approx((0.1, 0.05, 0.8))
    two = faces((0.1, 0.2, 0.8), (0.1, 0.6, 0.2))
    assert score(two, 3, "corrected").matched == (0, pytest.approx(0.6), pytest.approx(0.8))
    assert score(two, 3, "corrected").value == 0
    assert score(two, 3, "published").value == pytest.approx(0.1)


def test_too_many_faces_first_and_largest() -> None:
    # A bystander is the surest, the subject the largest.
    single = faces((0.2,), (0.9,), (0.4,), sizes=(10, 30, 20))
    corrected, published = (score(single, 1, protocol) for protocol in PROTOCOLS)
    assert (corrected.value, corrected.detected, corrected.faces) == (pytest.approx(0.9), 3, (1,))
    assert (published.value, published.detected, published.faces) == (pytest.approx(0.2), 3, (0,))
    pair = faces((0.1, 0.2), (0.8, 0.1), (0.2, 0.6), sizes=(10, 20, 30))
    corrected, published = (score(pair, 2, protocol) for protocol in PROTOCOLS)
    assert (corrected.matched, corrected.faces) == (pytest.approx((0.8, 0.6)), (1, 2))
    assert (published.matched, published.faces) == (pytest.approx((0.8, 0.2)), (1, 0))
    # The smallest of four is not looked at, though it resembles the third subject best.
    group = faces((0, 0, 0.95), (0.5, 0, 0), (0, 0.6, 0), (0, 0, 0.4), sizes=(5, 20, 20, 20))
    corrected, published = (score(group, 3, protocol) for protocol in PROTOCOLS)
    assert (corrected.value, corrected.faces) == (pytest.approx(0.4), (1, 2, 3))
    assert (published.value, published.faces) == (pytest.approx(0.5), (1, 2, 0))


def test_greedy_and_optimal_matching_differ() -> None:
    # Greedy: 0.7 is the best pair, and 0.1 what is left. Optimal: 0.6 + 0.6 is more than 0.7 + 0.1.
    found = faces((0.7, 0.6), (0.6, 0.1))
    published, corrected = score(found, 2, "published"), score(found, 2, "corrected")
    assert (published.matched, published.value) == (pytest.approx((0.7, 0.1)), pytest.approx(0.1))
    assert (corrected.matched, corrected.value) == (pytest.approx((0.6, 0.6)), pytest.approx(0.6))


def test_negative_similarities_are_clipped_by_the_published_rule_only() -> None:
    assert score(faces((-0.3,)), 1, "published").value == 0
    assert score(faces((-0.3,)), 1, "corrected").value == pytest.approx(-0.3)
    pair = faces((0.8, -0.1), (-0.1, -0.2))
    assert score(pair, 2, "published").value == 0
    assert score(pair, 2, "corrected").value == pytest.approx(-0.2)
    assert score(pair, 2, "published").matched == pytest.approx((0.8, -0.2))


def test_what_cannot_be_scored() -> None:
    with pytest.raises(ValueError, match=r"metrics\.protocol=strict: must be one of corrected, published"):
        identity_score(faces((0.8,)), subjects(1), "strict")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"shape \(1, 3\).*embeddings, 4"):
        identity_score(faces((0.8,)), torch.eye(3)[:1])
    with pytest.raises(ValueError, match="at least one subject"):
        identity_score(faces((0.8,)), torch.zeros(0, 4))
    with pytest.raises(ValueError, match="blank crop: give its embedding"):
        identity_score(faces((0.8,)), subjects(2), "published")
    assert identity_score(faces((0.8,)), subjects(1), "published").value == pytest.approx(0.8)
