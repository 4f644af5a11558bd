"""The mini world: seeded scenes, exact masks, and captions without features of identity."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fastcomposer.data.records import read_ids, read_record
from fastcomposer.miniworld.avatars import BEARDS, SKINS, Appearance, render_avatar
from fastcomposer.miniworld.render import (
    other_looks,
    prepare_avatars,
    record_name,
    write_references,
)
from fastcomposer.miniworld.scenery import draw_background
from fastcomposer.miniworld.scenes import AvatarScenes, held_out_identities, is_held_out, reference_image


@pytest.fixture(scope="module")
def world() -> AvatarScenes:
    return AvatarScenes(num_identities=60, seed=3)


def digest(root: Path) -> dict[str, str]:
    files = sorted(p for p in root.rglob("*") if p.is_file())
    return {str(p.relative_to(root)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def test_a_scene_depends_on_seed_split_and_index_alone(world: AvatarScenes) -> None:
    again = AvatarScenes(num_identities=60, seed=3)
    again.scene("test", 0)
    for index in (5, 2):
        first, second = world.scene("train", index), again.scene("train", index)
        assert np.array_equal(first.image, second.image)
        assert (first.caption, first.people) == (second.caption, second.people)
    other = AvatarScenes(num_identities=60, seed=4).scene("train", 5)
    assert not np.array_equal(world.scene("train", 5).image, other.image)


def test_masks_boxes_and_ends_fit_the_image(world: AvatarScenes) -> None:
    counts = set()
    for index in range(40):
        scene = world.scene("train", index)
        counts.add(len(scene.people))
        ids = set(np.unique(scene.segment_map)) - {0}
        assert ids == set(range(1, len(scene.people) + 1))
        for number, person in enumerate(scene.people):
            x1, y1, x2, y2 = person.bbox
            mask = scene.segment_map == number + 1
            outside = mask.copy()
            outside[y1:y2, x1:x2] = False
            assert not outside.any()
            assert mask[y1:y2, x1:x2].any(axis=0).all() or len(scene.people) > 1
            assert scene.caption[: person.end].endswith(person.identity.word)
    assert counts == {1, 2, 3}


def test_the_mask_is_where_the_person_changed_the_image() -> None:
    world = AvatarScenes(num_identities=3, subject_odds=(1, 0, 0), style_odds=0, context_odds=0)
    person = world.train_identities[0]
    place = "in outer space"  # dark, and so unlike anybody
    scene = world.compose([person], [Appearance(clothes_color="RED")], place, "", np.random.default_rng(0))
    wall = np.asarray(draw_background(place, 64, np.random.default_rng(0))).astype(int)
    changed = np.abs(scene.image.astype(int) - wall).max(axis=2) > 24
    mask = scene.segment_map == 1
    # Soft edges lie on either side of the border; nothing else may differ.
    assert (changed & ~mask).sum() <= 0.03 * mask.sum()
    assert (changed & mask).sum() >= 0.9 * mask.sum()


def test_captions_name_no_feature_of_identity(world: AvatarScenes) -> None:
    secret = {*SKINS.values(), *filter(None, BEARDS.values()), "hair", "beard", "moustache", "skin"}
    for index in range(150):
        scene = world.scene("train", index)
        assert not [word for word in secret if re.search(rf"\b{word}\b", scene.caption)]
        assert all(person.identity.describe() in scene.rich_caption for person in scene.people)


def test_held_out_people_never_train() -> None:
    people = held_out_identities()
    assert len(people) == 15 == len(set(people))
    assert sum(person.word == "man" for person in people) == 8
    looks = {(p.word, p.skin, p.hair, p.hair_color, p.beard) for p in people}
    train = AvatarScenes(num_identities=3000, seed=11).train_identities
    assert not looks & {(p.word, p.skin, p.hair, p.hair_color, p.beard) for p in train}


def test_some_clothes_are_kept_from_training(world: AvatarScenes) -> None:
    worn = [p.appearance for i in range(120) for p in world.scene("train", i).people]
    assert not any(is_held_out(look) for look in worn)
    assert any(is_held_out(p.appearance) for i in range(120) for p in world.scene("test", i).people)


def test_preparing_twice_or_in_parts_gives_the_same_bytes(tmp_path: Path, world: AvatarScenes) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert prepare_avatars(whole, world, 6, 3, num_workers=0) == 9
    prepare_avatars(parts, world, 2, 1, num_workers=0)
    victim = parts / record_name("train", 1)[:5] / f"{record_name('train', 1)}.json"
    victim.unlink()  # as an interruption before the record was complete leaves it
    assert prepare_avatars(parts, world, 6, 3, num_workers=2) == 7
    assert digest(whole) == digest(parts)
    assert prepare_avatars(parts, world, 6, 3, num_workers=0) == 0


def test_what_is_written_reads_back(tmp_path: Path, world: AvatarScenes) -> None:
    prepare_avatars(tmp_path, world, 3, 2, num_workers=0)
    assert len(read_ids(tmp_path, "train")) == 3
    assert len(read_ids(tmp_path, "all")) == 5
    scene = world.scene("train", 0)
    loaded = read_record(tmp_path, record_name("train", 0))
    assert np.array_equal(loaded.segment_map, scene.segment_map)
    assert np.abs(loaded.image.astype(int) - scene.image).mean() < 4  # JPEG
    assert [s.identity for s in loaded.record.segments] == [p.identity.key for p in scene.people]
    stored = json.loads((tmp_path / "00000" / "00000000.json").read_text())
    assert {"id", "bbox", "end", "coco_label", "identity"} == set(stored["segments"][0])
    portraits = sorted((tmp_path / "references").glob("*.png"))
    assert len(portraits) == 15
    assert Image.open(portraits[0]).mode == "RGBA"


def test_references_are_neutral_and_the_other_images_of_the_same_person(tmp_path: Path) -> None:
    paths = write_references(tmp_path, 48)
    assert [path.name for path in paths[:2]] == ["00_man.png", "01_woman.png"]
    for number, (path, identity) in enumerate(zip(paths, held_out_identities(), strict=True)):
        reference = np.asarray(Image.open(path))
        assert np.array_equal(reference, reference_image(identity, 48, seed=number))
        names = sorted(file.name for file in path.with_suffix("").iterdir())
        assert names == [f"{k}.png" for k in range(1, 8)]
        for k, look in enumerate(other_looks(number), start=1):
            image = np.asarray(Image.open(path.with_suffix("") / f"{k}.png"))
            assert np.array_equal(image, render_avatar(identity, look, 48)[:48])
            assert np.abs(image.astype(int) - reference).max() > 60


def test_two_worlds_do_not_mix(tmp_path: Path, world: AvatarScenes) -> None:
    prepare_avatars(tmp_path, world, 1, 1, num_workers=0)
    written = (tmp_path / "world.txt").stat().st_ino
    prepare_avatars(tmp_path, world, 1, 1, num_workers=0)
    assert (tmp_path / "world.txt").stat().st_ino == written  # a call that is killed leaves what it says
    with pytest.raises(ValueError, match="holds another world"):
        prepare_avatars(tmp_path, AvatarScenes(num_identities=60, seed=4), 1, 1, num_workers=0)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"size": 60}, "size=60"),
        ({"subject_odds": (1, 1, 0)}, "subject_odds"),
        ({"num_identities": 2}, "at least 3"),
    ],
)
def test_bad_settings_are_named(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        AvatarScenes(**settings)  # type: ignore[arg-type]
