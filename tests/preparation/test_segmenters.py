"""Segmentation by a network, compared with masks that are known."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from tiny_networks import write_mask2former
from torch import Tensor, nn
from transformers import (
    AutoModelForUniversalSegmentation,
    EomtConfig,
    EomtForUniversalSegmentation,
    EomtImageProcessor,
    Mask2FormerImageProcessor,
)

from fastcomposer.preparation.interfaces import Photo, Segmentation
from fastcomposer.preparation.segmenters import PretrainedSegmenter

# Sizes as of FFHQ in the wild, a quarter of them; four of the eight have a shape of their own.
SIZES = [(256, 192), (192, 256), (160, 120), (300, 225), (256, 256), (300, 200), (200, 300), (400, 225)]
COLOURS = np.array([[30, 220, 30], [220, 30, 30], [30, 30, 220]], np.uint8)  # wall, left person, right person
SWIN_NORM = {f"model.pixel_level_module.encoder.swin.layernorm.{name}" for name in ("weight", "bias")}


class ColourNetwork(nn.Module):
    """Answers as Mask2Former does, by the colour of 4 x 4 pixels: green is wall, red and blue are people.

    ``wall`` is the logit of the wall's class.
    """

    device = torch.device("cpu")
    config = SimpleNamespace(id2label={0: "person", 1: "wall"})

    def __init__(self, wall: float = 9.0) -> None:
        super().__init__()
        self.classes = torch.tensor([[0, wall, 0], [9.0, 0, 0], [9.0, 0, 0]])

    def forward(self, pixel_values: Tensor) -> SimpleNamespace:
        red, green, blue = nn.functional.avg_pool2d(pixel_values, 4).unbind(1)
        masks = [green - red.maximum(blue), red - green.maximum(blue), blue - red.maximum(green)]
        return SimpleNamespace(
            class_queries_logits=self.classes.expand(len(pixel_values), -1, -1),
            masks_queries_logits=8 * torch.stack(masks, 1),
        )


class FixedNetwork(ColourNetwork):
    """Answers the same to every photo: (Q, 3) logits of classes, (Q, h, w) of masks."""

    def __init__(self, classes: Tensor, masks: Tensor) -> None:
        super().__init__()
        self.answer = SimpleNamespace(class_queries_logits=classes[None], masks_queries_logits=masks[None])

    def forward(self, pixel_values: Tensor) -> SimpleNamespace:
        return self.answer


RELEASED = {"size": {"shortest_edge": 200, "longest_edge": 333}, "size_divisor": 32}


def segmenter(network: nn.Module, processing: Any = RELEASED, **options: Any) -> PretrainedSegmenter:
    made = PretrainedSegmenter("unread", **options)
    made.network = network
    made._processor = Mask2FormerImageProcessor(**processing)
    return made


def photo_of(mask: np.ndarray, name: str = "photo") -> Photo:
    return Photo(name, Path(f"{name}.png"), Image.fromarray(COLOURS[mask]))


@pytest.fixture(scope="module")
def known() -> list[tuple[np.ndarray, Photo]]:
    """Two ellipses in each size: masks with 0 for the wall, and their photos."""
    made = []
    for number, (width, height) in enumerate(SIZES):
        y, x = (np.mgrid[:height, :width] + 0.5) / np.array([height, width])[:, None, None]
        mask = np.zeros((height, width), np.int64)
        for person, middle in ((1, 0.28 + 0.01 * number), (2, 0.70 + 0.01 * number)):
            mask[((x - middle) / 0.17) ** 2 + ((y - 0.6) / 0.38) ** 2 <= 1] = person
        made.append((mask, photo_of(mask, str(number))))
    return made


def ious(segmentation: Segmentation, mask: np.ndarray) -> list[float]:
    """IoU of each of the two people with the segment of a person that fits best."""
    segments = [segmentation.segment_map == r.id for r in segmentation.regions if r.label == "person"]
    return [
        max((float((s & (mask == k)).sum() / (s | (mask == k)).sum()) for s in segments), default=0.0)
        for k in (1, 2)
    ]


@pytest.mark.parametrize("processing", [RELEASED, RELEASED | {"pad_size": {"height": 352, "width": 352}}])
def test_photos_of_different_sizes_are_segmented_in_a_batch_as_alone(
    known: list[tuple[np.ndarray, Photo]], processing: dict[str, Any]
) -> None:
    made = segmenter(ColourNetwork(), processing)
    together = made.segment([photo for _, photo in known])
    for (mask, photo), found in zip(known, together, strict=True):
        assert min(ious(found, mask)) >= 0.98
        (alone,) = made.segment([photo])
        assert np.array_equal(found.segment_map, alone.segment_map)
        assert found.regions == alone.regions


def test_a_person_does_not_flood_the_photo_when_the_background_is_uncertain(
    known: list[tuple[np.ndarray, Photo]],
) -> None:
    made = segmenter(ColourNetwork(wall=1.0))  # its probability is .58, below the threshold of .8
    for (mask, _), found in zip(known, made.segment([photo for _, photo in known]), strict=True):
        assert [region.label for region in found.regions] == ["person", "person"]
        assert min(ious(found, mask)) >= 0.98
        assert (found.segment_map[mask == 0] == 0).mean() > 0.98


def test_a_pixel_belongs_to_a_segment_from_the_mask_threshold_on() -> None:
    # Columns from surely the left person to surely the wall, of which the network is not sure.
    steps = torch.linspace(4.0, -4.0, 32)
    masks = torch.stack([-steps, steps, torch.full_like(steps, -9.0)])[:, None].expand(-1, 8, -1)
    photo = Photo("p", Path("p.png"), Image.new("RGB", (32, 8)))
    classes = torch.tensor([[0, 1.0, 0], [9.0, 0, 0], [9.0, 0, 0]])
    for threshold in (0.1, 0.5, 0.9):
        made = segmenter(FixedNetwork(classes, masks), mask_threshold=threshold)
        (found,) = made.segment([photo])
        expected = (steps.sigmoid() >= threshold).numpy()
        assert np.array_equal(found.segment_map == 1, np.tile(expected, (8, 1)))


def test_masks_that_others_hide_are_left_out() -> None:
    # Two queries for one person: the less likely one keeps only the rightmost of its ten columns.
    masks = torch.full((2, 4, 20), -9.0)
    masks[0, :, :9], masks[1, :, :10] = 9.0, 9.0
    classes = torch.tensor([[9.0, 0, 0], [4.0, 0, 0]])
    photo = Photo("p", Path("p.png"), Image.new("RGB", (20, 4)))
    for overlap, columns in ((0.8, [9]), (0.11, [9]), (0.1, [9, 1]), (0.0, [9, 1])):
        (found,) = segmenter(FixedNetwork(classes, masks), overlap=overlap).segment([photo])
        assert [round(found.areas[region.id] * 20) for region in found.regions] == columns


def write_released(folder: Path, *lacking: str) -> Path:
    """A Mask2Former without some of its weights; returns the folder."""
    write_mask2former(folder)
    file = folder / "model.safetensors"
    weights = load_file(file)
    assert weights.keys() >= {*lacking}
    save_file({k: v for k, v in weights.items() if k not in lacking}, file, metadata={"format": "pt"})
    return folder


def test_the_final_norm_that_released_files_lack_is_not_used(tmp_path: Path) -> None:
    made = PretrainedSegmenter(str(write_released(tmp_path / "released", *SWIN_NORM)))
    made.load()
    write_mask2former(tmp_path / "complete")
    complete = AutoModelForUniversalSegmentation.from_pretrained(tmp_path / "complete").eval()
    with torch.no_grad():
        for name, weight in complete.named_parameters():
            if name in SWIN_NORM:
                weight.normal_()
        pixels = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
        for output in ("class_queries_logits", "masks_queries_logits"):
            torch.testing.assert_close(made.network(pixels)[output], complete(pixels)[output], rtol=0, atol=0)


def test_any_other_missing_weight_is_refused(tmp_path: Path) -> None:
    other = "model.transformer_module.decoder.layernorm.weight"
    made = PretrainedSegmenter(str(write_released(tmp_path, *SWIN_NORM, other)))
    with pytest.raises(ValueError, match=rf"data\.segmenter\.model=.*: 1 weights are missing: {other}"):
        made.load()


def test_networks_of_another_kind_are_refused(tmp_path: Path) -> None:
    config = EomtConfig(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, image_size=32, num_blocks=1, num_queries=2
    )
    EomtForUniversalSegmentation(config).save_pretrained(tmp_path)
    EomtImageProcessor().save_pretrained(tmp_path)
    with pytest.raises(
        ValueError, match=r"data\.segmenter\.model=.*: a network of kind eomt, not mask2former"
    ):
        PretrainedSegmenter(str(tmp_path)).load()
