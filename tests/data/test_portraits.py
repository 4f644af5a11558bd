"""Images of a person: how they are read, sampled and described in a configuration."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from fastcomposer.data.portraits import (
    PortraitDataModule,
    Portraits,
    PortraitSettings,
    ReferenceSet,
    read_square,
    reference_sets,
)
from fastcomposer.miniworld.people import rendered_people
from fastcomposer.miniworld.scenes import AvatarScenes

RED, BLUE = (255, 0, 0), (0, 0, 255)


def save(file: Path, size: tuple[int, int], left: tuple[int, int, int], opacity: int = 255) -> Path:
    """An image whose left half has one colour and whose right half is blue, or transparent."""
    pixels = np.zeros((size[1], size[0], 4), np.uint8)
    pixels[:, : size[0] // 2] = (*left, 255)
    pixels[:, size[0] // 2 :] = (*BLUE, opacity)
    Image.fromarray(pixels).save(file)
    return file


@pytest.fixture
def adam(tmp_path: Path) -> ReferenceSet:
    return ReferenceSet("adam", "man", (save(tmp_path / "adam.png", (32, 32), RED, opacity=0),))


def sampled(*people: ReferenceSet, step: int = 0, **settings: Any) -> Any:
    chosen = PortraitSettings(**{"resolution": 16, "flip": 0.0, **settings})
    return Portraits(people, chosen, seed=3).sample(step)


def test_transparent_pixels_become_a_plain_colour_that_changes(adam: ReferenceSet) -> None:
    batch = sampled(adam, batch_size=2)
    assert batch.pixel_values.shape == (2, 3, 16, 16)
    red = torch.tensor([1.0, -1.0, -1.0])[:, None, None]
    assert torch.allclose(batch.pixel_values[:, :, :, :7], red.expand(2, 3, 16, 7), atol=1e-5)
    behind = batch.pixel_values[..., 9:]
    assert torch.allclose(behind, behind[..., :1, :1].expand_as(behind), atol=1e-5)
    assert not torch.allclose(behind[0], behind[1], atol=0.05)
    assert torch.equal(sampled(adam, batch_size=2).pixel_values, batch.pixel_values)


def test_flip_mirrors(adam: ReferenceSet) -> None:
    plain, mirrored = sampled(adam).pixel_values, sampled(adam, flip=1.0).pixel_values
    assert torch.equal(mirrored, plain.flip(-1))


def test_people_take_turns(adam: ReferenceSet, tmp_path: Path) -> None:
    eve = ReferenceSet("eve", "woman", (save(tmp_path / "eve.png", (16, 16), (0, 255, 0)),))
    assert [sampled(adam, eve, step=step).person for step in range(4)] == [0, 1, 0, 1]
    assert sampled(adam, eve, step=1).pixel_values[0, :, 0, 0].tolist() == [-1, 1, -1]


@pytest.mark.parametrize(
    ("scale", "view", "area"), [(0.5, "far", 64), (1.0, "whole", 256), (1.25, "close", 256)]
)
def test_enlargement_is_masked_and_named(adam: ReferenceSet, scale: float, view: str, area: int) -> None:
    batch = sampled(adam, scales=(scale, scale))
    assert batch.views == (view,)
    assert int(batch.masks.sum()) == area
    where = batch.masks[0, 0].bool()
    outside = batch.pixel_values[0][:, ~where]
    assert torch.allclose(outside, outside[:, :1].expand_as(outside)) if area < 256 else outside.numel() == 0


def test_transparent_images_are_padded_and_others_cut(tmp_path: Path) -> None:
    tall = read_square(save(tmp_path / "tall.png", (16, 32), RED, opacity=0), 32)
    assert torch.nonzero(tall[3].amax(0) > 0.5).flatten().tolist() == list(range(8, 16))
    wide = read_square(save(tmp_path / "wide.png", (64, 16), RED), 16)
    assert wide[3].min() == 1
    assert (wide[0] > 0.5).sum() == (wide[2] > 0.5).sum() == 128


def test_the_loader_resumes_after_the_trainer_s_steps(adam: ReferenceSet) -> None:
    class Trainer:
        global_step, accumulate_grad_batches, global_rank = 3, 2, 0

    data = PortraitDataModule((adam,), PortraitSettings(16), seed=3)
    data.trainer = Trainer()  # type: ignore[assignment]
    first = next(iter(data.train_dataloader()))
    expected = Portraits((adam,), PortraitSettings(16), 3).sample(6)
    assert torch.equal(first.pixel_values, expected.pixel_values)


def test_images_of_a_folder_are_sorted_by_name(tmp_path: Path) -> None:
    for name in ("b.png", "a.JPG", "notes.txt"):
        (tmp_path / name).touch()
    (found,) = reference_sets({"adam": {"word": "man", "images": str(tmp_path)}})
    assert [file.name for file in found.images] == ["a.JPG", "b.png"]


def test_missing_training_people_are_named(tmp_path: Path) -> None:
    world = AvatarScenes(num_identities=8)
    with pytest.raises(ValueError, match=r"benchmark\.people\.numbers=\[8\].*8 people"):
        rendered_people(world, [8], tmp_path)


@pytest.mark.parametrize(
    ("people", "message"),
    [
        (None, r"data\.people: nobody"),
        ({"adam": {"word": "man"}}, r"data\.people\.adam: word and images"),
        ({"adam": {"word": None, "images": ["x.png"]}}, r"data\.people\.adam\.word=None"),
        ({"a b": {"word": "man", "images": ["x.png"]}}, r"'a b' is no name"),
        ({"adam": {"word": "man", "images": []}}, r"data\.people\.adam\.images: no image"),
        (
            {"adam": {"word": "man", "images": ["x.png"]}},
            r"data\.people\.adam\.images: no such file: x\.png",
        ),
        ({"adam": {"word": "man", "images": "nowhere"}}, r"images=nowhere: there is no such folder"),
    ],
)
def test_bad_people_are_named(people: Any, message: str) -> None:
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        reference_sets(people)


@pytest.mark.parametrize(
    "settings", [{"resolution": 12}, {"batch_size": 0}, {"flip": 2}, {"scales": [1.4, 0.4]}]
)
def test_bad_settings_are_named(settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=rf"method\.images\s.*{next(iter(settings))}"):
        PortraitSettings(**{"resolution": 16, **settings})


def test_transparent_images_are_refused(tmp_path: Path) -> None:
    Image.new("RGBA", (8, 8)).save(tmp_path / "y.png")
    with pytest.raises(ValueError, match=r"y\.png is transparent everywhere"):
        read_square(tmp_path / "y.png", 16)


def test_the_method_must_learn_from_images(adam: ReferenceSet) -> None:
    with pytest.raises(ValueError, match="method=textual_inversion"):
        PortraitDataModule((adam,), None)
    with pytest.raises(ValueError, match="each person once"):
        PortraitDataModule((adam, adam), PortraitSettings(16))
