"""A user's photos become a data folder that trains a model; everything by the commands."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import skimage
import torch
from matplotlib import cbook
from PIL import Image
from tiny_networks import write_blip, write_clip, write_mask2former

from fastcomposer.cli import prepare, train
from fastcomposer.data.records import read_ids, read_record

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Run:
    """Call a command in this process, in an empty folder; returns status, output and errors."""
    monkeypatch.chdir(tmp_path)

    def call(module: object, *arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["fastcomposer", *arguments])
        status = 0
        try:
            module.main()  # type: ignore[attr-defined]
        except SystemExit as end:
            status = int(end.code or 0)
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return call


def write_ffhq(folder: Path, side: int = 1024) -> int:
    """Photos in the layout of FFHQ in the wild, of pictures that packages ship; returns how many."""
    shipped = Path(skimage.__file__).parent / "data"
    pictures = [Image.open(shipped / f"{name}.png") for name in ("astronaut", "chelsea", "coffee")]
    with cbook.get_sample_data("grace_hopper.jpg") as file:
        pictures.append(Image.open(file).copy())
    number = 0
    for picture in pictures:
        for turned in (
            picture.convert("RGB"),
            picture.convert("RGB").transpose(Image.Transpose.FLIP_LEFT_RIGHT),
        ):
            path = folder / f"{number // 1000 * 1000:05d}" / f"{number:05d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            # Some are wider than tall, as photos in the wild are.
            turned.resize((side + 128 * (number % 3), side)).save(path, compress_level=1)
            number += 1
    (folder / "LICENSE.txt").write_text("whose photos they are")
    return number


def test_photos_in_the_layout_of_ffhq_are_prepared_and_trained_on(
    run: Run, small_base: Path, tiny_base: Path, tmp_path: Path
) -> None:
    """The real classes of captioner, segmenter and CLIP, tiny and random."""
    photos = write_ffhq(tmp_path / "ffhq")
    (tmp_path / "ffhq" / "00000" / "00099.png").write_bytes(b"no photo")
    write_blip(tmp_path / "blip")
    write_mask2former(tmp_path / "mask2former")
    write_clip(tmp_path / "clip", tiny_base / "tokenizer")
    call = [
        "data=folder",
        "source=ffhq",
        "data.root=data",
        "data.captioner.model=blip",
        "data.captioner.max_new_tokens=6",
        "data.captioner.num_beams=2",
        "data.segmenter.model=mask2former",
        "data.segmenter.threshold=0.0",
        "data.segmenter.overlap=0.0",
        "data/phrases=words",
        "data.matcher.image_text.model=clip",
        "data.prepare.limits.max_side=512",
        "data.prepare.limits.test_share=0.25",
        "data.prepare.batch_size=4",
    ]
    status, out, err = run(prepare, *call)
    assert status == 0, err
    assert f"{photos} records made; the data folder is data" in out
    assert f"{photos + 1} photos: {photos} are records, 1 are not" in out
    names = read_ids("data", "all")
    assert names[0] == "00000-00000"  # five characters name the folder, as the layout of FFHQ does
    assert [len(read_ids("data", split)) for split in ("train", "test")] == [6, 2]
    for name in names:
        loaded = read_record("data", name)
        assert min(loaded.image.shape[:2]) == 512
        assert loaded.record.segments
        for segment in loaded.record.segments:
            assert loaded.record.caption[: segment.end].endswith("man")
    assert "00099.png,unreadable" in Path("data/preparation/left_out.csv").read_text()
    settings = json.loads(Path("data/preparation/settings.json").read_text())
    assert settings["matcher"]["image_text"]["model"] != "clip"  # a digest of the weights

    status, out, err = run(prepare, *call)
    assert status == 0, err
    assert "0 records made" in out
    status, _, err = run(prepare, *call, "data.captioner.num_beams=1")
    assert status == 1
    assert "captioner.num_beams: 2, not 1" in err

    status, _, err = run(
        train,
        "data=folder",
        "data.root=data",
        f"model.base={small_base}",
        "model.resolution=64",
        "model.reference_size=56",
        "data.module.batch_size=2",
        "data.module.num_workers=0",
        "method.vision_layers=1",
        "trainer.max_steps=2",
        "trainer.val_check_interval=1",
        "trainer.limit_val_batches=1",
        "name=photos",
    )
    assert status == 0, err
    assert torch.load("outputs/photos/checkpoints/last.ckpt", weights_only=True)["global_step"] == 2


def test_the_mini_world_is_prepared_anew(run: Run, world: Path, tmp_path: Path) -> None:
    """With oracles for captions and segments every picture becomes the record it was."""
    mini = Path(__file__).parents[2] / "data" / "mini"
    status, out, err = run(
        prepare,
        "data=folder",
        f"source={world}",
        f"model.base={mini}",
        "data.root=data",
        "data/captioner=records",
        "data.captioner.field=rich_caption",
        "data/segmenter=maps",
        "data/phrases=words",
        "data/matcher=mini",
        "data.prepare.limits.min_side=64",
    )
    assert status == 0, err
    assert "32 records made" in out
    originals = read_ids(world, "all")
    left_out = Path("data/preparation/left_out.csv").read_text()
    assert left_out.count("references/") == len(left_out.splitlines()) - 1  # portraits, which are too small
    for name in originals:
        made = read_record("data", f"{name[:5]}-{name}")
        known = read_record(world, name)
        assert np.array_equal(made.segment_map, known.segment_map)
        assert made.record.caption == known.record.extra["rich_caption"]
        boxes = [{segment.id: segment.bbox for segment in loaded.record.segments} for loaded in (made, known)]
        assert boxes[0] == boxes[1]


def test_missing_parts_are_said_before_anything_is_loaded(run: Run, tmp_path: Path) -> None:
    status, _, err = run(prepare, "data=folder", "data.root=data", "data/phrases=words")
    assert status == 1
    assert err.strip().endswith("source: name the folder of the photos, as in source=photos/")
    status, _, err = run(prepare, "data=folder", "data.root=data", "source=x", "data.phrases.model=missing")
    assert status == 1
    assert "python -m spacy download missing" in err
    status, _, err = run(
        prepare,
        "data=folder",
        "data.root=data",
        "source=x",
        "data/phrases=words",
        "trainer.precision=bf16-true",
    )
    assert status == 1
    assert "trainer.precision=bf16-true" in err
