"""One-to-one matching by similarity."""

from __future__ import annotations

import numpy as np
from scipy.optimize import linear_sum_assignment


def greedy_pairs(similarity: np.ndarray, allowed: np.ndarray | None = None) -> list[tuple[int, int]]:
    """Take the most similar allowed pair, remove its two members, and repeat.

    Args:
        similarity: (n, K).
        allowed: (n, K) bool; all pairs by default.

    Returns:
        At most min(n, K) pairs of row and column in the order of rows; of equally similar ones the first.
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
    """Pair rows with columns so that the sum of similarities is greatest.

    Args:
        similarity: (n, K).

    Returns:
        min(n, K) pairs of row and column, in the order of rows.
    """
    rows, columns = linear_sum_assignment(similarity, maximize=True)
    return list(zip(rows.tolist(), columns.tolist(), strict=True))
