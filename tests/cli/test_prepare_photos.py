"""A user's photos become a data folder that trains a model; everything by the commands."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from command_line import called
from imitated_machine import PROTOCOL, write_celeba, write_ffhq
from PIL import Image
from skimage.data import astronaut
from tiny_architectures import narrow
from tiny_networks import write_blip, write_clip, write_mask2former

from fastcomposer.cli import evaluate, prepare, report, train
from fastcomposer.data.records import read_ids, read_record
from fastcomposer.evaluation.results import read_results

Run = Callable[..., tuple[int, str, str]]


@dataclass(frozen=True)
class Prepared:
    """A data folder made of photos.

    Attributes:
        root: The folder.
        call: Arguments that made it.
        photos: How many photos became records; one more did not.
        out: Output of the command.
    """

    root: Path
    call: list[str]
    photos: int
    out: str


@pytest.fixture(scope="module")
def prepared(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    """Photos prepared by the real classes of captioner, segmenter and CLIP, tiny and random."""
    folder = tmp_path_factory.mktemp("photos")
    photos = write_ffhq(folder / "ffhq")
    (folder / "ffhq" / "00000" / "00099.png").write_bytes(b"no photo")
    write_blip(folder / "blip")
    write_mask2former(folder / "mask2former")
    write_clip(folder / "clip", tiny_base / "tokenizer")
    call = [
        "data=folder",
        f"source={folder / 'ffhq'}",
        f"data.root={folder / 'data'}",
        f"data.captioner.model={folder / 'blip'}",
        "data.captioner.max_new_tokens=6",
        "data.captioner.num_beams=2",
        f"data.segmenter.model={folder / 'mask2former'}",
        "data.segmenter.threshold=0.0",
        "data.segmenter.overlap=0.0",
        "data/phrases=words",
        f"data.matcher.image_text.model={folder / 'clip'}",
        "data.prepare.limits.max_side=512",
        "data.prepare.limits.test_share=0.25",
        "data.prepare.batch_size=4",
    ]
    status, out, err = called(prepare, *call)
    assert status == 0, err
    return Prepared(folder / "data", call, photos, out)


def test_photos_in_the_layout_of_ffhq_are_prepared(run: Run, prepared: Prepared) -> None:
    root, photos = prepared.root, prepared.photos
    assert f"{photos} records made; the data folder is {root}" in prepared.out
    assert f"{photos + 1} photos: {photos} are records, 1 are left out" in prepared.out
    names = read_ids(root, "all")
    assert names[0] == "00000-00000"  # five characters name the folder, as the layout of FFHQ does
    assert [len(read_ids(root, split)) for split in ("train", "test")] == [6, 2]
    for name in names:
        loaded = read_record(root, name)
        assert min(loaded.image.shape[:2]) == 512
        assert loaded.record.segments
        for segment in loaded.record.segments:
            assert loaded.record.caption[: segment.end].endswith("man")
    assert "00099.png,unreadable" in (root / "preparation" / "left_out.csv").read_text()
    settings = json.loads((root / "preparation" / "settings.json").read_text())
    assert len(settings["matcher"]["image_text"]["model"]) == 16  # a digest of the weights, not their path

    status, out, err = run(prepare, *prepared.call)
    assert status == 0, err
    assert "0 records made" in out
    status, _, err = run(prepare, *prepared.call, "data.captioner.num_beams=1")
    assert status == 1
    assert "captioner.num_beams: 2, not 1" in err


@pytest.fixture
def model(tmp_path: Path) -> list[str]:
    """Stable Diffusion 1.5 a few channels wide, with random weights."""
    size = ["model.resolution=64", "model.reference_size=28"]
    folder = narrow("sd15", tmp_path / "sd15")
    return ["model=sd15", "model.weights=random", f"model.architecture={folder}", *size]


def test_prepared_photos_go_through_shards_and_training_to_tables(
    run: Run,
    prepared: Prepared,
    model: list[str],
    paper_metrics: list[str],
    admiral: Image.Image,
    astronaut: Image.Image,
) -> None:
    """The commands of the paper's scale, one after the other."""
    photos = [*model, "data=folder", f"data.root={prepared.root}", "data.module.num_workers=0"]
    status, _, err = run(prepare, *photos, "cache=cache", "precompute.records_per_file=4")
    assert status == 0, err
    written = ["shards=shards", "sharding.num_workers=0", "sharding.records_per_shard=2"]
    status, out, err = run(prepare, *photos, *written)
    assert status == 0, err
    assert f"{prepared.photos} records written" in out

    streamed = ["data=streaming", "data.root=shards", "data.module.window=2", "data.module.cache=cache"]
    streamed += ["data.module.batch_size=2", "data.module.num_workers=0", "data.module.pin_memory=false"]
    one_device = ["trainer=cpu", "trainer.devices=1", "trainer.max_steps=2", "trainer.log_every_n_steps=1"]
    validated = ["trainer.val_check_interval=1", "trainer.limit_val_batches=1"]
    status, _, err = run(train, "experiment=paper", *model, *streamed, *one_device, *validated)
    assert status == 0, err
    trained = torch.load("outputs/paper/checkpoints/last.ckpt", weights_only=True)
    assert trained["global_step"] == 2
    logged = Path("outputs/paper/logs/metrics.csv").read_text()
    assert "train/localization_loss" in logged and "nan" not in logged

    write_celeba(Path("people"), astronaut, admiral)
    benchmark = [
        "benchmark=paper",
        f"benchmark.folder={PROTOCOL}",
        "benchmark.images=people",
        "sampler=paper",
    ]
    few = ["num_subjects=2", "prompts_per_category=1", "images_per_prompt=1"]
    parts = [f"benchmark.{part}.{few_of}" for part in ("single", "multi") for few_of in few]
    sampled = ["+sampler.height=64", "+sampler.width=64", "sampler.num_inference_steps=2", *paper_metrics]
    sampled += ["checkpoint=outputs/paper", "alphas=[0.5]"]
    sampled += ["methods=[text_only,textual_inversion,fastcomposer]"]
    sampled += ["methods.textual_inversion.personalize.method.steps=1"]
    status, _, err = run(evaluate, *model, *benchmark, *parts, *sampled)
    assert status == 0, err
    rows = read_results("outputs/evaluate/results.json").rows
    assert [(row.benchmark, row.method, row.images) for row in rows] == [
        ("single_subject", "fastcomposer", 8),
        ("single_subject", "text_only", 8),
        ("single_subject", "textual_inversion", 8),
        ("multi_subject", "fastcomposer", 3),
        ("multi_subject", "text_only", 3),
        ("multi_subject", "textual_inversion", 3),
    ]
    status, _, err = run(report, "results=outputs/evaluate", *benchmark)
    assert status == 0, err
    tables = Path("outputs/evaluate/tables.md").read_text()
    assert "FastComposer" in tables and "0.514" in tables  # the published figure beside the measured one


