from __future__ import annotations

import math

import pytest
import torch

from fastcomposer.losses import (
    LayerLoss,
    LossConfig,
    balanced_l1,
    denoising_loss,
    dice,
    disentangle,
    localization_loss,
    map_size,
    subject_cross_entropy,
    subject_union,
    token_compose,
)


def test_denoising_loss_is_the_mean_over_all_elements() -> None:
    prediction = torch.tensor([[[[1.0, 2.0], [3.0, 4.0]]], [[[0.0, 0.0], [0.0, 0.0]]]])
    target = torch.zeros(2, 1, 2, 2)
    assert denoising_loss(prediction, target).item() == pytest.approx(30 / 8)
    mask = torch.tensor([[[[1.0, 0.5], [0.0, 0.0]]], [[[1.0, 1.0], [1.0, 1.0]]]])
    # 1·1 + (0.5·2)², still over eight elements.
    assert denoising_loss(prediction, target, mask).item() == pytest.approx(2 / 8)
    weight = torch.tensor([2.0, 5.0])
    assert denoising_loss(prediction, target, weight=weight).item() == pytest.approx(2 * 30 / 4 / 2)


def test_denoising_loss_is_computed_in_float32() -> None:
    prediction = torch.full((1, 1, 8, 8), 300.0, dtype=torch.float16)
    assert denoising_loss(prediction, torch.zeros_like(prediction)).item() == 90000.0


def test_union_ignores_empty_slots_and_overlaps() -> None:
    masks = torch.zeros(2, 2, 2, 2)
    masks[0, 0, 0] = masks[0, 1, :, 0] = masks[1] = 1
    present = torch.tensor([[True, True], [False, False]])
    union = subject_union(masks, present, (2, 2))
    assert union.tolist() == [[[[1, 1], [1, 0]]], [[[0, 0], [0, 0]]]]


def test_union_is_resized_bilinearly() -> None:
    masks = torch.tensor([[[[1.0, 1.0, 0.0, 0.0]] * 4]])
    assert subject_union(masks, torch.tensor([[True]]), (1, 1)).item() == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("positions", "latent", "expected"),
    [
        (64, (8, 8), (8, 8)),
        (8, (8, 4), (4, 2)),
        (12, (16, 12), (4, 3)),
        (15, (9, 5), (5, 3)),
        (6, (9, 5), (3, 2)),
    ],
)
def test_map_size_halves_and_rounds_up(
    positions: int, latent: tuple[int, int], expected: tuple[int, int]
) -> None:
    assert map_size(positions, latent) == expected
    with pytest.raises(ValueError, match=r"10 positions does not fit a \(8, 8\) latent"):
        map_size(10, (8, 8))


def test_localization_of_one_layer_by_hand() -> None:
    # One sample, one head, four positions, two subjects of which the second is absent.
    maps = torch.tensor([0.1, 0.2, 0.3, 0.4]).reshape(1, 1, 4, 1).repeat(1, 1, 1, 2)
    masks = torch.tensor([[[0.0, 0.0, 1.0, 1.0], [1.0, 1.0, 1.0, 1.0]]])
    present = torch.tensor([[True, False]])
    # 0.3 / 2 outside minus 0.7 / 2 inside.
    assert balanced_l1(maps, masks, present).item() == pytest.approx(-0.2, abs=1e-5)
    assert balanced_l1(maps, masks, present, normalize=True).item() == pytest.approx(-0.5, abs=1e-4)
    assert balanced_l1(maps, masks, torch.tensor([[True, True]])).item() == pytest.approx(
        (-0.2 - 0.25) / 2, abs=1e-4
    )


def test_samples_without_subjects_count_as_zero() -> None:
    maps = torch.full((2, 3, 4, 1), 0.5)
    masks = torch.tensor([0.0, 0.0, 0.0, 1.0]).expand(2, 1, 4)
    both = balanced_l1(maps * torch.tensor([0, 0, 0, 1.0])[:, None], masks, torch.tensor([[True], [True]]))
    one = balanced_l1(maps * torch.tensor([0, 0, 0, 1.0])[:, None], masks, torch.tensor([[True], [False]]))
    assert both.item() == pytest.approx(-0.5, abs=1e-4)
    assert one.item() == pytest.approx(-0.25, abs=1e-4)


