"""Every promised panel has its data, wherever it is logged to."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
from command_line import called
from PIL import Image
from wandb_files import RunFile, read_run

from fastcomposer.cli import evaluate, train
from fastcomposer.evaluation.results import read_results
from fastcomposer.training.wandb_artifacts import artifact_name, weights_artifact
from fastcomposer.training.wandb_workspace import PANELS, RESULTS, SAMPLE_IMAGES, SAMPLE_ROWS, workspace

MINI = Path(__file__).parents[2] / "data" / "mini"


def keys(*kinds: str, job: str = "train") -> set[str]:
    """Keys of the panels of some kinds."""
    return {key for panel in PANELS if panel.kind in kinds and panel.job == job for key in panel.keys}


@pytest.fixture(scope="module")
def trained(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six steps of the mini training, as two jobs of a sweep would be, with all loggers."""
    root = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        patch.setenv("WANDB_SILENT", "true")
        patch.setenv("WANDB_DATA_DIR", str(root))
        patch.setenv("WANDB_CACHE_DIR", str(root))
        status, _, err = called(
            train,
            "experiment=mini",
            "logger=wandb",
            "+logger.tensorboard._target_=lightning.pytorch.loggers.TensorBoardLogger",
            "+logger.tensorboard.save_dir=${run_dir}",
            "+logger.tensorboard.name=null",
            "+logger.tensorboard.version=tensorboard",
            "hydra.run.dir=multirun/mini/3",
            f"model.base={MINI}",
            f"data.root={world}",
            "data.module.batch_size=4",
            "data.module.num_workers=0",
            "trainer.max_time=null",
            "trainer.max_steps=6",
            "trainer.val_check_interval=3",
            "trainer.limit_val_batches=1",
            "trainer.log_every_n_steps=2",
            "sampler.num_inference_steps=2",
        )
        assert status == 0, err
    return root / "multirun" / "mini" / "3"


@pytest.fixture(scope="module")
def run(trained: Path) -> RunFile:
    (file,) = trained.glob("wandb/offline-run-*/*.wandb")
    return read_run(file)


def test_an_offline_run_has_the_data_of_every_panel(run: RunFile, trained: Path) -> None:
    assert keys("lines", "images", "table") <= run.history.keys()
    for key in keys("lines"):
        assert all(isinstance(value, float | int) for value in run.history[key]), key
        assert len(run.history[key]) >= 2, key
    assert len(run.history["train/loss"]) == 3
    assert run.history["train/learning_rate"][0] == pytest.approx(5e-4 * 2 / 50)  # the second step's
    assert all(rate > 0 for rate in run.history["train/images_per_second"])
    folder = next(trained.glob("wandb/offline-run-*/files"))
    for key in keys("images", "table"):
        for entry in run.history[key]:
            for name in entry.get("filenames", [entry.get("path")]):
                assert (folder / name).stat().st_size > 0, name


def test_the_table_has_a_row_for_each_subject(run: RunFile) -> None:
    tables = [json.loads(files[f"{SAMPLE_ROWS}.table.json"].read_text()) for files in run.tables]
    assert len(tables) == len(run.history[SAMPLE_ROWS]) == 2
    for table, files in zip(tables, run.tables, strict=True):
        assert table["columns"][:4] == ["reference", "prompt", "image", "attention"]
        assert len(table["data"]) == 4  # of three samples, one with two people
        for reference, prompt, image, attention, identity, consistency in table["data"]:
            for photo in (reference, image, attention):
                assert Image.open(files[photo["path"]]).size >= (56, 56)
            assert "<|image|>" in prompt
            assert -1 <= identity <= 1
            assert -1 <= consistency <= 1
    means = [sum(row[4] for row in table["data"]) / 4 for table in tables]
    assert run.history["samples/identity"] == pytest.approx(means)


