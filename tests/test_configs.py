"""Every configuration composes, and mirrors what it instantiates."""

from __future__ import annotations

import inspect
import resource
import subprocess
import sys
import warnings
from dataclasses import fields
from typing import Any

import pytest
from configurations import composed
from hydra._internal.utils import _locate
from hydra.core.plugins import Plugins
from hydra.utils import instantiate
from lightning.pytorch.strategies import DDPStrategy
from omegaconf import DictConfig, OmegaConf
from torch.nn.parallel import DistributedDataParallel

from fastcomposer.cli import evaluate, train
from fastcomposer.cli.app import COMMANDS
from fastcomposer.cli.common import CONFIG_FOLDER
from fastcomposer.cli.settings import check_settings
from fastcomposer.data.datamodule import SubjectDataModule
from fastcomposer.data.sample_settings import SampleSettings
from fastcomposer.sweeps.search import chosen_overrides, read_goal

TRAINING = (
    "model data method localization identity readout reward timesteps sampler trainer callbacks logger "
    "experiment arm sweep"
)
GROUPS = dict.fromkeys(TRAINING.split(), "train")
GROUPS |= dict.fromkeys(("metrics", "scoring", "benchmark", "compared"), "evaluate")
LAUNCHERS = [file.stem for file in sorted((CONFIG_FOLDER / "hydra" / "launcher").glob("*.yaml"))]
PARTS = [  # parts of a choice of data
    (file.parent.name, file.stem) for file in sorted((CONFIG_FOLDER / "data").glob("*/*.yaml"))
]
CHOICES = [(group, file.stem) for group in GROUPS for file in sorted((CONFIG_FOLDER / group).glob("*.yaml"))]


def targets(node: Any, path: str = "") -> list[tuple[str, str, set[str]]]:
    if not isinstance(node, dict):
        return []
    found = [entry for key, value in node.items() for entry in targets(value, f"{path}.{key}".lstrip("."))]
    if "_target_" in node:
        found.append((path, node["_target_"], {key for key in node if not key.startswith("_")}))
    return found


def accepted(target: str) -> set[str] | None:
    """Names of the arguments a target takes, through ``**recipe`` of the trainings; ``None`` for any."""
    function = _locate(target)
    names: set[str] = set()
    if function is DDPStrategy:  # what it does not know it hands on
        names |= set(inspect.signature(DistributedDataParallel).parameters)
    if inspect.isclass(function) and issubclass(function, SubjectDataModule):
        names |= {field.name for field in fields(SampleSettings)}
    for cls in inspect.getmro(function) if inspect.isclass(function) else (function,):
        call = cls.__init__ if inspect.isclass(cls) else cls
        parameters = inspect.signature(inspect.unwrap(call)).parameters.values()
        names |= {p.name for p in parameters}
        if not any(p.kind is p.VAR_KEYWORD for p in parameters):
            return names
    return None


def test_no_choice_is_forgotten() -> None:
    assert {folder.name for folder in CONFIG_FOLDER.iterdir() if folder.is_dir()} == {*GROUPS, "hydra"}
    assert {folder.name for folder in (CONFIG_FOLDER / "hydra").iterdir()} == {
        "callbacks",
        "launcher",
        "sweeper",
    }
    assert [file.name for file in (CONFIG_FOLDER / "hydra" / "sweeper").iterdir()] == ["search.yaml"]
    assert {file.stem for file in CONFIG_FOLDER.glob("*.yaml")} == set(COMMANDS)


@pytest.mark.parametrize(("group", "choice"), CHOICES)
def test_every_choice_composes_and_fits_its_constructor(group: str, choice: str) -> None:
    samples = ["callbacks.samples.prompts=[]", "callbacks.samples.references=[]"]
    open_fields = {
        "subjects": ["data.root=x"],
        "streaming": ["data.root=x"],
        "samples": samples,
        "scored_samples": [*samples, "metrics=mini"],
        "mini_samples": ["metrics=mini"],
        "jobs": ["jobs=x", "job=0"],
    }
    evaluated = choice in {"ablation_alpha", "tables", "jobs"} or choice.startswith("search_")
    evaluated = evaluated and choice != "search_training"
    command = "evaluate" if evaluated else GROUPS[group]
    config = composed(command, f"{group}={choice}", *open_fields.get(choice, []))
    assert_fits(config)
    check_settings(config, command)


