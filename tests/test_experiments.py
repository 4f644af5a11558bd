"""Experiments are what they say: the paper's numbers, and sweeps whose every choice can be built."""

from __future__ import annotations

import subprocess
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from configurations import composed
from example_calls import calls, compose_call, overrides
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.utils import instantiate
from lightning.pytorch.callbacks import Callback
from omegaconf import DictConfig, OmegaConf

from fastcomposer.cli.common import CONFIG_FOLDER
from fastcomposer.data.sample_settings import SampleSettings
from fastcomposer.data.transforms import PUBLISHED
from fastcomposer.losses import LossConfig
from fastcomposer.models.fusion import FusionConfig
from fastcomposer.models.lora import LoRASettings
from fastcomposer.training.samples import SampleImages

ROOT = Path(__file__).parents[1]
EXPERIMENTS = sorted(file.stem for file in (CONFIG_FOLDER / "experiment").glob("*.yaml"))
CALLBACKS = sorted(file.stem for file in (CONFIG_FOLDER / "callbacks").glob("*.yaml"))
ABLATIONS = sorted(file.stem for file in (CONFIG_FOLDER / "sweep").glob("ablation_*.yaml"))


def recipe(config: DictConfig) -> dict[str, Any]:
    """What docs/method.md, gives a number for."""
    method, module, trainer = config.method, config.data.module, config.trainer
    return {
        "base": config.model.base,
        "image_encoder": config.model.image_encoder,
        "resolution": module.resolution,
        "reference_size": module.reference_size,
        "trained": (method.train_backbone, method.train_fusion, method.vision_layers),
        "steps": trainer.max_steps,
        "batch": trainer.devices * trainer.num_nodes * module.batch_size * trainer.accumulate_grad_batches,
        "lr": method.optimizer.lr,
        "constant": (method.warmup_steps, method.cooldown),
        "betas": list(method.optimizer.betas),
        "eps": method.optimizer.eps,
        "weight_decay": method.optimizer.weight_decay,
        "clip": trainer.gradient_clip_val,
        "precision": (trainer.precision, config.matmul_precision),
        "ema": method.ema_decay,
        "seed": (config.seed, method.seed, module.seed),
        "subjects": (module.max_subjects, list(module.labels)),
        "dropout": (method.caption_dropout, method.subject_dropout),
        "reference": (module.reference, module.num_references, module.background),
        "flip": module.flip,
    }


PAPER = {
    "base": "stable-diffusion-v1-5/stable-diffusion-v1-5",
    "image_encoder": "openai/clip-vit-large-patch14",
    "resolution": 512,
    "reference_size": 224,
    "trained": (True, True, 2),
    "steps": 150_000,
    "batch": 128,
    "lr": 1e-5,
    "constant": (0, 0.0),
    "betas": [0.9, 0.999],
    "eps": 1e-8,
    "weight_decay": 1e-2,
    "clip": 1.0,
    "precision": ("bf16-mixed", "high"),
    "ema": None,
    "seed": (42, 42, 42),
    "subjects": (4, ["person"]),
    "dropout": (0.1, 0.1),
    "reference": ("same_image", 1, "noise"),
    "flip": 0.5,
}


@pytest.mark.parametrize("experiment", ["paper", "paper_1gpu"])
def test_the_recipe_is_the_papers(experiment: str) -> None:
    config = composed("train", f"experiment={experiment}")
    assert recipe(config) == PAPER
    assert instantiate(config.data.module.augmentation) == PUBLISHED
    loss = instantiate(config.method.model.loss_config)
    assert loss == LossConfig(0.001, 5, mask_loss_probability=0.5)
    assert not loss.mask_loss_per_sample and not loss.mask_loss_skip_unconditional
    assert instantiate(config.method.model.fusion) == FusionConfig("mlp", "mean")


def test_one_gpu_accumulates_and_checkpoints() -> None:
    config = composed("train", "experiment=paper_1gpu")
    trainer = config.trainer
    assert (trainer.accelerator, trainer.strategy, trainer.devices) == ("gpu", "auto", 1)
    assert config.method.gradient_checkpointing
    # Validation counts batches, the paper's run steps.
    every = composed("train", "experiment=paper").trainer.val_check_interval
    assert trainer.val_check_interval == every * trainer.accumulate_grad_batches
    factory = instantiate(config.method.optimizer)
    assert (factory.implementation, factory.lr, factory.betas) == ("fused", 1e-5, (0.9, 0.999))


def test_stable_diffusion_3_is_trained_by_a_lora_with_checkpointing() -> None:
    config = composed("train", "experiment=paper", "model=sd3")
    other = {"base": config.model.base, "resolution": 1024, "trained": ("lora", True, 2)}
    assert recipe(config) == {**PAPER, **other}
    assert config.method.gradient_checkpointing
    assert instantiate(config.method.lora) == LoRASettings(rank=16)


def jobs(config: DictConfig) -> list[list[str]]:
    """The overrides of each job of a sweep, one parameter at a time."""
    found = []
    for key, value in OmegaConf.to_container(config.hydra.sweeper.params).items():  # type: ignore[union-attr]
        override = OverridesParser.create().parse_override(f"{key}={value}")
        found.append([f"{key}={choice}" for choice in override.sweep_string_iterator()])
    return found


