from __future__ import annotations

import math

import pytest
import torch

from fastcomposer.metrics.faces import Faces
from fastcomposer.metrics.multi_subject import (
    SubjectScore,
    copy_paste_ratio,
    equal_error_threshold,
    gallery_threshold,
    subject_score,
)

A, B = torch.tensor([1.0, 0.0, 0.0]), torch.tensor([0.0, 1.0, 0.0])


def unit(*values: float) -> torch.Tensor:
    return torch.nn.functional.normalize(torch.tensor(values).float(), dim=0)


def faces(*embeddings: torch.Tensor) -> Faces:
    count = len(embeddings)
    vectors = torch.stack(embeddings) if count else torch.zeros(0, 3)
    return Faces(torch.zeros(count, 4), torch.ones(count), vectors)


def test_each_reference_with_a_face_of_its_own() -> None:
    score = subject_score(faces(B, A), torch.stack([A, B]), 0.5)
    assert score.confusion == 1.0
    assert (score.coverage, score.duplicates, score.head_count) == (1, 0, 1)


def test_two_faces_of_one_person_are_confused_and_duplicated() -> None:
    score = subject_score(faces(A, A), torch.stack([A, B]), 0.5)
    assert score.confusion == 0.0
    assert (score.coverage, score.duplicates, score.head_count) == (0, 1, 1)


def test_a_blend_is_half_confused() -> None:
    score = subject_score(faces(unit(1, 0.5, 0), B), torch.stack([A, B]), 0.99)
    first = 1.0  # A resembles the second face not at all
    second = 1 - 0.5 / math.hypot(1, 0.5)
    assert score.confusion == pytest.approx((first + second) / 2)
    assert score.coverage == 0


def test_one_face_and_none() -> None:
    one = subject_score(faces(A), torch.stack([A, B]), 0.5)
    assert one == SubjectScore(None, coverage=0, duplicates=0, head_count=0)
    assert subject_score(faces(), A[None], 0.5) == one
    third = subject_score(faces(A, B, A), torch.stack([A, B]), 0.5)
    assert (third.coverage, third.duplicates, third.head_count) == (0, 1, 0)


def test_the_threshold_makes_both_errors_equal() -> None:
    threshold = equal_error_threshold([0.4, 0.6, 0.7, 0.9], [0.0, 0.1, 0.2, 0.5])
    assert 0.4 < threshold < 0.5  # one of four below, one of four above
    assert equal_error_threshold([0.8, 0.9], [0.0, 0.4]) == pytest.approx(0.6)
    with pytest.raises(ValueError, match="pairs"):
        equal_error_threshold([], [0.1])


def test_copies_have_the_largest_ratio() -> None:
    truth = unit(1, 1, 0)
    assert copy_paste_ratio(A, A, truth) == pytest.approx(1, abs=1e-3)
    assert copy_paste_ratio(truth, A, truth) == pytest.approx(-1, abs=1e-3)
    assert copy_paste_ratio(unit(1, 0.4142, 0), A, truth) == pytest.approx(0, abs=1e-3)


def test_the_threshold_of_galleries_divides_same_from_different_people() -> None:
    near_a, near_b = unit(1, 0.1, 0), unit(0.1, 1, 0)
    threshold = gallery_threshold([torch.stack([A, near_a]), torch.stack([B, near_b])])
    assert threshold is not None
    assert float(near_a @ near_b) < threshold <= float(A @ near_a)
    assert gallery_threshold([A[None], B[None]]) is None  # no two images of one person
    assert gallery_threshold([torch.stack([A, near_a])]) is None
    assert subject_score(faces(A), A[None], None).coverage is None