def test_localization_is_the_mean_over_layers() -> None:
    masks = torch.zeros(1, 1, 4, 4)
    masks[..., :2] = 1
    maps = {
        "a": masks.reshape(1, 1, 16, 1),  # 4x4, all attention inside: -1
        # 2x2, all attention outside; the antialiased mask is 6/7 inside and 1/7 outside.
        "b": (1 - masks[..., ::2, ::2]).reshape(1, 1, 4, 1),
        "c": masks.reshape(1, 1, 16, 1) * 0.5,
    }
    total, layers = localization_loss(maps, masks, torch.tensor([[True]]), (4, 4))
    values = {name: value.item() for name, value in layers.items()}
    assert values == pytest.approx({"a": -1, "b": 5 / 7, "c": -0.5}, abs=1e-4)
    assert total.item() == pytest.approx((-1 + 5 / 7 - 0.5) / 3, abs=1e-4)


# One sample, one head, three positions: one of each of two subjects, one of nobody.
MASKS = torch.tensor([[[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]])
MAPS = torch.tensor([[[[0.6, 0.2], [0.1, 0.3], [0.1, 0.5]]]])
BOTH = torch.tensor([[True, True]])


def test_cross_entropy_over_subjects_by_hand() -> None:
    # Positions 0 and 1 belong to someone: shares 0.6 / 0.8 and 0.3 / 0.4.
    expected = -(math.log(0.75) + math.log(0.75)) / 2
    assert subject_cross_entropy(MAPS, MASKS, BOTH).item() == pytest.approx(expected, abs=1e-4)
    # Another head divides evenly: the mean over both.
    two = torch.cat([MAPS, torch.full_like(MAPS, 0.1)], dim=1)
    expected = (expected + math.log(2)) / 2
    assert subject_cross_entropy(two, MASKS, BOTH).item() == pytest.approx(expected, abs=1e-4)
    # Positions with soft masks count as much as they belong to a subject.
    soft = torch.tensor([[[1.0, 0.0, 0.0], [0.0, 0.5, 0.0]]])
    maps = torch.tensor([[[[0.8, 0.2], [0.5, 0.5], [0.0, 0.0]]]])
    expected = -(math.log(0.8) + 0.5 * math.log(0.5)) / 1.5
    assert subject_cross_entropy(maps, soft, BOTH).item() == pytest.approx(expected, abs=1e-4)


def test_cross_entropy_is_zero_where_nobody_can_be_confused() -> None:
    assert subject_cross_entropy(MAPS, MASKS, torch.tensor([[True, False]])).item() == 0
    assert subject_cross_entropy(MAPS, MASKS, torch.tensor([[False, False]])).item() == 0
    assert subject_cross_entropy(MAPS, torch.zeros(1, 2, 3), BOTH).item() == 0


def test_token_compose_by_hand() -> None:
    # All attention of subject 0: 0.8, of which 0.6 inside; of subject 1: 1.0, of which 0.3 inside.
    token = ((1 - 0.75) ** 2 + (1 - 0.3) ** 2) / 2
    assert token_compose(MAPS, MASKS, BOTH, pixel_weight=0).item() == pytest.approx(token, abs=1e-4)
    first = -(math.log(0.6) + 2 * math.log(0.9)) / 3
    second = -(math.log(0.8) + math.log(0.3) + math.log(0.5)) / 3
    pixel = token_compose(MAPS, MASKS, BOTH, pixel_weight=1).item() - token
    assert pixel == pytest.approx((first + second) / 2, abs=1e-4)
    alone = token_compose(MAPS, MASKS, torch.tensor([[True, False]]), pixel_weight=0.5).item()
    assert alone == pytest.approx(0.25**2 + 0.5 * first, abs=1e-4)


def test_token_compose_averages_over_heads_before_it_squares() -> None:
    inside = torch.tensor([[[1.0, 0.0]]])
    maps = torch.tensor([[[[0.4], [0.0]], [[0.0], [0.4]]]])  # ratios 1 and 0, mean map 0.2 and 0.2
    present = torch.tensor([[True]])
    assert token_compose(maps, inside, present, pixel_weight=0).item() == pytest.approx(0.25, abs=1e-4)
    pixel = -(math.log(0.2) + math.log(0.8)) / 2
    assert token_compose(maps, inside, present, pixel_weight=1).item() == pytest.approx(
        0.25 + pixel, abs=1e-3
    )


def test_token_compose_without_subjects_or_pixels() -> None:
    assert token_compose(MAPS, MASKS, torch.tensor([[False, False]])).item() == 0
    maps = MAPS.clone().requires_grad_()
    loss = token_compose(maps, torch.zeros(1, 2, 3), BOTH, pixel_weight=0)
    loss.backward()
    assert loss.item() == pytest.approx(1, abs=1e-4)
    assert maps.grad is not None and not maps.grad.any()
    maps.grad = None
    token_compose(maps, torch.zeros(1, 2, 3), BOTH, pixel_weight=1).backward()
    assert (maps.grad > 0).all()


@pytest.mark.parametrize("loss", [balanced_l1, subject_cross_entropy, token_compose])
def test_gradients_pull_attention_to_its_own_mask(loss: LayerLoss) -> None:
    maps = MAPS.clone().requires_grad_()
    loss(maps, MASKS, BOTH).backward()
    assert maps.grad is not None
    assert maps.grad[0, 0, 0, 0] < 0 < maps.grad[0, 0, 0, 1]
    assert maps.grad[0, 0, 1, 1] < 0 < maps.grad[0, 0, 1, 0]
    assert torch.autograd.gradcheck(
        lambda values: loss(values.double(), MASKS.double(), BOTH).double(),
        MAPS.double().requires_grad_(),
        eps=1e-3,
        atol=1e-2,
    )
    # Without attention anywhere, and without a subject, gradients stay finite.
    for values, present in ((torch.zeros_like(MAPS), BOTH), (MAPS, torch.zeros_like(BOTH))):
        maps = values.clone().requires_grad_()
        loss(maps, MASKS, present).backward()
        assert maps.grad is not None and maps.grad.isfinite().all()


def test_settings_choose_the_loss_of_a_layer() -> None:
    chosen = {
        "balanced_l1": balanced_l1(MAPS, MASKS, BOTH),
        "cross_entropy": subject_cross_entropy(MAPS, MASKS, BOTH),
        "token_compose": token_compose(MAPS, MASKS, BOTH, pixel_weight=0.3),
    }
    for name, value in chosen.items():
        config = LossConfig(localization=name, pixel_weight=0.3)  # type: ignore[arg-type]
        assert torch.equal(config.layer_loss(MAPS, MASKS, BOTH), value)
    assert LossConfig(localization=balanced_l1).layer_loss is balanced_l1
    normalized = LossConfig(normalize_localization=True).layer_loss(MAPS, MASKS, BOTH)
    assert torch.equal(normalized, balanced_l1(MAPS, MASKS, BOTH, normalize=True))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"localization_weight": -1}, "localization_weight must be at least 0, not -1"),
        ({"localization_weight": float("nan")}, "localization_weight must be at least 0"),
        ({"num_localized_blocks": -2}, "num_localized_blocks must be at least 0"),
        ({"mask_loss_probability": 1.5}, r"mask_loss_probability must lie in \[0, 1\], not 1.5"),
        ({"localization": "l2"}, r"'l2' is not one of balanced_l1.*localization\.localization"),
        (
            {"localization": "cross_entropy", "normalize_localization": True},
            r"not for cross_entropy.*localization\.normalize_localization",
        ),
        ({"pixel_weight": -0.1}, "pixel_weight must be at least 0, not -0.1"),
        ({"localization_keys": "image"}, "localization_keys"),
        ({"localization_blocks": "mid_block"}, "a list of names, not the name 'mid_block'"),
    ],
)
def test_bad_settings_are_refused(values: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LossConfig(**values)  # type: ignore[arg-type]


def test_dice_is_0_where_the_map_is_the_mask_and_1_where_they_are_apart() -> None:
    masks = torch.tensor([[[1.0, 1.0, 0.0, 0.0], [0.0, 0.0, 1.0, 1.0]]])
    present = torch.tensor([[True, True]])
    maps = 0.3 * masks.transpose(1, 2)[:, None]
    assert dice(maps, masks, present).item() == pytest.approx(0, abs=1e-4)
    assert dice(maps.flip(-1), masks, present).item() == pytest.approx(1, abs=1e-4)
    half = torch.tensor([[[[0.2], [0.0], [0.0], [0.0]]]])
    assert dice(half, masks[:, :1], present[:, :1]).item() == pytest.approx(1 - 2 / 3, abs=1e-4)
    assert dice(maps, masks, torch.tensor([[False, False]])) == 0


def test_disentangling_counts_how_far_maps_are_apart() -> None:
    masks = torch.zeros(1, 2, 4)
    apart = torch.tensor([[[[0.4, 0.0], [0.4, 0.0], [0.0, 0.2], [0.0, 0.2]]]])
    present = torch.tensor([[True, True]])
    assert disentangle(apart, masks, present).item() == pytest.approx(-1, abs=1e-3)
    same = apart[..., :1].expand(-1, -1, -1, 2)
    assert disentangle(same, masks, present).item() == pytest.approx(0, abs=1e-4)
    assert disentangle(apart, masks, torch.tensor([[True, False]])) == 0
    third = torch.cat([apart, torch.rand(1, 1, 4, 1)], dim=-1)
    with_empty = disentangle(third, torch.zeros(1, 3, 4), torch.tensor([[True, True, False]]))
    assert with_empty.item() == pytest.approx(-1, abs=1e-3)
