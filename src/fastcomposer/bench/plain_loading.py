"""The loader's plain twin, for benchmarks and tests: the recipe in its published order, on full images."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import v2
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as tvf

from fastcomposer.batch import SubjectBatch
from fastcomposer.data.dataset import SubjectDataset
from fastcomposer.data.records import Segment, read_json, record_path
from fastcomposer.data.transforms import ReferenceAugmentation, pad_to_square
from fastcomposer.prompt import parse_prompt, place_markers


class _Zoom(v2.Transform):
    """Enlarge an image and keep the top square of one taller than wide."""

    def __init__(self, largest: float) -> None:
        super().__init__()
        self.largest = largest

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        return {"factor": 1 + float(torch.rand(())) * (self.largest - 1)}

    def transform(self, inpt: Tensor, params: dict[str, Any]) -> Tensor:
        height, width = inpt.shape[-2:]
        size = [int(params["factor"] * side) for side in (height, width)]
        enlarged = tvf.resize(inpt, size, antialias=True)
        return enlarged[:, : enlarged.shape[-1]] if height > width else enlarged


def plain_augmentation(settings: ReferenceAugmentation | None, size: int) -> v2.Transform:
    """Return torchvision's transforms in the order of the recipe (docs/method.md)."""
    square: list[Any] = [pad_to_square, v2.Resize((size, size), antialias=True)]
    if settings is None:
        return v2.Compose(square)
    strength = settings.jitter_strength
    steps = [
        (settings.rotate, v2.RandomRotation(settings.degrees, InterpolationMode.BILINEAR)),
        (settings.jitter, v2.ColorJitter(strength, strength, strength, min(strength, 0.5))),
        (settings.blur, v2.GaussianBlur(settings.blur_kernel, settings.blur_sigma)),
        (settings.grey, v2.Grayscale(num_output_channels=3)),
        (settings.flip, v2.RandomHorizontalFlip(1.0)),
        (settings.elastic, v2.ElasticTransform(settings.elastic_alpha, settings.elastic_sigma)),
    ]
    zoom = v2.RandomApply([_Zoom(settings.max_zoom)], settings.zoom)
    return v2.Compose([zoom, *square, *(v2.RandomApply([step], odds) for odds, step in steps)])


def plain_sample(dataset: SubjectDataset, index: int, augmentation: v2.Transform) -> SubjectBatch:
    """Load a sample whose subjects all fit, with references from its own image; draws from torch's state."""
    record_id = dataset.record_ids[index]
    record = read_json(dataset.root, record_id)
    subjects = sorted(record.segments, key=lambda segment: segment.end)
    with Image.open(record_path(dataset.root, record_id, ".jpg")) as file:
        image = torch.from_numpy(np.array(file.convert("RGB"))).permute(2, 0, 1).contiguous()
    segment_map = torch.from_numpy(np.load(record_path(dataset.root, record_id, ".npy")).astype(np.int64))
    masks = torch.stack([segment_map == segment.id for segment in subjects]).to(torch.uint8)
    cut_outs = [_cut_out(image, mask, segment) for mask, segment in zip(masks, subjects, strict=True)]
    references = [tvf.to_dtype(augmentation(cut), torch.float32, scale=True) for cut in cut_outs]
    target = _square(image, dataset.target_transform.resolution, InterpolationMode.BILINEAR)
    masks = _square(masks, dataset.target_transform.resolution, InterpolationMode.NEAREST_EXACT)
    if torch.rand(()) < dataset.settings.flip:
        target, masks = target.flip(-1), masks.flip(-1)
    caption = place_markers(record.caption, [segment.end for segment in subjects])
    prompt = parse_prompt(caption, dataset.tokenizer, num_references=len(subjects))
    return SubjectBatch(
        pixel_values=(target.float() / 127.5 - 1)[None],
        input_ids=torch.tensor([prompt.input_ids]),
        subject_pixel_values=torch.stack(references)[None],
        subject_token_idx=torch.tensor([prompt.subject_token_idx]),
        subject_present=torch.ones(1, len(subjects), dtype=torch.bool),
        subject_masks=masks.float()[None],
        record_ids=(record_id,),
    )


def _cut_out(image: Tensor, mask: Tensor, segment: Segment) -> Tensor:
    noise = torch.randint(0, 256, image.shape, dtype=torch.uint8)
    x1, y1, x2, y2 = segment.bbox
    return torch.where(mask.bool(), image, noise)[:, max(y1, 0) : y2, max(x1, 0) : x2]


def _square(image: Tensor, side: int, interpolation: InterpolationMode) -> Tensor:
    height, width = image.shape[-2:]
    if height > width:
        image, width = pad_to_square(image), height
    resized = tvf.resize(image, [side, side * width // height], interpolation, antialias=True)
    left = (resized.shape[-1] - side) // 2
    return resized[..., left : left + side]
