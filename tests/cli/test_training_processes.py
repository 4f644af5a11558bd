"""Trainings on two processes as a user calls them."""

from __future__ import annotations

import csv
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file
from small_training import small_training
from tiny_architectures import narrow

_TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]


@pytest.mark.slow
@pytest.mark.timeout(1200)  # five starts of everything, on machines that do something else, too
@pytest.mark.parametrize(
    ("trainer", "launcher", "lora"),
    [
        ("ddp", [], None),
        ("ddp", _TORCHRUN, None),
        ("fsdp", [], None),
        ("fsdp", [], "unet"),
        ("ddp", [], "sd3"),
    ],
)
def test_two_processes_are_one(
    trainer: str, launcher: list[str], lora: str | None, world: Path, small_base: Path, tmp_path: Path
) -> None:
    """The same mini training on 1 process × 8 and on 2 × 4, which stopped once on the way."""
    settings = small_training(
        small_base,
        world,
        "~callbacks.samples",
        "method.cooldown=0",  # the first part ends earlier
        "trainer.val_check_interval=3",
        "trainer.limit_val_batches=1",
        "trainer.log_every_n_steps=1",
        "threads=1",
        "resume=auto",
    )
    settings += [] if lora is None else ["method.train_backbone=lora"]
    if lora == "sd3":
        random = ["model.weights=random", f"model.architecture={narrow('sd3', tmp_path / 'sd3')}"]
        settings += [*random, "model.reference_size=28"]
    two = ["data.module.batch_size=4", f"trainer={trainer}", "trainer.devices=2", "trainer.accelerator=cpu"]
    two += ["trainer.precision=32-true", "name=two"]
    alone = ["-m", "fastcomposer.cli.train", *settings, "data.module.batch_size=8", "name=one"]
    shared = [*launcher, "-m", "fastcomposer.cli.train", *settings, *two]
    for arguments, steps in ((alone, 20), (shared, 11), (shared, 20)):
        command = [sys.executable, *arguments, f"trainer.max_steps={steps}"]
        result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert result.returncode == 0, result.stderr
        assert result.stdout.count("steps are done") == 1
    for file in ("fastcomposer", *(["pytorch_lora_weights"] if lora else [])):
        folders = (tmp_path / "outputs" / name for name in ("one", "two"))
        one, other = (load_file(folder / f"{file}.safetensors") for folder in folders)
        assert one.keys() == other.keys()
        assert max((one[name] - other[name]).abs().max().item() for name in one) < 1e-4
    logs = []
    for name in ("one", "two"):
        with (tmp_path / "outputs" / name / "logs" / "metrics.csv").open() as file:
            logs.append(list(csv.DictReader(file)))
    assert [row["step"] for row in logs[0]] == [row["step"] for row in logs[1]]
    for first, second in zip(*logs, strict=True):
        for key in ("train/loss", "train/denoise_loss", "train/localization_loss", "train/grad_norm"):
            if first[key]:  # means over both processes, not the first one's own
                assert float(second[key]) == pytest.approx(float(first[key]), abs=1e-4)
