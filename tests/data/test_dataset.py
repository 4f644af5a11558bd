from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader
from toy_records import CAPTION, LEFT, RIGHT, SIZE, add_record, equal, photo, segment_map

from fastcomposer.batch import SubjectBatch
from fastcomposer.data.dataset import SubjectDataset
from fastcomposer.data.records import Record, RecordError, Segment, record_path, write_ids, write_record
from fastcomposer.data.sample_settings import SampleSettings
from fastcomposer.data.transforms import PUBLISHED, ReferenceAugmentation

Build = Callable[..., SubjectDataset]
SETTINGS: dict[str, Any] = {"resolution": 24, "reference_size": 24, "flip": 0.0, "augmentation": None}


@pytest.fixture
def build(folder: Path, tokenizer: Any) -> Build:
    """Builds datasets of the folder: nothing random unless asked for."""

    def make(split: str = "train", tokenizer: Any = tokenizer, **changes: Any) -> SubjectDataset:
        settings = SampleSettings(**{**SETTINGS, **changes})
        return SubjectDataset(folder, split, tokenizer, settings)

    return make


# --- one sample --------------------------------------------------------------------------------------------


def test_a_sample(build: Build) -> None:
    sample = build(max_subjects=3)[4]
    assert sample.record_ids == ("0000004",)
    assert sample.pixel_values.shape == (1, 3, SIZE, SIZE)
    wanted = torch.from_numpy(photo(4)).permute(2, 0, 1) / 127.5 - 1
    assert (sample.pixel_values[0] - wanted).abs().max() < 0.06
    assert sample.input_ids.tolist() == [[60, 27, 55, 59, 27, 58, 61, 61, 61, 61, 61, 61]]
    assert sample.subject_token_idx.tolist() == [[2, 5, 0]]
    assert sample.subject_present.tolist() == [[True, True, False]]
    masks = torch.zeros(1, 3, SIZE, SIZE)
    masks[0, 0, 4:20, 2:10] = 1
    masks[0, 1, 4:20, 14:22] = 1
    assert torch.equal(sample.subject_masks, masks)
    references = sample.subject_pixel_values
    assert (references.shape, references.dtype) == ((1, 3, 3, 24, 24), torch.float32)
    assert (references[0, 2] == 0).all()
    assert (references[0, :2].amax(dim=(1, 2, 3)) > 0.2).all()
    assert references.max() <= 1


def test_flip_mirrors_the_target_and_leaves_the_references(build: Build) -> None:
    plain, mirrored = build()[0], build(flip=1.0)[0]
    assert torch.equal(mirrored.pixel_values, plain.pixel_values.flip(-1))
    assert torch.equal(mirrored.subject_masks, plain.subject_masks.flip(-1))
    assert torch.equal(mirrored.subject_pixel_values, plain.subject_pixel_values)


def test_subjects_come_in_the_order_of_the_caption(folder: Path, build: Build) -> None:
    add_record(folder, "0000000", replace(LEFT, end=17), replace(RIGHT, end=5))
    masks = build()[0].subject_masks[0]
    assert [float(masks[slot, :, :12].sum()) for slot in range(2)] == [0, 128]


def test_labels_and_min_subjects(folder: Path, build: Build) -> None:
    add_record(folder, "0000001", LEFT, replace(RIGHT, label="dog"))
    assert build()[1].subject_present.tolist() == [[True, False, False, False]]
    assert build(labels=["person", "dog"])[1].subject_present.sum() == 2
    assert build(labels=None)[1].subject_present.sum() == 2
    assert build(labels=["cat"])[1].subject_present.sum() == 0
    assert "0000001" not in build(min_subjects=2).record_ids
    assert len(build(min_subjects=1)) == 8
    with pytest.raises(
        RecordError, match=r"no record of split 'train' has 3 segments, coco_label in \['person'\]"
    ):
        build(min_subjects=3)


# --- subjects left out -------------------------------------------------------------------------------------


def test_of_subjects_that_share_a_word_the_largest_stays(folder: Path, build: Build) -> None:
    small = Segment(3, (11, 0, 13, 24), 6, "person")  # its offset lies after the space
    add_record(folder, "0000000", LEFT, small)
    sample = build()[0]
    assert sample.subject_masks.sum() == 128
    assert sample.subject_token_idx[0].tolist() == [2, 0, 0, 0]


def test_of_too_many_subjects_the_largest_stay(folder: Path, build: Build) -> None:
    others = [Segment(3, (11, 0, 13, 24), 9, "person"), Segment(2, (0, 21, 24, 23), 11, "person")]
    add_record(folder, "0000000", LEFT, RIGHT, *others)
    sample = build(max_subjects=3)[0]
    # 128 and 128, then 48 and 48 pixels, of which the smaller id: a man, a (2), a woman
    assert sample.subject_masks.sum(dim=(2, 3)).tolist() == [[128, 48, 128]]
    assert sample.subject_token_idx.tolist() == [[2, 4, 5]]


