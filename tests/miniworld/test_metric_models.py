"""Training of the metric models: losses, degradations, classes, and the commands."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Generator

from fastcomposer.cli import train
from fastcomposer.data.index import RecordIndex
from fastcomposer.miniworld.degradation import (
    jitter_boxes,
    jitter_colors,
    occlusion_masks,
    soften,
)
from fastcomposer.miniworld.detector import CenterMaps, HeadDetector
from fastcomposer.miniworld.embedder import IdentityEmbedder
from fastcomposer.miniworld.scene_dataset import SceneBank
from fastcomposer.miniworld.scenes import AvatarScenes, held_out_identities
from fastcomposer.miniworld.train_detector import box_loss, focal_loss
from fastcomposer.miniworld.train_embedder import EmbedderModule, list_looks, margin_loss, visible_features


def seeded() -> Generator:
    return Generator().manual_seed(3)


# --- losses ------------------------------------------------------------------------------------------------


def test_focal_loss_by_hand() -> None:
    target = torch.tensor([[[1.0, 0.5, 0.0]]])
    logits = torch.zeros(1, 1, 3)  # a heat of one half everywhere
    expected = 0.25 * (1 + 0.5**4 + 1) * torch.tensor(2.0).log()  # three cells, one centre
    torch.testing.assert_close(focal_loss(logits, target), expected)
    assert focal_loss(torch.tensor([[[9.0, 0.0, -9.0]]]), target) < 0.02
    assert focal_loss(torch.full((1, 1, 3), -9.0), torch.zeros(1, 1, 3)) < 1e-6  # no head at all


def test_box_loss_looks_at_centres_only() -> None:
    heat = torch.zeros(1, 2, 2)
    heat[0, 0, 1] = 1
    zeros = torch.zeros(1, 2, 2, 2)
    wrong = torch.full((1, 2, 2, 2), 5.0)
    wrong[0, :, 0, 1] = torch.tensor([0.5, -0.25])
    target = CenterMaps(heat, zeros, zeros)
    torch.testing.assert_close(box_loss(CenterMaps(heat, wrong, zeros), target), torch.tensor(0.75))


def test_margin_loss_by_hand() -> None:
    embeddings, proxies = torch.tensor([[1.0, 0.0]]), torch.tensor([[3.0, 0.0], [0.0, 0.1]])
    loss = margin_loss(embeddings, proxies, torch.tensor([0]), scale=2.0, margin=0.25)
    torch.testing.assert_close(loss, torch.log1p(torch.tensor(-1.5).exp()))  # 2 · (1 − 0.25) against 0


# --- degradations ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("share", [0.1, 0.3, 0.4, 1.0])
def test_masks_hide_their_share(share: float) -> None:
    boxes = torch.tensor([[14.0, 6, 52, 50], [0, 26, 21, 51], [43, 27, 64, 52]]).repeat(40, 1)
    hidden = occlusion_masks(boxes, torch.full((120,), share), 64, 64, seeded())
    size = boxes[:, 2:] - boxes[:, :2]
    corners = zip(hidden, boxes.int().tolist(), strict=True)
    inside = torch.stack([mask[y1:y2, x1:x2].sum() for mask, (x1, y1, x2, y2) in corners])
    assert torch.equal(inside, hidden.sum((1, 2)))  # nothing outside the head
    area = inside / size.prod(1)
    assert (area >= share - 1e-6).all()
    assert (area <= share + 1 / size[:, 1] + 1e-6).all()
    if share < 1:
        assert len({tuple(mask.nonzero()[0].tolist()) for mask in hidden[::3]}) > 10  # all over the head


def test_degraded_images_are_images_again_from_the_same_seed() -> None:
    images = torch.rand(12, 3, 16, 16)
    for degrade in (soften, lambda x, g: jitter_colors(x, 0.3, g, grey=0.5)):
        result = degrade(images, seeded())
        assert result.shape == images.shape
        assert result.min() >= 0
        assert result.max() <= 1
        assert torch.equal(result, degrade(images, seeded()))
    roughness = [x.diff(dim=-1).abs().mean() for x in (images, soften(images, seeded(), max_noise=0))]
    assert roughness[1] < 0.9 * roughness[0]
    grey = jitter_colors(images, 0.0, seeded(), grey=1.0)
    torch.testing.assert_close(grey, images.mean(1, keepdim=True).expand_as(images))
    torch.testing.assert_close(jitter_colors(images, 0.0, seeded()), images)


def test_boxes_move_by_their_own_size_at_most() -> None:
    boxes = torch.tensor([[10.0, 20, 30, 60]]).repeat(50, 1)
    moved = (jitter_boxes(boxes, 0.1, seeded()) - boxes).abs()
    assert (moved <= torch.tensor([2.0, 4, 2, 4])).all()
    assert moved[:, 1].max() > 3


# --- classes -----------------------------------------------------------------------------------------------


def test_who_looks_the_same_is_one_class() -> None:
    person = visible_features("man-pale-quiff-red-none-small-flat_natural")
    assert person == ("skin pale", "hair man quiff", "color red", "beard none")
    assert person == visible_features("man-pale-quiff-red-none-wide-default_natural")
    assert person != visible_features("man-pale-quiff-black-none-small-flat_natural")
    bald = [visible_features(f"man-pale-none-{color}-none-small-flat_natural") for color in ("red", "black")]
    assert bald[0] == bald[1]
    bearded = [visible_features(f"man-pale-none-{color}-beard_light-small-x") for color in ("red", "black")]
    assert bearded[0] != bearded[1]
    assert visible_features("somebody") == ("somebody",)


def test_labels_name_the_people_of_each_scene(world: Path) -> None:
    labels, looks = list_looks(SceneBank(world, "train"))
    assert labels.shape == (24, 3)
    assert looks.shape[1] == 4
    index = RecordIndex(world, "train")
    seen: dict[tuple[str, ...], set[int]] = {}
    for row, name in enumerate(index.record_ids):
        people = index.segments[name]
        assert (labels[row, len(people) :] == -1).all()
        for slot, (_, _, identity) in enumerate(people):
            seen.setdefault(visible_features(str(identity)), set()).add(int(labels[row, slot]))
    assert all(len(numbers) == 1 for numbers in seen.values())
    assert len(seen) == len(looks)


def test_nobody_held_out_is_a_class() -> None:
    known = {visible_features(identity.key) for identity in AvatarScenes(num_identities=500).train_identities}
    assert not known & {visible_features(identity.key) for identity in held_out_identities()}


def test_shares_that_cannot_be() -> None:
    with pytest.raises(ValueError, match=r"method\.max_hidden=1\.5"):
        EmbedderModule(IdentityEmbedder(), torch.optim.AdamW, max_hidden=1.5)  # type: ignore[arg-type]


# --- commands ----------------------------------------------------------------------------------------------

_DETECTOR = ("method.detector.channels=[8,8,8,8]", "method.detector.head_channels=8")
_EMBEDDER = ("method.embedder.channels=[8,8,16]", "method.embedder.crop_size=16")


@pytest.mark.parametrize(
    ("cls", "small"), [(HeadDetector, _DETECTOR), (IdentityEmbedder, _EMBEDDER)], ids=["detector", "embedder"]
)
def test_the_command_trains_resumes_and_exports(
    cls: Any, small: tuple[str, ...], world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    part = small[0].split(".")[1]
    common = [
        "train",
        "experiment=mini_base",
        f"method={part}",
        *small,
        "model.base=base",
        f"data.root={world}",
        "data.module.batch_size=8",
        "trainer.max_time=null",
        "trainer.val_check_interval=1",
    ]
    monkeypatch.setattr(sys, "argv", [*common, "trainer.max_steps=2"])
    train.main()
    monkeypatch.setattr(sys, "argv", [*common, "trainer.max_steps=3", "resume=auto"])
    train.main()
    saved = torch.load(f"outputs/mini_base_{part}/checkpoints/last.ckpt", weights_only=True)
    assert saved["global_step"] == 3

    exported = cls.from_pretrained("base", subfolder=part)
    weights = saved["ema"]["weights"].items()
    averaged = {name.removeprefix(f"{part}."): value.half().float() for name, value in weights}
    averaged.pop("parts", None)  # of the training alone
    state = exported.state_dict()
    assert averaged.keys() == state.keys()
    assert all(torch.equal(state[name], value) for name, value in averaged.items())
    size = Path(f"base/{part}/diffusion_pytorch_model.safetensors").stat().st_size
    assert size < 2.2 * sum(value.numel() for value in state.values()) + 20_000


def test_scenes_resume_after_the_batches_of_the_steps_that_are_done(world: Path) -> None:
    from fastcomposer.miniworld.scene_dataset import SceneDataModule

    data, straight = (SceneDataModule(world, batch_size=4) for _ in range(2))
    done = {"global_step": 3, "accumulate_grad_batches": 2, "global_rank": 0, "world_size": 1}
    data.trainer = SimpleNamespace(**done)  # type: ignore[assignment]
    batches = iter(straight.train_dataloader())
    expected = [next(batches).index.tolist() for _ in range(7)][6]
    assert next(iter(data.train_dataloader())).index.tolist() == expected


def test_two_processes_train_on_the_halves_of_what_one_draws(world: Path) -> None:
    from fastcomposer.miniworld.scene_dataset import SceneDataModule

    def first_batch(batch_size: int, rank: int, world_size: int) -> list[int]:
        data = SceneDataModule(world, batch_size=batch_size)
        at = {"global_step": 0, "accumulate_grad_batches": 1, "global_rank": rank, "world_size": world_size}
        data.trainer = SimpleNamespace(**at)  # type: ignore[assignment]
        return next(iter(data.train_dataloader())).index.tolist()

    both = first_batch(4, 0, 1)
    assert [first_batch(2, rank, 2) for rank in (0, 1)] == [both[::2], both[1::2]]
