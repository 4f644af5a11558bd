"""Damaged caches are named when they are read, and made anew alone; foreign files stay."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from fastcomposer.batch import SubjectBatch
from fastcomposer.data.cache_files import StaleCacheError
from fastcomposer.training.precompute import CacheStage

Make = Callable[..., Any]
PART = "part-00001.safetensors"


@pytest.fixture(scope="module")
def kept() -> dict[str, Any]:
    """What is made once: the model, and a cache that it fills."""
    return {}


@pytest.fixture
def stage(kept: dict[str, Any], make_module: Make, make_data: Make, tmp_path: Path) -> Make:
    """Make the stage that fills ``<tmp_path>/cache`` in parts of ten records."""
    if "model" not in kept:
        kept["model"] = make_module().model

    def make(**settings: Any) -> CacheStage:
        settings = {"model": kept["model"], "records_per_file": 10, **settings}
        return CacheStage(data=make_data(), folder=tmp_path / "cache", **settings)

    return make


@pytest.fixture
def fill(stage: Make, make_trainer: Make) -> Make:
    """Run the stage; returns how many records it encoded."""

    def run(**settings: Any) -> int:
        made = stage(**settings)
        make_trainer().predict(made, return_predictions=False)
        return made.num_images()

    return run


@pytest.fixture
def cache(kept: dict[str, Any], fill: Make, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A full cache: parts of 10, 10, 4 and 8 records."""
    if "cache" not in kept:
        assert fill() == 32
        kept["cache"] = shutil.copytree(tmp_path / "cache", tmp_path_factory.mktemp("kept") / "cache")
        shutil.rmtree(tmp_path / "cache")
    return Path(shutil.copytree(kept["cache"], tmp_path / "cache"))


