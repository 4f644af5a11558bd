from itertools import permutations

import numpy as np
import pytest

from fastcomposer.utils.matching import greedy_pairs, optimal_pairs


def test_the_most_similar_allowed_pair_comes_first_and_nobody_twice() -> None:
    similarity = np.array([[0.9, 0.8, 0.1], [0.85, 0.2, 0.3]])
    assert greedy_pairs(similarity) == [(0, 0), (1, 2)]
    assert greedy_pairs(similarity.T) == [(0, 0), (2, 1)]
    allowed = np.ones_like(similarity, dtype=bool)
    allowed[0, 0] = allowed[1, 2] = False
    assert greedy_pairs(similarity, allowed) == [(0, 1), (1, 0)]
    assert greedy_pairs(similarity, np.zeros_like(allowed)) == greedy_pairs(np.zeros((0, 3))) == []


def test_pairings_against_all_permutations() -> None:
    similarity = np.random.default_rng(0).uniform(-1, 1, (3, 3))
    best = max(sum(similarity[i, p[i]] for i in range(3)) for p in permutations(range(3)))
    assert sum(similarity[pair] for pair in optimal_pairs(similarity)) == pytest.approx(best)
    assert len(optimal_pairs(similarity[:1])) == 1
