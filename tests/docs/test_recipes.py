"""The recipes work as they stand: files are written, commands called and snippets run, in their order."""

from __future__ import annotations

import csv
import json
import re
import runpy
import shlex
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

import pytest
import torch
from command_line import called
from PIL import Image

DOCS = Path(__file__).parents[2] / "docs" / "how-to"
DATA = DOCS.parents[1] / "data"
RECIPES = ("dataset", "metric", "score", "backbone", "localization")
_BLOCK = re.compile(r"(?:^`([^`\n]+)`\n\n)?^```(\w+)\n(.*?)^```$", re.M | re.S)
# What makes a call take seconds. It follows the recipe's own arguments and changes no choice.
SHORT = {
    "train": "trainer.max_time=null trainer.max_steps=2 trainer.log_every_n_steps=1 "
    "trainer.limit_val_batches=0 data.module.batch_size=2 data.module.num_workers=0",
    "generate": "num_images=1 sampler.num_inference_steps=2",
    "evaluate": "sampler.num_inference_steps=2 benchmark.single.num_subjects=1 benchmark.multi=null "
    "data.module.num_workers=0 data.module.batch_size=4",
    "attention": "data.module.num_workers=0 data.module.batch_size=4 num_batches=1",
}


@dataclass(frozen=True)
class Block:
    """A block of code; with a file's name it is that file."""

    file: str | None
    language: str
    code: str


def blocks(recipe: str) -> list[Block]:
    text = (DOCS / f"{recipe}.md").read_text(encoding="utf-8")
    return [Block(file or None, language, code) for file, language, code in _BLOCK.findall(text)]


@pytest.fixture
def home(tmp_path: Path, world: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A user's folder: our data beside it, and what is written there can be imported."""
    (tmp_path / "data").mkdir()
    for name in ("mini", "benchmarks"):
        (tmp_path / "data" / name).symlink_to(DATA / name)
    (tmp_path / "data" / "avatars").symlink_to(world)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield tmp_path
    for name in [name for name in sys.modules if name.partition(".")[0] == "my"]:
        del sys.modules[name]


def follow(recipe: str) -> None:
    """Write the files, call the commands and run the snippets of a recipe."""
    for block in blocks(recipe):
        if block.file is not None:
            Path(block.file).parent.mkdir(parents=True, exist_ok=True)
            Path(block.file).write_text(block.code, encoding="utf-8")
        elif block.language == "python":
            exec(compile(block.code, f"{recipe}.md", "exec"), {"__name__": "__main__"})
        else:
            assert block.language == "sh"
            for line in block.code.replace("\\\n", " ").splitlines():
                call(shlex.split(line))


def call(words: list[str]) -> None:
    """Call a subcommand in this process, or a script of the recipe."""
    program, name, *arguments = words
    if program == "python":
        assert not arguments, words
        runpy.run_path(name, run_name="__main__")
        return
    assert program == "fastcomposer", words
    status, _, err = called(
        import_module(f"fastcomposer.cli.{name}"), *arguments, *SHORT.get(name, "").split()
    )
    assert status == 0, err


def trained(folder: str) -> int:
    """Steps of a finished training."""
    return torch.load(Path(folder) / "checkpoints" / "last.ckpt", weights_only=True)["global_step"]


def test_every_recipe_has_a_test() -> None:
    assert {file.stem for file in DOCS.glob("*.md")} == set(RECIPES)
    for recipe in RECIPES:
        assert len((DOCS / f"{recipe}.md").read_text().splitlines()) < 130  # a page and a bit


def test_a_dataset(home: Path) -> None:
    follow("dataset")
    assert len(list(home.glob("data/pets/*/*.json"))) == 20
    assert (home / "data/pets/image_ids_test.txt").read_text().split() == ["pet000", "pet010"]
    assert trained("outputs/pets") == 2
    (image,) = home.glob("outputs/generate/a_dog_on_the_beach_[0-9]*.png")
    assert Image.open(image).size == (64, 64)


def test_a_metric(home: Path) -> None:
    follow("metric")
    rows = json.loads((home / "outputs/colour/results.json").read_text())["rows"]
    assert [row["method"] for row in rows] == ["fastcomposer", "text_only"]
    for row in rows:
        low, high = row["measures"]["colour"]["ci95"]
        assert 0 < low <= row["measures"]["colour"]["mean"] <= high < 1
    head = (home / "outputs/colour/tables.md").read_text().splitlines()[4]
    assert "| copy-paste | colour | s / image |" in head


def test_images_of_any_system(home: Path) -> None:
    follow("score")
    (row,) = json.loads((home / "outputs/script/results.json").read_text())["rows"]
    assert (row["method"], row["images"], row["settings"]) == ("script", 6, {"version": "1.0"})
    assert row["origin"]["note"] == "alpha 0.8, 30 steps"
    assert row["identity_preservation"]["mean"] > 0.3  # of the people asked for
    assert "alpha 0.8, 30 steps" in (home / "outputs/script/tables.md").read_text()


def test_a_backbone(home: Path) -> None:
    follow("backbone")
    assert trained("outputs/slim") == trained("outputs/dry") == 2
    unet = json.loads((home / "outputs/slim_pipeline/unet/config.json").read_text())
    assert unet["block_out_channels"] == [32, 64, 64]
    assert list(home.glob("outputs/generate/a_man_on_the_beach_[0-9]*.png"))


def test_a_localization_loss(home: Path) -> None:
    follow("localization")
    assert trained("outputs/outside") == trained("outputs/outside_linear") == 2
    fractions = json.loads((home / "outputs/attention/attention.json").read_text())
    assert {*fractions} == {"outputs/outside", "outputs/outside_linear"}
    assert all(0 < fraction["inside"] < 1 for fraction in fractions.values())
    first = {}
    for name in ("outside", "outside_linear"):
        with (home / f"outputs/{name}/logs/metrics.csv").open() as file:
            first[name] = float(next(csv.DictReader(file))["train/localization_loss"])
    # Balanced L1 would be about 0; of equal fractions, squares are the smaller.
    assert 0.1 < first["outside"] < first["outside_linear"] < 1
