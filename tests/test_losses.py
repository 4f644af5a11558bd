from __future__ import annotations

import pytest
import torch

from fastcomposer.losses import (
    LossConfig,
    denoising_loss,
    layer_localization,
    localization_loss,
    map_size,
    subject_union,
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


def test_map_size_refuses_what_does_not_fit() -> None:
    with pytest.raises(ValueError, match=r"10 positions does not fit a \(8, 8\) latent"):
        map_size(10, (8, 8))


def test_localization_of_one_layer_by_hand() -> None:
    # One sample, one head, four positions, two subjects of which the second is absent.
    maps = torch.tensor([0.1, 0.2, 0.3, 0.4]).reshape(1, 1, 4, 1).repeat(1, 1, 1, 2)
    masks = torch.tensor([[[0.0, 0.0, 1.0, 1.0], [1.0, 1.0, 1.0, 1.0]]])
    present = torch.tensor([[True, False]])
    # 0.3 / 2 outside minus 0.7 / 2 inside.
    assert layer_localization(maps, masks, present).item() == pytest.approx(-0.2, abs=1e-5)
    assert layer_localization(maps, masks, present, normalize=True).item() == pytest.approx(-0.5, abs=1e-4)
    assert layer_localization(maps, masks, torch.tensor([[True, True]])).item() == pytest.approx(
        (-0.2 - 0.25) / 2, abs=1e-4
    )


def test_samples_without_subjects_count_as_zero() -> None:
    maps = torch.full((2, 3, 4, 1), 0.5)
    masks = torch.tensor([0.0, 0.0, 0.0, 1.0]).expand(2, 1, 4)
    both = layer_localization(
        maps * torch.tensor([0, 0, 0, 1.0])[:, None], masks, torch.tensor([[True], [True]])
    )
    one = layer_localization(
        maps * torch.tensor([0, 0, 0, 1.0])[:, None], masks, torch.tensor([[True], [False]])
    )
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


def test_no_layers_give_zero() -> None:
    total, layers = localization_loss({}, torch.zeros(1, 1, 4, 4), torch.tensor([[True]]), (4, 4))
    assert total.item() == 0 and layers == {}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"localization_weight": -1}, "localization_weight must be at least 0, not -1"),
        ({"localization_weight": float("nan")}, "localization_weight must be at least 0"),
        ({"num_localized_blocks": -2}, "num_localized_blocks must be at least 0"),
        ({"mask_loss_probability": 1.5}, r"mask_loss_probability must lie in \[0, 1\], not 1.5"),
        ({"localization_blocks": "mid_block"}, "a list of names, not the name 'mid_block'"),
    ],
)
def test_bad_settings_are_refused(values: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LossConfig(**values)  # type: ignore[arg-type]


def test_lists_of_blocks_become_tuples() -> None:
    assert LossConfig(localization_blocks=["mid_block"]).localization_blocks == ("mid_block",)  # type: ignore[arg-type]
