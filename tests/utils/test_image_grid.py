"""Images made of images."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fastcomposer.utils.image_grid import grid
from fastcomposer.utils.provenance import read_metadata

ROOT = Path(__file__).parents[2]


def test_a_grid_enlarges_each_image_to_its_place() -> None:
    red, blue = Image.new("RGB", (4, 4), "red"), Image.new("RGB", (64, 64), "blue")
    sheet = grid([[red, blue], [blue]], side=20)
    assert sheet.size == (2 * 26 + 6, 2 * 26 + 6)
    corners = [sheet.getpixel((x, y)) for x, y in ((6, 6), (32, 6), (6, 32), (32, 32))]
    assert corners == [(255, 0, 0), (0, 0, 255), (0, 0, 255), (255, 255, 255)]


def test_titles_stand_above_their_columns() -> None:
    red = Image.new("RGB", (4, 4), "red")
    plain, titled = grid([[red, red]], side=60), grid([[red, red]], side=60, titles=["", "two\nlines"])
    head = titled.height - plain.height
    assert titled.crop((0, head, *titled.size)).tobytes() == plain.tobytes()
    written = np.asarray(titled.crop((0, 0, titled.width, head)).convert("L")) < 128
    assert not written[:, :66].any()
    for line in (written[: head // 2, 66:], written[head // 2 :, 66:]):
        assert line.any()


def test_the_gallery_draws_each_pair_in_every_scene(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output, mini = tmp_path / "made" / "pairs.png", ROOT / "data" / "mini"
    call = ["gallery.py", str(output), "--steps=1", "--pairs=1", f"--people={world / 'references'}"]
    call += [f"--base={mini}", f"--checkpoint={mini / 'fastcomposer.safetensors'}"]
    monkeypatch.setattr(sys, "argv", call)
    runpy.run_path(str(ROOT / "scripts" / "gallery.py"), run_name="__main__")
    metadata = read_metadata(output)
    assert metadata is not None
    assert len(metadata["prompts"]) == 5
    assert (metadata["people"], metadata["num_inference_steps"]) == (["00_man.png", "01_woman.png"], 1)
    assert Image.open(output).width == 7 * 134 + 6
    monkeypatch.setattr(sys, "argv", [*call, f"--people={tmp_path}"])
    with pytest.raises(SystemExit):
        runpy.run_path(str(ROOT / "scripts" / "gallery.py"), run_name="__main__")