def test_the_mini_world_is_prepared_anew(run: Run, world: Path, tmp_path: Path) -> None:
    """With oracles for captions and segments every image becomes the record it was."""
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


def test_photos_become_records_without_any_download(run: Run, tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    one = astronaut()
    Image.fromarray(one).save(photos / "one.jpg")
    (photos / "one.txt").write_text("a smiling woman before a flag")
    half = one[:, :400]
    Image.fromarray(np.concatenate([half, half[:, ::-1]], axis=1)).save(photos / "two.jpg")
    (photos / "two.txt").write_text("a woman and a lady with a helmet")
    Image.fromarray(one).save(photos / "unclear.jpg")
    (photos / "unclear.txt").write_text("a woman and a man")
    status, out, err = run(
        prepare,
        "data=folder",
        f"source={photos}",
        "data.root=data",
        "data/captioner=given",
        "data/segmenter=faces",
        "data/phrases=words",
        "data/matcher=order",
    )
    assert status == 0, err
    assert "2 records made" in out
    subjects = {}
    for name in read_ids("data", "all"):
        record = read_record("data", name).record
        from_the_left = sorted(record.segments, key=lambda segment: segment.bbox)
        subjects[record.caption] = [record.caption[: segment.end].split()[-1] for segment in from_the_left]
    assert subjects == {
        "a smiling woman before a flag": ["woman"],
        "a woman and a lady with a helmet": ["woman", "lady"],
    }
    assert "unclear.jpg" in Path("data/preparation/left_out.csv").read_text()
    assert "data/preparation/report.html" in err

    (photos / "two.txt").unlink()
    (photos / "unclear.txt").unlink()
    status, _, err = run(
        prepare,
        "data=folder",
        f"source={photos}",
        "data.root=one",
        "data/captioner=given",
        "data/segmenter=faces",
        "data/phrases=words",
        "data/matcher=order",
    )
    assert status == 0, err
    assert read_ids("one", "all") == read_ids("one", "train")


def test_missing_parts_are_reported_before_anything_is_loaded(run: Run, tmp_path: Path) -> None:
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
