"""Segmentation by a network."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_networks import write_mask2former
from transformers import AutoModelForUniversalSegmentation

from fastcomposer.data.photos.segment import PretrainedSegmenter

SWIN_NORM = {f"model.pixel_level_module.encoder.swin.layernorm.{name}" for name in ("weight", "bias")}


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