def contents(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def samples(make_data: Make, cache: Path) -> list[SubjectBatch]:
    data = make_data(cache=cache)
    data.setup("fit")
    return [data.train_dataset[index] for index in range(len(data.train_dataset))]


def put(file: Path, data: bytes | bytearray) -> None:
    """Write a file beside the old one, which tensors that were read before are views of."""
    file.unlink()
    file.write_bytes(data)


def zero(name: str, rows: Any = slice(None)) -> Callable[[Path], None]:
    """Zero rows of a tensor of a file, and leave the rest of it as it is."""

    def change(file: Path) -> None:
        tensors = load_file(file)
        with safe_open(file, framework="pt") as part:
            metadata = part.metadata()
        tensors[name][rows] = 0
        save_file(tensors, file, metadata)

    return change


def cut(file: Path) -> None:
    put(file, file.read_bytes()[:-7])


def not_json(file: Path) -> None:
    file.write_bytes(b"<html>404</html>")


def another_name(file: Path) -> None:
    """One record is called as if it were another: it is missing."""
    with safe_open(file, framework="pt") as part:
        records = part.metadata()["records"]
    content = json.loads(records)
    content["ids"][4] = "99999999"
    save_file(load_file(file), file, {"records": json.dumps(content)})


DAMAGE: list[tuple[Callable[[Path], None], str]] = [
    (zero("moments", 4), rf"{PART} is damaged \(moments of record \d+ "),
    (zero("states"), rf"{PART} is damaged \(text states of record \d+ "),
    (zero("captions"), rf"{PART} is damaged \(its tables"),
    (cut, rf"{PART} is damaged \("),
    (not_json, rf"{PART} is damaged \("),
    (another_name, r"1 of 24 records are missing, 0000\d+ first"),
    (Path.unlink, rf"10 of 24 records are missing, 0000\d+ first, and {PART}"),
]


@pytest.mark.parametrize(("damage", "message"), DAMAGE)
def test_damage_is_named_when_it_is_read_and_repaired_alone(
    damage: Callable[[Path], None],
    message: str,
    cache: Path,
    stage: Make,
    fill: Make,
    make_data: Make,
    caplog: pytest.LogCaptureFixture,
) -> None:
    before, times = contents(cache), {file: file.stat().st_mtime_ns for file in cache.glob("part-*")}
    damage(cache / PART)
    with pytest.raises(StaleCacheError, match=rf"{message}.*; fastcomposer prepare cache={cache}"):
        samples(make_data, cache)
    with caplog.at_level(logging.WARNING):
        assert fill() == 10
    assert (f"{cache / PART} is damaged" in caplog.text) == (damage is not Path.unlink)
    assert contents(cache) == before
    assert [file.name for file, at in times.items() if file.stat().st_mtime_ns != at] == [PART]
    caplog.clear()
    assert stage().missing_tasks() == []
    assert not caplog.text


def test_no_flipped_byte_is_read(cache: Path, make_data: Make) -> None:
    data, wanted = (cache / PART).read_bytes(), samples(make_data, cache)
    caught = 0
    for place in [*range(8, 2000, 83), *range(2000, len(data), len(data) // 30)]:
        damaged = bytearray(data)
        damaged[place] ^= 0x04
        put(cache / PART, damaged)
        module = make_data(cache=cache)
        try:
            module.setup("fit")
            for index in range(10, 20):
                sample, kept = module.train_dataset[index], wanted[index]
                assert torch.equal(sample.latent_moments, kept.latent_moments)
                assert torch.equal(sample.text_embeds, kept.text_embeds)
        except StaleCacheError as error:
            assert f"{cache / PART} is damaged" in str(error) or "0000" in str(error)
            caught += 1
    assert caught > 40


def test_a_part_of_another_cache_is_refused(
    cache: Path, fill: Make, make_data: Make, make_module: Make, tmp_path: Path
) -> None:
    before = contents(cache)
    model = make_module().model
    with torch.no_grad():
        model.vae.encoder.conv_in.bias += 1e-3
    shutil.move(cache, tmp_path / "first")
    assert fill(model=model) == 32
    other = (cache / PART).read_bytes()
    shutil.rmtree(cache)
    shutil.move(tmp_path / "first", cache)
    (cache / PART).write_bytes(other)
    with pytest.raises(StaleCacheError, match=rf"{PART} was made from something else: weights\.vae: "):
        samples(make_data, cache)
    assert fill() == 10
    assert contents(cache) == before


@pytest.mark.parametrize(
    "damage",
    [
        cut,
        not_json,
        Path.unlink,
        *({"weights": value} for value in ({"vae": "0"}, None)),
        *({"target": value} for value in ({}, None)),
        {"version": 4},
    ],
)
def test_a_damaged_manifest_is_written_anew(damage: Any, cache: Path, fill: Make, make_data: Make) -> None:
    before, file = contents(cache), cache / "cache.json"
    if callable(damage):
        damage(file)
    else:
        file.write_text(json.dumps(json.loads(file.read_bytes()) | damage))
    with pytest.raises((StaleCacheError, FileNotFoundError), match=rf"prepare cache={cache}"):
        samples(make_data, cache)
    assert fill() == 0
    assert contents(cache) == before


@pytest.mark.parametrize("restart", [False, True])
def test_parts_of_no_cache_are_left_alone(restart: bool, stage: Make, tmp_path: Path) -> None:
    folder = tmp_path / "cache"
    folder.mkdir()
    save_file({"weight": torch.ones(3)}, folder / "part-00000.safetensors")
    before = contents(folder)
    with pytest.raises(StaleCacheError, match=r"cache=.* holds part-00000\.safetensors and no cache\.json"):
        stage(restart=restart)
    assert contents(folder) == before


def test_a_restart_removes_parts_alone(cache: Path, stage: Make) -> None:
    names = [".ssh/id", "project/.x.tmp", "part-1.safetensors", "part-of-mine.safetensors"]
    for name in names:
        (cache / name).parent.mkdir(exist_ok=True)
        (cache / name).write_text("mine")
    (cache / f".{PART}.{'0' * 32}.tmp").write_text("half")
    assert len(stage(restart=True).missing_tasks()) == 4
    assert sorted(contents(cache)) == sorted([*names, "cache.json"])


def test_what_is_not_finite_is_not_kept(make_module: Make, fill: Make, tmp_path: Path) -> None:
    model = make_module().model
    with torch.no_grad():
        model.vae.quant_conv.bias[0] = torch.nan
    with pytest.raises(ValueError, match=r"record 00000000: moments or text states are not finite"):
        fill(model=model)
    assert not list((tmp_path / "cache").glob("part-*"))
