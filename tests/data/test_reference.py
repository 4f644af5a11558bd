from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from fastcomposer.data.reference import prepare_reference, reference_rows
from fastcomposer.data.transforms import ReferenceTransform
from fastcomposer.prompt import PromptError


def photo(height: int = 12, width: int = 12) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def test_every_kind_of_image_gives_the_same(tmp_path: Path) -> None:
    pixels = photo(20, 14)
    image = Image.fromarray(pixels)
    image.save(tmp_path / "image.png")
    tensor = torch.from_numpy(pixels).movedim(-1, 0)
    expected = prepare_reference(image, 16)
    assert expected.shape == (3, 16, 16) and expected.dtype == torch.float32
    for same in (tmp_path / "image.png", str(tmp_path / "image.png"), pixels, tensor):
        assert torch.equal(prepare_reference(same, 16), expected)
    for close in (pixels / 255, tensor.double() / 255):  # not rounded in between
        torch.testing.assert_close(prepare_reference(close, 16), expected, rtol=0, atol=2 / 255)


def test_it_is_the_preprocessing_of_training() -> None:
    pixels = photo(21, 14)
    expected = ReferenceTransform(16, None)(torch.from_numpy(pixels).movedim(-1, 0), seed=0)
    assert torch.equal(prepare_reference(pixels, 16), expected)


def test_transparent_pixels_become_the_same_noise_every_time() -> None:
    pixels = np.dstack([photo(), np.full((12, 12), 255, np.uint8)])
    pixels[1:, :5, 3] = 0  # a strip at the top stays, so that nothing is cropped
    image = Image.fromarray(pixels, "RGBA")
    prepared = prepare_reference(image, 12)
    opaque = torch.from_numpy(pixels[..., :3]).movedim(-1, 0) / 255
    torch.testing.assert_close(prepared[:, :, 5:], opaque[:, :, 5:])
    noise = prepared[:, 1:, :5]
    assert not torch.allclose(noise, opaque[:, 1:, :5], atol=0.1)
    assert 0.4 < noise.mean() < 0.6 and noise.std() > 0.2
    torch.manual_seed(5)
    assert torch.equal(prepare_reference(image, 12), prepared)
    torch.testing.assert_close(prepare_reference(pixels / 255, 12), prepared, rtol=0, atol=1 / 255)


def test_images_are_cropped_to_what_is_opaque() -> None:
    pixels = np.dstack([photo(), np.zeros((12, 12), np.uint8)])
    pixels[2:10, 3:11, 3] = 255
    cropped = prepare_reference(pixels[2:10, 3:11, :3], 8)
    assert torch.equal(prepare_reference(pixels, 8), cropped)
    pixels[..., 3] = 0
    with pytest.raises(ValueError, match="transparent everywhere"):
        prepare_reference(pixels, 8)


def test_exif_orientation_is_honoured(tmp_path: Path) -> None:
    upright = Image.fromarray(photo(16, 10))
    exif = Image.Exif()
    exif[0x0112] = 6  # stored turned by 90°
    upright.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "turned.png", exif=exif)
    assert torch.equal(prepare_reference(tmp_path / "turned.png", 16), prepare_reference(upright, 16))


def test_grey_arrays_become_rgb() -> None:
    grey = photo()[..., 0]
    for image in (grey, grey[..., None], torch.from_numpy(grey)[None]):
        prepared = prepare_reference(image, 12)
        assert torch.equal(prepared[0], prepared[2])


@pytest.mark.parametrize(
    ("image", "error", "message"),
    [
        ("/no/such/image.png", FileNotFoundError, "reference image /no/such/image.png does not exist"),
        (3, TypeError, "not a int"),
        (np.zeros((4, 4, 5), np.uint8), ValueError, r"shape \(4, 4, 5\) is no image"),
        (torch.zeros(2, 4, 4), ValueError, r"shape \(2, 4, 4\) is no image"),
        (torch.full((3, 4, 4), 255.0), ValueError, r"must lie in \[0, 1\]"),
        (torch.full((3, 4, 4), float("nan")), ValueError, r"must lie in \[0, 1\]"),
    ],
)
def test_what_is_no_image_is_refused(image: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        prepare_reference(image, 8)


def test_references_are_sorted_by_prompt_and_subject() -> None:
    one, two = Image.new("RGB", (4, 4)), Image.new("RGB", (5, 5))
    assert reference_rows("p", one) == [[[one]]]
    assert reference_rows("p", "a.png") == [[["a.png"]]]
    assert reference_rows("p", [one, two]) == [[[one], [two]]]
    assert reference_rows("p", []) == [[]]
    assert reference_rows(["p"], [[one, two]]) == [[[one], [two]]]
    assert reference_rows(["p", "q", "r"], [[one, two], None, one]) == [[[one], [two]], [], [[one]]]
    stack = torch.zeros(2, 3, 4, 4)
    assert [len(row) for row in reference_rows("p", stack)] == [2]


def test_a_list_inside_a_prompts_list_is_one_subject() -> None:
    assert reference_rows("p", [["a1", "a2"], ["b"]]) == [[["a1", "a2"], ["b"]]]
    assert reference_rows("p", [["a1", "a2"]]) == [[["a1", "a2"]]]
    assert reference_rows("p", ["a", ("b1", "b2")]) == [[["a"], ["b1", "b2"]]]
    assert reference_rows(["p", "q"], [[["a1", "a2"], "b"], ["c"]]) == [[["a1", "a2"], ["b"]], [["c"]]]
    stack = torch.zeros(2, 3, 4, 4)
    assert [[len(s) for s in row] for row in reference_rows("p", [stack, stack[0]])] == [[2, 1]]
    assert [[len(s) for s in row] for row in reference_rows("p", torch.zeros(2, 3, 3, 4, 4))] == [[3, 3]]


@pytest.mark.parametrize(
    ("prompt", "references", "message"),
    [
        ("p", [[["a", "b"]]], r"references\[0\] holds lists of lists: it is one subject.* a list of prompts"),
        (["p"], [[[["a"]]]], r"references\[0\]\[0\] holds lists of lists"),
        ("p", ["a", []], r"references\[1\]: this subject has no image"),
        (["p", "q"], [["a"], ["b", None]], r"references\[1\]\[1\]: this subject has no image"),
        (["p", "q"], [["a"]], r"references for 1 prompt\(s\), but 2 prompt\(s\)"),
        (["p", "q"], "a", r"references for 1 prompt\(s\), but 2 prompt\(s\)"),
    ],
)
def test_other_nesting_is_refused(prompt: Any, references: Any, message: str) -> None:
    with pytest.raises(PromptError, match=message):
        reference_rows(prompt, references)
