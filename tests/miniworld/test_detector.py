"""The detector's maps, peaks and matching, checked by hand."""

from __future__ import annotations

import pytest
import torch

from fastcomposer.miniworld.detector import (
    CenterMaps,
    Detections,
    HeadDetector,
    count_detections,
    decode,
    encode,
)

THREE = torch.tensor([[0.0, 26, 21, 51], [21, 24.5, 43, 50], [43, 27, 64, 52]])


def test_maps_of_boxes_decode_to_the_boxes() -> None:
    heads = torch.zeros(2, 3, 4)
    heads[0] = THREE
    heads[1, 1] = torch.tensor([14.0, 6, 52, 50])
    present = torch.tensor([[True, True, True], [False, True, False]])
    maps = encode(heads, present, 64, 64)
    assert maps.heat.shape == (2, 16, 16)
    assert (maps.heat == 1).sum((1, 2)).tolist() == [3, 1]
    first, second = decode(maps, threshold=0.99)
    torch.testing.assert_close(first.boxes[first.boxes[:, 0].argsort()], THREE)
    torch.testing.assert_close(second.boxes, heads[1, 1:2])
    assert second.scores.tolist() == [1.0]


def test_heat_falls_as_a_gaussian_of_a_sixth_of_the_head() -> None:
    heat = encode(torch.tensor([[[8.0, 8, 32, 56]]]), torch.tensor([[True]]), 64, 64).heat[0]
    # The centre (20, 32) is in cell (5, 8); the head is 6 by 12 cells, so the spreads are 1 and 2 cells.
    assert heat[8, 5] == 1
    torch.testing.assert_close(heat[8, 6], torch.tensor(-0.5).exp())
    torch.testing.assert_close(heat[10, 5], torch.tensor(-0.5).exp())


def test_a_head_at_the_edge_stays_in_the_maps_and_the_image() -> None:
    heads = torch.tensor([[[60.0, 60, 64, 64]]])
    (found,) = decode(encode(heads, torch.tensor([[True]]), 64, 64), threshold=0.5)
    torch.testing.assert_close(found.boxes, heads[0])
    maps = CenterMaps(torch.zeros(1, 16, 16), torch.full((1, 2, 16, 16), 1.0), torch.zeros(1, 2, 16, 16))
    maps.heat[0, 0, 0] = 0.9
    (found,) = decode(maps, threshold=0.5)
    side = 16 * torch.e  # half of 32 pixels times e; the rest lies outside
    torch.testing.assert_close(found.boxes, torch.tensor([[0.0, 0, side, side]]))


def test_detections_come_by_score_and_one_per_head() -> None:
    (found,) = decode(encode(torch.zeros(1, 3, 4), torch.zeros(1, 3, dtype=torch.bool), 64, 64), 0.1)
    assert found.boxes.shape == (0, 4)
    maps = encode(THREE[None], torch.ones(1, 3, dtype=torch.bool), 64, 64)
    for (row, column), heat in {(9, 2): 0.6, (9, 8): 0.9, (9, 13): 0.7}.items():
        assert maps.heat[0, row, column] == 1
        maps.heat[0, row, column] = heat
    (found,) = decode(maps, threshold=0.65)
    torch.testing.assert_close(found.scores, torch.tensor([0.9, 0.7]))
    torch.testing.assert_close(found.boxes, THREE[[1, 2]])
    # A second peak two cells away that gives nearly the same box is the same head.
    maps = CenterMaps(torch.zeros(1, 16, 16), torch.zeros(1, 2, 16, 16), torch.zeros(1, 2, 16, 16))
    maps.heat[0, 8, 7], maps.heat[0, 8, 9] = 0.9, 0.8
    maps.offset[0, 0, 8, 9] = -1.5  # 32 pixels wide, 2 pixels apart: an overlap of 30 / 34
    (found,) = decode(maps, threshold=0.5)
    assert found.scores.tolist() == pytest.approx([0.9])


def boxes_at(*lefts: float) -> torch.Tensor:
    return torch.tensor([[left, 0.0, left + 10, 10.0] for left in lefts]).reshape(-1, 4)


@pytest.mark.parametrize(
    ("found", "truth", "matches"),
    [
        ((), (0.0,), 0),
        ((0.0,), (), 0),
        ((0.0,), (0.0,), 1),
        ((3.0,), (0.0,), 1),  # overlap 7 / 13
        ((4.0,), (0.0,), 0),  # overlap 6 / 14
        ((0.0, 1.0, 2.0), (0.0,), 1),  # too many for one head
        ((0.0, 30.0), (0.0, 30.0, 60.0), 2),
        ((2.0, 6.0), (3.0, -1.0), 1),  # the higher score takes the only head that the other could have had
    ],
)
def test_matching(found: tuple[float, ...], truth: tuple[float, ...], matches: int) -> None:
    detections = Detections(boxes_at(*found), torch.linspace(1, 0.5, len(found)))
    assert count_detections([detections], [boxes_at(*truth)]) == (len(truth), len(found), matches)


def test_any_size_that_the_stride_divides() -> None:
    detector = HeadDetector(channels=(8, 8, 8, 8), head_channels=8).eval()
    assert detector(torch.rand(1, 3, 20, 36)).heat.shape == (1, 5, 9)
    with pytest.raises(ValueError, match="30 by 64 pixels"):
        detector(torch.rand(1, 3, 64, 30))
    with pytest.raises(ValueError, match="multiple of 8"):
        HeadDetector(channels=(8, 12, 8, 8))
    found = detector.detect(torch.rand(2, 3, 20, 36), threshold=0.0)
    assert len(found) == 2
    assert all((detections.boxes[:, 2:] <= torch.tensor([36, 20])).all() for detections in found)
