"""A pipeline's folder, and moves between kinds of pipelines and numbers."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from diffusers import StableDiffusionPipeline
from tiny_pipeline import ONE, SIZE, reference, seeded

from fastcomposer import FastComposerPipeline
from fastcomposer.prompt import strip_markers


class TestSaving:
    def test_round_trip_gives_the_same_images(self, pipe: FastComposerPipeline, tmp_path: Path) -> None:
        options = {**SIZE, "references": [reference(0)], "output_type": "np"}
        expected = pipe(ONE, generator=seeded(), **options).images
        pipe.save_pretrained(tmp_path)
        again = FastComposerPipeline.from_pretrained(tmp_path)
        again.set_progress_bar_config(disable=True)
        assert np.array_equal(again(ONE, generator=seeded(), **options).images, expected)
        index = json.loads((tmp_path / "model_index.json").read_text())
        assert index["_class_name"] == "FastComposerPipeline"
        assert index["fusion"] == ["fastcomposer.models.fusion", "SubjectFusion"]
        assert index["image_encoder"] == ["transformers", "CLIPVisionModelWithProjection"]

    def test_saved_folder_is_a_stable_diffusion_model_too(
        self, pipe: FastComposerPipeline, tmp_path: Path
    ) -> None:
        pipe.save_pretrained(tmp_path)
        plain = StableDiffusionPipeline.from_pretrained(tmp_path)
        plain.set_progress_bar_config(disable=True)
        expected = pipe(ONE, alpha=0, generator=seeded(), output_type="np", **SIZE).images
        theirs = plain(strip_markers(ONE), generator=seeded(), output_type="np", **SIZE).images
        assert np.array_equal(theirs, expected)

    def test_from_pipe_goes_both_ways(self, pipe: FastComposerPipeline) -> None:
        plain = StableDiffusionPipeline.from_pipe(pipe)
        assert plain.unet is pipe.unet
        again = FastComposerPipeline.from_pipe(plain, fusion=pipe.fusion)
        assert again.unet is pipe.unet and again.image_encoder is pipe.image_encoder
        again = FastComposerPipeline.from_pipe(pipe)
        assert again.components.keys() == pipe.components.keys() and again.fusion is pipe.fusion
        with pytest.raises(ValueError, match="fusion"):
            FastComposerPipeline.from_pipe(plain)