@pytest.mark.parametrize(("part", "choice"), PARTS)
def test_every_part_of_the_preparation_composes_and_fits(part: str, choice: str) -> None:
    config = composed("prepare", "data=folder", f"data/{part}={choice}")
    assert_fits(config)
    check_settings(config, "prepare")


def test_the_demo_fits_its_constructors() -> None:
    assert_fits(composed("demo"))


@pytest.mark.parametrize("launcher", LAUNCHERS)
@pytest.mark.parametrize("command", ["train", "prepare", "evaluate"])
def test_every_launcher_composes_with_every_command_that_sweeps(command: str, launcher: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # Hydra's, of files that are named as what a plugin brings
        config = composed(command, f"hydra/launcher={launcher}")
    OmegaConf.to_container(config.hydra.launcher, resolve=True, throw_on_missing=True)
    assert type(instantiate(config.hydra.launcher)).__name__.endswith("Launcher")


@pytest.mark.parametrize(
    ("command", "choice"), [("train", "search_training"), ("evaluate", "search_sampling")]
)
def test_a_search_composes_and_knows_what_it_goes_by(command: str, choice: str) -> None:
    config = composed(command, f"sweep={choice}")
    {"train": train, "evaluate": evaluate}[command].check_objective(config)
    sweeper = config.hydra.sweeper
    assert type(Plugins.instance()._instantiate(sweeper)).__name__ == "SearchSweeper"
    goal = read_goal(config, chosen_overrides(sweeper.params, []), {})
    for key in goal.ranges:
        assert OmegaConf.select(config, key) is not None, f"{key}: no such key"


def assert_fits(config: DictConfig) -> None:
    """Every target takes the keys that stand beside it."""
    plain = {
        key: OmegaConf.to_container(config[key], resolve=True)
        for key in config
        if key != "hydra" and OmegaConf.is_config(config[key])
    }
    found = targets(plain)
    assert found
    for path, target, keys in found:
        names = accepted(target)
        assert names is None or keys <= names, f"{path}: {target} does not take {sorted(keys - names)}"


@pytest.mark.parametrize("command", COMMANDS)
def test_help_and_cfg_answer_at_once(command: str) -> None:
    for option in (["--help"], ["--cfg", "job"]):
        call = [sys.executable, "-m", f"fastcomposer.cli.{command}", *option]
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        result = subprocess.run(call, capture_output=True, text=True, check=False)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        assert result.returncode == 0, result.stderr
        # Processor time: that of the clock depends on what else the machine does.
        assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 2
        assert f"fastcomposer {command}" in result.stdout or option == ["--cfg", "job"]


@pytest.mark.parametrize("overrides", [[], ["experiment=mini", "method.ema_decay=0.5"]])
def test_help_is_that_of_hydra(overrides: list[str]) -> None:
    call = [sys.executable, "-m", "fastcomposer.cli.train", *overrides, "--help"]
    ours = subprocess.run(call, capture_output=True, text=True, check=True).stdout
    # With any other option it is Hydra's own.
    theirs = subprocess.run([*call, "--config-name=train"], capture_output=True, text=True, check=True).stdout
    assert ours == theirs
    assert "method: clip, custom_diffusion" in ours


def test_subcommands_import_little_before_the_configuration_is_composed() -> None:
    code = f"""
import importlib, sys
for name in {[*COMMANDS]}:
    for loaded in [one for one in sys.modules if one.startswith("fastcomposer")]:
        del sys.modules[loaded]
    importlib.import_module(f"fastcomposer.cli.{{name}}")
    print(name, *[one for one in sys.modules if one.startswith("fastcomposer")])
print(*sys.modules)
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    *lines, loaded = result.stdout.splitlines()
    files = {line.split()[0]: line.split()[1:] for line in lines}
    assert [*files] == [*COMMANDS]
    assert {name: found for name, found in files.items() if len(found) > 8} == {}
    assert {"torch", "diffusers", "transformers", "lightning", "gradio", "pandas"} & {
        *loaded.split()
    } == set()


def test_the_variant_goes_wherever_weights_of_the_base_are_loaded() -> None:
    counts = {}
    for file in CONFIG_FOLDER.rglob("*.yaml"):
        text = file.read_text(encoding="utf-8")
        if "${model.weights}" in text and file.name != "subjects.yaml":  # that one loads a tokenizer alone
            counts[file] = text.count("${model.variant}") - text.count("${model.weights}")
    assert len(counts) >= 9 and not any(counts.values())
