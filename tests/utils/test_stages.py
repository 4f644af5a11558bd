"""Shares of a stage's tasks."""

from __future__ import annotations

import random

from fastcomposer.utils.stages import even_shares


def test_blocks_and_their_remainders_do_not_pile_up() -> None:
    # 84 images of each pair in blocks of at most 64: every second task is small.
    sizes = [64, 20] * 105
    assert [sum(sizes[number] for number in share) for share in even_shares(sizes, 2)] == [4412, 4408]


def test_every_task_is_somebodys_and_in_order() -> None:
    rng = random.Random(0)
    for count in (1, 2, 3, 8):
        sizes = [rng.randrange(1, 65) for _ in range(50)]
        shares = even_shares(sizes, count)
        assert sorted(number for share in shares for number in share) == list(range(50))
        assert all(share == sorted(share) for share in shares)
        loads = [sum(sizes[number] for number in share) for share in shares]
        assert max(loads) - min(loads) <= max(sizes)


def test_there_may_be_fewer_tasks_than_shares() -> None:
    assert sorted(even_shares([3], 3)) == [[], [], [0]]
    assert even_shares([], 2) == [[], []]
