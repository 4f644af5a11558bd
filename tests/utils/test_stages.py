"""Shares of a stage's tasks."""

from __future__ import annotations

from fastcomposer.utils.stages import even_shares


def test_blocks_and_their_remainders_do_not_pile_up() -> None:
    # 84 images of each pair in blocks of at most 64: every second task is small.
    sizes = [64, 20] * 105
    shares = even_shares(sizes, 2)
    assert [sum(sizes[number] for number in share) for share in shares] == [4412, 4408]
    assert sorted(number for share in shares for number in share) == list(range(210))


def test_there_may_be_fewer_tasks_than_shares() -> None:
    assert sorted(even_shares([3], 3)) == [[], [], [0]]
    assert even_shares([], 2) == [[], []]