def test_subjects_beyond_the_tokens_are_left_out_and_the_next_takes_the_slot(
    folder: Path, build: Build, make_tokenizer: Callable[[int], Any]
) -> None:
    sample = build(tokenizer=make_tokenizer(6))[0]
    assert sample.input_ids.tolist() == [[60, 27, 55, 59, 27, 61]]
    assert sample.subject_present.sum() == 1
    assert sample.subject_masks[0].sum() == 128
    add_record(folder, "0000002", replace(LEFT, bbox=(2, 4, 5, 20)), RIGHT)
    dataset = build(tokenizer=make_tokenizer(6), max_subjects=1)
    assert dataset[2].subject_masks.sum() == 48  # the larger one's word does not fit
    assert build(tokenizer=make_tokenizer(3))[2].subject_present.sum() == 0


def test_subjects_cropped_away_are_left_out(folder: Path, build: Build) -> None:
    left, right = replace(LEFT, bbox=(0, 4, 10, 20)), replace(RIGHT, bbox=(30, 4, 40, 20))
    pixels = segment_map(left, right, width=60)
    write_record(folder, Record("0000000", CAPTION, (left, right)), photo(0, 24, 60), pixels)
    sample = build()[0]  # columns 18 to 42 are the centre
    assert sample.subject_token_idx[0, 0] == 5
    assert sample.subject_masks[0, 0, 4:20, 12:22].sum() == sample.subject_masks.sum() == 160


# --- references --------------------------------------------------------------------------------------------


def colour(sample: SubjectBatch, slot: int = 0) -> int:
    """The colour in the middle of a reference."""
    return round(float(sample.subject_pixel_values[0, slot, 0, 12, 12]) * 255)


@pytest.fixture
def people(folder: Path) -> Path:
    """Ann in records 0, 1 and 2, Bob in 0 and 3, Carl in 4 alone and without a name in 5; one grey each."""
    shown = {0: "ann bob", 1: "ann", 2: "ann", 3: "bob", 4: "carl", 5: ""}
    for number, names in shown.items():
        boxes = (LEFT.bbox, RIGHT.bbox)
        segments = [
            Segment(2 * slot + 1, box, (5, 17)[slot], "person", name or None)
            for slot, (name, box) in enumerate(zip(names.split(" "), boxes, strict=False))
        ]
        grey = np.full((SIZE, SIZE, 3), 40 * (number + 1), dtype=np.uint8)
        record = Record(f"{number:07d}", CAPTION, tuple(segments))
        write_record(folder, record, grey, segment_map(*segments), quality=100)
    write_ids(folder, "train", [f"{number:07d}" for number in shown])
    return folder


def test_references_of_another_image(people: Path, build: Build) -> None:
    dataset = build(reference="other_image")
    assert {colour(dataset[(epoch, 0)], 0) for epoch in range(20)} == {80, 120}
    assert {colour(dataset[(epoch, 0)], 1) for epoch in range(5)} == {160}
    assert {colour(dataset[(epoch, 3)], 0) for epoch in range(5)} == {40}
    assert [colour(dataset[(0, 4)]), colour(dataset[(0, 5)])] == [200, 240]  # no other image of these
    some = build(reference="other_image", train_share=0.3)  # two of the six records
    assert {colour(some[(epoch, 0)], 0) for epoch in range(12)} == {80}
    assert {colour(some[(epoch, 0)], 1) for epoch in range(5)} == {40}  # nobody else shows Bob
    plain = build()[0]
    assert torch.equal(dataset[0].pixel_values, plain.pixel_values)
    assert torch.equal(dataset[0].subject_masks, plain.subject_masks)


def test_a_bad_other_image_is_passed_over(people: Path, build: Build) -> None:
    record_path(people, "0000001", ".jpg").write_bytes(b"")
    dataset = build(reference="other_image", on_bad_record="skip")
    assert {colour(dataset[(epoch, 0)], 0) for epoch in range(12)} == {120}
    record_path(people, "0000002", ".npy").write_bytes(b"")
    assert {colour(dataset[(epoch, 0)], 0) for epoch in range(12)} == {40}
    with pytest.raises(RecordError, match=r"0000001\.jpg: image|0000002\.npy: segment map"):
        build(reference="other_image")[0]


def test_several_references_of_other_images(people: Path, build: Build) -> None:
    dataset = build(reference="other_image", num_references=4, max_subjects=2)
    single = build(reference="other_image", max_subjects=2)
    for epoch in range(6):
        sample, alone = dataset[(epoch, 0)], single[(epoch, 0)]
        extra, present = sample.extra_pixel_values, sample.extra_present
        assert extra is not None and present is not None
        assert extra.shape == (1, 2, 3, 3, 24, 24)
        # Two more records show Ann, one more Bob.
        assert present.tolist() == [[[True, False, False], [False, False, False]]]
        assert not extra[~present].any()
        shown = {colour(sample), round(float(extra[0, 0, 0, 0, 12, 12]) * 255)}
        assert shown == {80, 120}
        # What is random in the first reference does not depend on how many there are for the first subject.
        assert torch.equal(sample.subject_pixel_values[0, 0], alone.subject_pixel_values[0, 0])
    assert equal(dataset[(0, 0)], dataset[(0, 0)])
    assert dataset[(0, 4)].extra_present.sum() == 0  # type: ignore[union-attr]


