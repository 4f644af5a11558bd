"""The notebooks run from clean, are kept without outputs, and show something."""

from __future__ import annotations

import base64
import json
import os
import runpy
import subprocess
import sys
from io import BytesIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import nbformat
import numpy as np
import pytest
import torch
from matplotlib import pyplot as plt
from PIL import Image

from fastcomposer.utils.image_grid import owner_overlay

ROOT = Path(__file__).parents[1]
NAMES = ["01_quickstart", "02_attention_maps", "03_paper_tables", "04_your_photos"]


def executed(name: str, output: Path, **parameters: Any) -> list[dict[str, Any]]:
    """Outputs of a notebook that is executed as ``make notebooks`` does it, each with its kinds of data."""
    call = [sys.executable, str(ROOT / "scripts" / "notebooks.py"), name, "--output", str(output)]
    given = {name: str(value) for name, value in {"OUT": output, "STEPS": 2, **parameters}.items()}
    result = subprocess.run(call, env={**os.environ, **given}, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr[-3000:]
    content = json.loads(next(output.glob(f"{name}*.ipynb")).read_text())
    return [output for cell in content["cells"] for output in cell.get("outputs", [])]


def images(outputs: list[dict[str, Any]]) -> list[Image.Image]:
    """The images among outputs; each shows something."""
    found = [output["data"]["image/png"] for output in outputs if "image/png" in output.get("data", {})]
    shown = [Image.open(BytesIO(base64.b64decode(data))).convert("L") for data in found]
    assert all(np.asarray(image).std() > 10 for image in shown)
    return shown


def pages(outputs: list[dict[str, Any]]) -> list[str]:
    return ["".join(o["data"]["text/html"]) for o in outputs if "text/html" in o.get("data", {})]


def printed(outputs: list[dict[str, Any]]) -> str:
    return "".join("".join(output.get("text", [])) for output in outputs)


def test_all_notebooks_are_known() -> None:
    assert [file.stem for file in sorted((ROOT / "notebooks").glob("*.ipynb"))] == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_notebooks_are_kept_without_outputs(name: str) -> None:
    content = nbformat.read(ROOT / "notebooks" / f"{name}.ipynb", as_version=4)
    nbformat.validate(content)
    code = [cell for cell in content.cells if cell.cell_type == "code"]
    assert not [cell for cell in code if cell.outputs or cell.execution_count is not None]
    assert code[0].metadata["tags"] == ["parameters"]
    assert max(cell.source.count("\n") + 1 for cell in code) <= 20
    assert content.cells[0].cell_type == "markdown"


def test_photos_become_records(tmp_path: Path) -> None:
    outputs = executed("04", tmp_path)
    assert len(images(outputs)) == 1
    (shown,) = pages(outputs)
    assert shown.count("<figure") == 3
    assert shown.count("<b ") == 4
    text = printed(outputs)
    assert "4 photos: 3 are records, 1 are left out" in text
    assert "cat.jpg,no subject named in the caption" in text


@pytest.mark.slow
def test_quickstart_trains_and_generates(tmp_path: Path) -> None:
    outputs = executed("01", tmp_path, MINUTES=0.1, SCENES=64, DATA=tmp_path / "world")
    assert len(images(outputs)) == 4
    assert "steps are done" in printed(outputs)
    assert (tmp_path / "quickstart" / "fastcomposer.safetensors").is_file()


@pytest.mark.slow
def test_attention_maps_are_shown_with_and_without_localization(tmp_path: Path) -> None:
    outputs = executed("02", tmp_path, DATA=tmp_path / "world", RECORDS=8)
    assert len(images(outputs)) == 4


@pytest.mark.slow
def test_tables_and_figures_come_from_results(tmp_path: Path) -> None:
    outputs = executed("03", tmp_path, RESULTS=tmp_path / "none", PEOPLE=1)
    assert len(images(outputs)) == 1
    assert [page.count("<svg") for page in pages(outputs)] == [1, 1, 1]
    (table,) = ["".join(o["data"]["text/markdown"]) for o in outputs if "text/markdown" in o.get("data", {})]
    assert "| FastComposer |" in table.replace("**", "")


@pytest.fixture(scope="module")
def helpers() -> SimpleNamespace:
    return SimpleNamespace(**runpy.run_path(str(ROOT / "notebooks" / "helpers.py")))


def test_curves_are_of_keys_logged_more_than_once(helpers: SimpleNamespace, tmp_path: Path) -> None:
    file = tmp_path / "logs" / "metrics.csv"
    file.parent.mkdir()
    log = "step,train/loss,val/denoise_loss,samples/identity,train/grad_norm\n"
    file.write_text(log + "10,0.4,,,1.5\n20,0.3,0.31,0.2,1.2\n30,0.2,,,\n")
    helpers.curves(tmp_path)
    assert [axes.get_title() for axes in plt.gcf().axes if axes.lines] == ["Loss", "Gradient norm"]
    plt.close("all")
    file.write_text("step,train/loss\n10,0.4\n")
    with pytest.raises(ValueError, match=r"metrics.csv: nothing was logged twice, .* train longer"):
        helpers.curves(tmp_path)


def test_each_pixel_has_the_colour_of_the_word_that_attends_to_it() -> None:
    attention = torch.zeros(2, 4, 4)
    attention[0, :, :2], attention[1, :, 2:] = 5.0, 0.1  # each is scaled by its own maximum
    shown = np.asarray(owner_overlay(Image.new("RGB", (64, 64), "white"), attention), dtype=int)
    left, right = shown[32, 8], shown[32, 56]
    assert left[0] > left[2] + 50
    assert right[2] > right[0] + 50
