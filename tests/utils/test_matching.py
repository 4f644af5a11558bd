from itertools import permutations

import numpy as np
import pytest

from fastcomposer.utils.matching import greedy_pairs, optimal_pairs


def test_the_most_similar_pair_comes_first_and_nobody_twice() -> None:
    similarity = np.array([[0.9, 0.8, 0.1], [0.85, 0.2, 0.3]])
    assert greedy_pairs(similarity) == [(0, 0), (1, 2)]
    assert greedy_pairs(similarity.T) == [(0, 0), (2, 1)]
    assert greedy_pairs(np.zeros((0, 3))) == []


def test_pairs_that_are_not_allowed_are_left_out() -> None:
    similarity = np.array([[0.9, 0.8, 0.1], [0.85, 0.2, 0.3]])
    allowed = np.ones_like(similarity, dtype=bool)
    allowed[0, 0] = allowed[1, 2] = False
    assert greedy_pairs(similarity, allowed) == [(0, 1), (1, 0)]
    assert greedy_pairs(similarity, np.zeros_like(allowed)) == []


def test_pairings_against_all_permutations() -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        similarity = rng.uniform(-1, 1, (3, 3))
        best = max(sum(similarity[i, p[i]] for i in range(3)) for p in permutations(range(3)))
        optimal, greedy = optimal_pairs(similarity), greedy_pairs(similarity)
        assert sum(similarity[pair] for pair in optimal) == pytest.approx(best)
        assert max(similarity[pair] for pair in greedy) == similarity.max()
        for pairs in (optimal, greedy):
            rows, columns = zip(*pairs, strict=True)
            assert sorted(rows) == sorted(columns) == [0, 1, 2]
    row = rng.random((1, 3))
    assert len(greedy_pairs(row)) == len(optimal_pairs(row)) == 1