@pytest.mark.parametrize("experiment", ["mini", "paper"])
@pytest.mark.parametrize("name", [name for name in ABLATIONS if name != "ablation_alpha"])
def test_every_choice_of_an_ablation_is_another_training(name: str, experiment: str) -> None:
    base = f"{experiment}_id" if name == "ablation_identity" else experiment
    sweep = composed("train", f"sweep={name}", f"experiment={base}")
    assert sweep.name == name
    for choices in jobs(sweep):
        assert len(choices) > 1
        seen = []
        for choice in choices:
            config = composed("train", f"sweep={name}", f"experiment={base}", choice)
            instantiate(config.method.model.loss_config)
            instantiate(config.method.model.fusion)
            module = {**config.data.module, "augmentation": instantiate(config.data.module.augmentation)}
            SampleSettings(**{field.name: module[field.name] for field in fields(SampleSettings)})
            keys = ["data", "method", "identity", "readout", "reward", "timesteps", "localization"]
            seen.append(OmegaConf.to_yaml(OmegaConf.masked_copy(config, keys), resolve=False))
        same = len(seen) - len(set(seen))
        # Some settings are an experiment's own already.
        owned = {
            ("ablation_data", "paper"): 1,  # FFHQ has no other image of anybody
            ("ablation_identity", "paper"): 2,  # its density of timesteps is uniform with and without
        }
        assert same == owned.get((name, experiment), 0), choices


def test_the_ablation_of_data_changes_one_thing_at_a_time() -> None:
    default = composed("train", "experiment=mini").data.module
    (choices,) = jobs(composed("train", "sweep=ablation_data", "experiment=mini"))
    found = []
    for choice in choices:
        module = composed("train", "sweep=ablation_data", "experiment=mini", choice).data.module
        found.append({key: module[key] for key in module if module[key] != default[key]})
    assert found == [
        {},
        {"reference": "same_image"},
        {"background": "black"},
        {"background": "kept"},
        {"augmentation": None},
        {"train_share": 0.1},
        {"train_share": 0.01},
    ]


@pytest.mark.parametrize("callbacks", CALLBACKS)
@pytest.mark.parametrize("experiment", [None, *EXPERIMENTS])
def test_callbacks_go_with_every_experiment(
    experiment: str | None, callbacks: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    overrides = [f"callbacks={callbacks}", *([f"experiment={experiment}"] if experiment else [])]
    # Where neither the callbacks nor the data name whom to generate.
    if callbacks in {"samples", "scored_samples"} or (experiment, callbacks) == ("person", "mini_samples"):
        overrides += [
            "callbacks.samples.prompts=['a man <|image|>']",
            f"callbacks.samples.references=[['{tmp_path / 'man.png'}']]",
        ]
    if callbacks in {"scored_samples", "mini_samples"}:
        overrides.append("callbacks.samples.scores=null")  # whose networks take seconds
    config = composed("train", *overrides)
    folder = tmp_path / OmegaConf.select(config, "data.root", default="data") / "references"
    monkeypatch.chdir(tmp_path)
    folder.mkdir(parents=True)
    for file in (folder / "00_man.png", folder / "01_woman.png", tmp_path / "man.png"):
        file.touch()
    made = {name: instantiate(callback) for name, callback in config.callbacks.items()}
    assert all(isinstance(callback, Callback) for callback in made.values())
    assert isinstance(made.get("samples"), SampleImages) == (callbacks != "default")


def test_make_backbones_trains_scores_and_reports_both() -> None:
    printed = subprocess.run(
        ["make", "-n", "backbones"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    found = calls(printed.replace(".venv/bin/", ""))
    assert [command for command, _ in found] == [
        "prepare",
        "train",
        *2 * ["attention"],
        *2 * ["evaluate"],
        "report",
    ]
    for command, arguments in found:
        compose_call(command, arguments)
    train = composed("train", *overrides(*found[1]))
    assert OmegaConf.to_container(train.hydra.sweeper.params) == {
        "model": "mini,mini_dit",  # jobs 0 and 1, then 2 and 3
        "localization": "mini,none",
    }
    jobs = f"jobs={train.hydra.sweep.dir} job="
    for (_, unet), (_, transformer) in (found[2:4], found[4:6]):
        assert unet.endswith(f"{jobs}0,1") and transformer.endswith(f"{jobs}2,3 model=mini_dit")


def test_make_identity_trains_scores_and_reports_the_arms() -> None:
    printed = subprocess.run(
        ["make", "-n", "identity", "STEPS=3", "ARM_STEPS=2"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    found = calls(printed.replace(".venv/bin/", ""))
    sweep = ["train", "evaluate", "report"]
    assert [command for command, _ in found] == ["prepare", *sweep, "diagnose", *sweep]
    for command, arguments in found:
        compose_call(command, arguments)
    for number, steps in ((1, 3), (5, 2)):
        train = composed("train", *overrides(*found[number]))
        assert train.trainer.max_steps == steps
        folder = Path(train.hydra.sweep.dir)
        scored, reported = found[number + 1][1], found[number + 2][1]
        assert f"jobs={folder} " in f"{scored} " and f"sweep={folder} " in reported
        if number == 1:
            assert f"{folder}/0,{folder}/1]" in found[4][1] and "arm=plain,full " in found[1][1]
    (arms,) = (value.split(",") for value in train.hydra.sweeper.params.values())
    assert arms[0] == "plain" and arms[-1] == "full"
    assert {*arms} == {file.stem for file in (CONFIG_FOLDER / "arm").glob("*.yaml")}
