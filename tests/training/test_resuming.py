"""Trainings that are resumed under other settings."""

from __future__ import annotations

import csv
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from configurations import composed
from omegaconf import OmegaConf, open_dict
from small_training import bare_training

from fastcomposer.cli import train
from fastcomposer.data.records import read_ids, write_ids
from fastcomposer.training.resuming import SAMPLES, check_resumable, training_settings
from fastcomposer.utils.errors import FaultError
from fastcomposer.utils.texts import plain

Check = Callable[..., list[str]]


def _settings(*overrides: str, records: str = "a1", bad: int = 0) -> tuple[dict[str, Any], Any]:
    """The deciding settings of a training of one process, and its configuration."""
    config = composed("train", "experiment=mini", "trainer.max_time=null", "run_dir=run", *overrides)
    with open_dict(config):
        del config["hydra"]
    trainer = SimpleNamespace(
        num_devices=config.trainer.devices,
        num_nodes=config.trainer.num_nodes,
        accumulate_grad_batches=config.trainer.accumulate_grad_batches,
    )
    manifest = {"train": {"digest": records, "bad_records": bad}}
    data = SimpleNamespace(manifest=lambda: manifest, train_split="train")
    return training_settings(plain(config), trainer, data), OmegaConf.to_container(config)


@pytest.fixture
def resume(tmp_path: Path) -> Check:
    """Compare a training with the checkpoint of another one; returns the changes that are applied."""

    def compare(*overrides: str, records: str = "a1", before: tuple[str, ...] = ()) -> list[str]:
        file = tmp_path / "last.ckpt"
        torch.save({"global_step": 3, "settings": _settings(*before)[0]}, file)
        return check_resumable(file, *_settings(*overrides, records=records))

    return compare


@pytest.mark.parametrize(
    ("override", "change"),
    [
        ("localization.localization_weight=0.5", "localization.localization_weight: 0.1, now 0.5"),
        ("model.base=other", "model.base: data/mini, now other"),
        ("seed=7", "seed: 42, now 7"),
        ("data.module.batch_size=8", f"{SAMPLES}: 16, now 8"),
        ("trainer.accumulate_grad_batches=2", f"{SAMPLES}: 16, now 32"),
        ("trainer.devices=2", f"{SAMPLES}: 16, now 32"),
        ("data.module.augmentation.max_zoom=1.1", "data.module.augmentation.max_zoom: 1.3, now 1.1"),
        ("method.weights=outputs/first", "method.weights: None, now outputs/first"),
        ("method.optimizer.implementation=8bit", "method.optimizer.implementation: fused, now 8bit"),
        ("method=vae", "method._target_: fastcomposer.training.module.FastComposerModule, now "),
    ],
)
def test_what_decides_a_training_is_refused_with_both_values(
    override: str, change: str, resume: Check
) -> None:
    with pytest.raises(ValueError, match="resume=restart") as end:
        resume(override)
    assert f"last.ckpt was trained with other settings: {change}" in str(end.value) or (
        f"; {change}" in str(end.value)  # a choice that changes several
    )


def test_all_changes_are_named_at_once_and_each_once(resume: Check) -> None:
    with pytest.raises(ValueError, match="other settings") as end:
        weight = "localization.localization_weight=0.5"
        resume(weight, "seed=7", "method.optimizer.lr=1e-3", "data.root=b", records="b2")
    changes = str(end.value).partition("settings: ")[2].partition(". Give")[0].split("; ")
    assert sorted(changes) == [
        "data.root: data/avatars (records a1), now b (records b2)",
        "localization.localization_weight: 0.1, now 0.5",
        "seed: 42, now 7",
    ]


@pytest.mark.parametrize(
    "overrides",
    [
        ["data.module.batch_size=8", "trainer.devices=2"],
        ["data.root=moved"],  # with the same records
        ["data.module.num_workers=0", "data.module.on_bad_record=skip", "data.module.cache=states"],
        ["trainer.max_steps=9", "trainer.val_check_interval=7", "trainer.precision=bf16-mixed"],
        ["callbacks=default", "logger=tensorboard", "threads=1", "matmul_precision=high", "name=other"],
        ["method.gradient_checkpointing=true", "method.export_precision=float16", "export=elsewhere"],
    ],
)
def test_what_leaves_the_training_as_it_is_may_change(overrides: list[str], resume: Check) -> None:
    assert resume(*overrides) == []


def test_a_training_resumes_without_records_that_were_damaged_and_with_them_mended(tmp_path: Path) -> None:
    whole, damaged = _settings(), _settings("data.module.on_bad_record=skip", records="b2", bad=1)
    for before, now in ((whole, damaged), (damaged, whole)):
        torch.save({"global_step": 3, "settings": before[0]}, tmp_path / "last.ckpt")
        assert check_resumable(tmp_path / "last.ckpt", *now) == []


def test_settings_of_the_optimizer_are_applied_and_named(resume: Check) -> None:
    names = {
        "method.optimizer.lr": "0.0001",
        "method.optimizer.weight_decay": "0.1",
        "method.optimizer.betas": "[0.8, 0.9]",
        "method.optimizer.implementation": "foreach",
        "method.warmup_steps": "9",
        "method.cooldown": "0.1",
        "trainer.gradient_clip_val": "0.5",
    }
    applied = resume(*(f"{name}={value}" for name, value in names.items()))
    assert {line.partition(":")[0] for line in applied} == set(names)
    assert all(f", now {names[line.partition(':')[0]]}, applied" in line for line in applied)


def test_a_checkpoint_that_does_not_record_its_settings_is_refused(tmp_path: Path) -> None:
    torch.save({"global_step": 3}, tmp_path / "last.ckpt")
    with pytest.raises(FaultError, match=r"last\.ckpt does not record .*resume=restart"):
        check_resumable(tmp_path / "last.ckpt", *_settings())


def test_a_training_resumes_with_moved_data_and_a_lower_learning_rate(
    run: Callable[..., tuple[int, str, str]], world: Path, small_base: Path, tmp_path: Path
) -> None:
    call = [*bare_training(small_base, world, 2, "resume=auto"), "trainer.log_every_n_steps=1", "name=run"]
    call += ["method.warmup_steps=0", "method.cooldown=0"]
    status, _, err = run(train, *call)
    assert status == 0, err
    moved = shutil.copytree(world, tmp_path / "moved")
    more = ["trainer.max_steps=4", f"data.root={moved}"]
    more.append("method.optimizer.lr=5e-5")
    status, _, err = run(train, *call, *more, "localization.localization_weight=0.3")
    assert status == 1 and "localization.localization_weight: 0.1, now 0.3. " in err
    assert "method.optimizer.lr" not in err
    status, _, err = run(train, *call, *more)
    assert status == 0, err
    assert "method.optimizer.lr: 0.0005, now 5e-05, applied from here on" in err
    with Path("outputs/run/logs/metrics.csv").open() as file:
        rates = [float(row["train/learning_rate"]) for row in csv.DictReader(file)]
    assert rates == pytest.approx([5e-4, 5e-4, 5e-5, 5e-5])
    write_ids(moved, "train", read_ids(moved, "train")[1:])
    status, _, err = run(train, *call, *more)
    assert status == 1 and f"data.root: {moved} (records " in err