def test_several_references_of_the_same_image_are_augmentations(people: Path, build: Build) -> None:
    dataset = build(num_references=3, augmentation=ReferenceAugmentation(elastic=0, jitter=1))
    sample = dataset[0]
    assert sample.extra_pixel_values is not None and sample.extra_present is not None
    assert sample.extra_present[0, :2].all() and not sample.extra_present[0, 2:].any()
    images = [sample.subject_pixel_values[0, 0], *sample.extra_pixel_values[0, 0]]
    assert not any(torch.equal(a, b) for a, b in pairwise(images))
    plain = build(augmentation=ReferenceAugmentation(elastic=0, jitter=1))[0]
    assert torch.equal(sample.subject_pixel_values, plain.subject_pixel_values)
    still = build(num_references=3)[0]  # without augmentation there is nothing further to see
    assert still.extra_present is not None and not still.extra_present.any()
    assert build()[0].extra_pixel_values is None


def test_the_background_of_references(folder: Path, build: Build) -> None:
    wide = replace(LEFT, bbox=(0, 4, 12, 20))
    grey = np.full((SIZE, SIZE, 3), 120, dtype=np.uint8)
    write_record(folder, Record("0000000", CAPTION, (wide,)), grey, segment_map(LEFT), quality=100)
    # 12 × 16 pixels, padded to 16 × 16 and resized to 24 × 24: columns 3 to 21, the segment in 6 to 18.
    around = {}
    for background in ("kept", "black", "noise"):
        image = build(background=background)[0].subject_pixel_values[0, 0]
        assert (image[:, 2:22, 8:16] * 255 - 120).abs().max() < 2
        around[background] = image[:, 2:22, 4]
    assert (around["kept"] * 255 - 120).abs().max() < 2
    assert around["black"].max() == 0
    assert around["noise"].std() > 0.1


def test_other_image_needs_identities(folder: Path, build: Build) -> None:
    for number in range(8):
        add_record(folder, f"{number:07d}", replace(LEFT, identity=None))
    with pytest.raises(ValueError, match=r"reference=other_image needs the field segments\[\]\.identity"):
        build(reference="other_image")


# --- bad records -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_record_found_bad_when_read_is_replaced_by_the_next(
    folder: Path, build: Build, num_workers: int, caplog: pytest.LogCaptureFixture
) -> None:
    record_path(folder, "0000002", ".jpg").write_bytes(b"\xff\xd8")
    np.save(record_path(folder, "0000003", ".npy"), np.zeros((SIZE, SIZE)))
    samples: Any = iter(DataLoader(build(), batch_size=None, sampler=[2], num_workers=num_workers))
    with pytest.raises(RecordError, match=r"0000002\.jpg: image: unreadable"):
        next(samples)
    if num_workers:
        samples._shutdown_workers()  # left to the garbage collector, it takes five seconds
    dataset = build(on_bad_record="skip")
    loader = DataLoader(dataset, batch_size=None, num_workers=num_workers)
    with caplog.at_level(logging.WARNING):
        names = [sample.record_ids[0][-1] for sample in loader for _ in range(1)]
    assert "".join(names) == "01444567"
    assert "0000002.jpg: image: unreadable" in str(dataset.target(2))
    assert "0000003.npy: segment map: must be 2-D" in str(dataset.target(3))
    if num_workers == 0:
        assert sum("bad record skipped" in message for message in caplog.messages) == 2


def test_no_readable_record_is_an_error(folder: Path, build: Build) -> None:
    for number in (8, 9):
        record_path(folder, f"{number:07d}", ".jpg").unlink()
    with pytest.raises(RecordError, match="no record of split 'test' is readable"):
        build("test", on_bad_record="skip")[0]


# --- determinism -------------------------------------------------------------------------------------------


def load(dataset: SubjectDataset, epoch: int, num_workers: int, order: list[int]) -> dict[int, SubjectBatch]:
    pairs = [(epoch, index) for index in order]
    loader = DataLoader(dataset, batch_size=None, sampler=pairs, num_workers=num_workers)  # type: ignore[arg-type]
    return dict(zip(order, loader, strict=True))


def test_samples_depend_on_seed_epoch_and_index_alone(build: Build) -> None:
    settings: dict[str, Any] = {"flip": 0.5, "augmentation": PUBLISHED, "reference": "other_image"}
    forward = load(build(**settings), 3, 0, list(range(8)))
    torch.rand(5)
    backward = load(build(**settings), 3, 2, list(range(7, -1, -1)))
    assert all(equal(forward[index], backward[index]) for index in range(8))
    later = load(build(**settings), 4, 0, list(range(8)))
    assert not any(
        torch.equal(forward[i].subject_pixel_values, later[i].subject_pixel_values) for i in range(8)
    )
    other = build(**settings, seed=7)[(3, 0)]
    assert not torch.equal(other.subject_pixel_values, forward[0].subject_pixel_values)