def test_a_run_records_its_group_and_inputs(run: RunFile, trained: Path, world: Path) -> None:
    assert (run.run.run_group, run.run.job_type, run.run.display_name) == ("mini", "train", "mini-3")
    assert run.config["trainer"]["max_steps"] == 6
    (data_kind, data_name, data), (base_kind, base_name, base) = run.used
    assert (data_kind, data_name) == ("dataset", artifact_name(world, "dataset"))
    assert (data["train"]["records"], data["test"]["records"]) == (24, 8)
    assert data["train"]["subjects"] == sum(
        int(count) * records for count, records in data["train"]["records_by_subjects"].items()
    )
    assert (base_kind, base_name, base["path"]) == ("base", "data-mini-base", str(MINI))
    assert [made[:2] for made in run.made if made[0] == "model"] == [("model", "mini-3-weights")]


def test_an_evaluation_uses_the_weights_that_a_training_has_left(
    trained: Path, world: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With one name and content, they are one artifact: what the server draws lineage from."""
    root = trained.parents[2]
    monkeypatch.chdir(root)
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setenv("WANDB_DATA_DIR", str(root))
    status, _, err = called(
        evaluate,
        f"checkpoint={trained}",
        "methods=[fastcomposer]",
        "logger=wandb",
        f"model.base={MINI}",
        f"benchmark.folder={MINI.parent / 'benchmarks' / 'mini'}",
        f"benchmark.images={world / 'references'}",
        "benchmark.single.num_subjects=1",
        "benchmark.single.prompts_per_category=1",
        "benchmark.multi=null",
        "sampler.num_inference_steps=2",
    )
    assert status == 0, err
    (file,) = root.glob("outputs/evaluate/wandb/offline-run-*/*.wandb")
    found = read_run(file)
    assert (found.run.run_group, found.run.job_type) == ("evaluate", "evaluate")
    assert [(kind, name) for kind, name, _ in found.used] == [
        ("base", "data-mini-base"),
        ("model", "mini-3-weights"),
    ]
    assert ("results", "outputs-evaluate-results") in [made[:2] for made in found.made]
    assert weights_artifact(trained).digest == weights_artifact(trained / "fastcomposer.safetensors").digest
    (row,) = read_results(root / "outputs" / "evaluate" / "results.json").rows
    assert keys("table", job="evaluate") <= found.history.keys()
    (entry,) = found.history[RESULTS]
    table = json.loads((file.parent / "files" / entry["path"]).read_text())
    (cells,) = table["data"]
    by_column = dict(zip(table["columns"], cells, strict=True))
    assert by_column["identity_preservation"] == pytest.approx(row.identity_preservation.mean)
    key = "evaluation/single_subject/fastcomposer/alpha 0.8/identity_preservation"
    assert found.history[key] == pytest.approx([row.identity_preservation.mean])
    with (root / "outputs" / "evaluate" / "logs" / "metrics.csv").open() as stream:
        (logged,) = csv.DictReader(stream)
    assert float(logged[key]) == pytest.approx(row.identity_preservation.mean)


def test_tensorboard_shows_the_same(run: RunFile, trained: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(trained / "tensorboard")).Reload()
    for key in keys("lines"):
        values = [event.value for event in events.Scalars(key)]
        assert values == pytest.approx(run.history[key], rel=1e-5), key
    assert [event.step for event in events.Images(SAMPLE_IMAGES)] == [3, 6]
    (first, second) = events.Tensors(f"{SAMPLE_ROWS}/text_summary")
    text = first.tensor_proto.string_val[0].decode()
    assert text.count("\n") == 5  # a head of two lines and four subjects
    assert second.step == 6


def test_the_workspace_has_every_panel() -> None:
    view = workspace("somebody", "fastcomposer")
    assert len({section.name for section in view.sections}) == len(view.sections)
    stored = view._to_model().spec.model_dump_json()
    assert all(key in stored for panel in PANELS for key in panel.keys)
