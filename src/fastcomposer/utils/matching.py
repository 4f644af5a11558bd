"""One-to-one matching by similarity."""

from __future__ import annotations

import numpy as np
from scipy.optimize import linear_sum_assignment


def greedy_pairs(similarity: np.ndarray, allowed: np.ndarray | None = None) -> list[tuple[int, int]]:
    """Take the most similar allowed pair of (n, K), remove its row and column, and repeat.

    Of equally similar pairs the first is taken; the pairs are returned in the order of rows.
    """
    open_pairs = np.array(similarity, dtype=float)
    if allowed is not None:
        open_pairs[~allowed] = -np.inf
    pairs = []
    while open_pairs.size and np.isfinite(open_pairs.max()):
        row, column = (int(index) for index in np.unravel_index(open_pairs.argmax(), open_pairs.shape))
        pairs.append((row, column))
        open_pairs[row], open_pairs[:, column] = -np.inf, -np.inf
    return sorted(pairs)


def optimal_pairs(similarity: np.ndarray) -> list[tuple[int, int]]:
    """Pair rows with columns of (n, K) so that the sum is greatest: min(n, K) pairs, in the order of rows."""
    rows, columns = linear_sum_assignment(similarity, maximize=True)
    return list(zip(rows.tolist(), columns.tolist(), strict=True))
