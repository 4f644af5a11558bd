from __future__ import annotations

import math

import pytest
import torch

from fastcomposer.metrics.faces import Faces
from fastcomposer.metrics.multi_subject import (
    SubjectCoverage,
    copy_paste_ratio,
    equal_error_threshold,
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
    assert score.covered
    assert score.head_count
    assert not score.duplicated


def test_two_faces_of_one_person_are_confused_and_duplicated() -> None:
    score = subject_score(faces(A, A), torch.stack([A, B]), 0.5)
    assert score.confusion == 0.0
    assert score.duplicated
    assert not score.covered


def test_a_blend_is_half_confused() -> None:
    score = subject_score(faces(unit(1, 0.5, 0), B), torch.stack([A, B]), 0.99)
    first = 1.0  # A resembles the second face not at all
    second = 1 - 0.5 / math.hypot(1, 0.5)
    assert score.confusion == pytest.approx((first + second) / 2)
    assert not score.covered


def test_one_face_and_none() -> None:
    one = subject_score(faces(A), torch.stack([A, B]), 0.5)
    assert one.confusion is None
    assert not one.covered
    assert not one.head_count
    assert subject_score(faces(), A[None], 0.5) == type(one)(None, False, False, False)


def test_the_threshold_makes_both_errors_equal() -> None:
    threshold = equal_error_threshold([0.4, 0.6, 0.7, 0.9], [0.0, 0.1, 0.2, 0.5])
    assert threshold == 0.5 or threshold == 0.6
    with pytest.raises(ValueError, match="pairs"):
        equal_error_threshold([], [0.1])


def test_copies_have_the_largest_ratio() -> None:
    truth = unit(1, 1, 0)
    assert copy_paste_ratio(A, A, truth) == pytest.approx(1, abs=1e-3)
    assert copy_paste_ratio(truth, A, truth) == pytest.approx(-1, abs=1e-3)
    assert copy_paste_ratio(unit(1, 0.4142, 0), A, truth) == pytest.approx(0, abs=1e-3)


def test_means_over_images() -> None:
    metric = SubjectCoverage(0.5)
    metric.update([faces(A, B), faces(A, A), faces(A)], [torch.stack([A, B])] * 3)
    found = {name: float(value) for name, value in metric.compute().items()}
    assert found == pytest.approx(
        {"confusion": 0.5, "coverage": 1 / 3, "duplicates": 1 / 3, "head_count": 2 / 3}
    )
