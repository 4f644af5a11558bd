"""The boundary of every command: wrong values of every key are refused by name, before anything is made."""

from __future__ import annotations

import copy
import resource
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from configurations import composed
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from omegaconf import DictConfig, ListConfig, OmegaConf

from fastcomposer.cli.app import COMMANDS
from fastcomposer.cli.common import CONFIG_FOLDER
from fastcomposer.cli.settings import _COMMANDS, Command, check_settings

WRONG = {
    "text": "abc",
    "empty": "",
    "unicode": "ü😀",
    "list": [1],
    "mapping": {"a": 1},
    "NaN": float("nan"),
    "huge": 1e30,
    "negative": -1,
    "whole": 5,
    "null": None,
    "interpolation": "${x}",
}
NOTHING = {"list", "mapping", "NaN", "huge", "interpolation"}
NUMBER = {"text", "empty", "unicode", "list", "mapping", "NaN", "huge", "negative", "interpolation"}
TEXT = {"list", "mapping", "NaN", "huge", "negative", "whole", "interpolation"}
TRUTH = {*WRONG}
# Where a value is meant that is wrong elsewhere.
MEANT = {
    "trainer.devices": {"negative", "list"},  # all of them; their numbers
    "trainer.max_steps": {"negative"},  # no limit
    "trainer.num_sanity_val_steps": {"negative"},  # all of them
    "callbacks.checkpoint.save_top_k": {"negative"},  # all of them
    "sampler.guidance_scale": {"negative"},  # away from the prompt
    "logger.csv.version": {"negative", "whole"},
}
# Arguments of other libraries' networks, which these refuse themselves.
ELSEWHERE = ("step.unet", "step.vae", "step.text_encoder", "step.image_encoder")
LISTS = {  # null by default, and a list or mapping else
    "labels",
    "references",
    "variants",
    "localization.localization_blocks",
    "method.model.loss_config.localization_blocks",
    "methods.fastcomposer.labels",
}


def wrong_for(key: str, value: Any) -> set[str]:
    """Kinds of values that a key with this default must not take."""
    if isinstance(value, bool):
        kinds = TRUTH
    elif isinstance(value, int | float):
        kinds = NUMBER
    elif isinstance(value, str):
        kinds = TEXT
    elif value is None:
        kinds = NOTHING - ({"list", "mapping"} if key in LISTS else set())
    else:
        kinds = set()
    return kinds - MEANT.get(key, set())


@cache
def configuration(command: str) -> DictConfig:
    """The defaults of a command."""
    return composed(command)


def keys_of(node: Any, before: str = "") -> list[str]:
    """Keys of all values that are set by name."""
    found = []
    for key in node:
        below = node._get_node(key)
        name = f"{before}{key}"
        if name.startswith(ELSEWHERE):
            continue
        if key == "hydra" or str(key).startswith("_") or " " in str(key):
            continue
        if isinstance(below, DictConfig) and not below._is_interpolation() and not below._is_none():
            found += keys_of(below, f"{name}.")
        elif not isinstance(below, ListConfig):
            found.append(name)
    return found


CASES = [
    (command, key, kind)
    for command in COMMANDS
    if command != "doctor"
    for key in keys_of(configuration(command))
    for kind in sorted(wrong_for(key, OmegaConf.select(configuration(command), key)))
]


def refusal_of(command: str, key: str, kind: str) -> str | None:
    """The message for a wrong value; ``None`` where it is accepted."""
    config = copy.deepcopy(configuration(command))
    OmegaConf.update(config, key, OmegaConf.create({"value": WRONG[kind]})._get_node("value"), merge=False)
    try:
        check_settings(config, command)
    except ValueError as error:
        return str(error)
    return None


@settings(max_examples=100, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(case=st.sampled_from(CASES))
def test_a_wrong_value_is_refused_by_its_key(case: tuple[str, str, str]) -> None:
    message = refusal_of(*case)
    assert message is not None
    assert case[1] in message


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_every_wrong_value_of_every_key_is_refused_by_its_key() -> None:
    messages = {case: refusal_of(*case) for case in CASES}
    assert [case for case, message in messages.items() if message is None] == []
    assert [case for case, message in messages.items() if message and case[1] not in message] == []


def test_there_are_thousands_of_cases() -> None:
    assert len(CASES) > 3000


@pytest.mark.parametrize("command", [name for name in COMMANDS if name != "doctor"])
def test_the_defaults_are_valid(command: str) -> None:
    check_settings(configuration(command), command)


@pytest.mark.parametrize("command", _COMMANDS)
def test_every_field_is_a_key_of_its_command(command: str) -> None:
    keys = {*configuration(command).keys(), *(group.name for group in CONFIG_FOLDER.iterdir())}
    assert _COMMANDS[command].__annotations__.keys() <= keys


def test_every_field_of_all_commands_is_a_key_of_one() -> None:
    assert Command.__annotations__.keys() <= {key for name in _COMMANDS for key in configuration(name)}


@pytest.mark.parametrize("levels", ["[1000]", "[]", "[-1]", "null"])
def test_levels_of_a_diagnosis_are_timesteps(levels: str) -> None:
    with pytest.raises(ValueError, match=r"levels="):
        check_settings(composed("diagnose", f"levels={levels}"), "diagnose")


@pytest.mark.parametrize("curve", ["[]", "[[-1,0.5]]", "[[300]]", "{300: 1}", "[[300,high]]"])
def test_a_curve_is_a_list_of_pairs(curve: str) -> None:
    overrides = ("timesteps=measured", "timesteps.density.curve=[[300,0.1],[900,1]]")
    config = composed("train", *overrides)
    check_settings(config, "train")
    assert config.timesteps.density.curve == [[300, 0.1], [900, 1]]
    config.timesteps.density.curve = OmegaConf.create(f"curve: {curve}").curve
    with pytest.raises(ValueError, match=r"timesteps\.density\.curve="):
        check_settings(config, "train")


@pytest.mark.parametrize("group", ["identity=x0", "readout=linear", "reward=matching"])
def test_a_face_loss_without_weight_is_refused(group: str) -> None:
    key = f"{group.partition('=')[0]}.loss.weight"
    with pytest.raises(ValueError, match=f"{key}=0"):
        check_settings(composed("train", group, f"{key}=0"), "train")


@pytest.mark.parametrize(
    ("command", "overrides", "count"),
    [
        ("train", ["identity=x0", "identity.loss.timesteps=[500]"], "2 whole numbers"),
        ("diagnose", ["checkpoints=[]"], "at least 1"),
        ("evaluate", ["alphas=[]"], "at least 1"),
    ],
)
def test_the_length_of_a_list_is_named(command: str, overrides: list[str], count: str) -> None:
    with pytest.raises(ValueError, match=f"takes a list of .*{count}"):
        check_settings(composed(command, *overrides), command)


def test_all_wrong_keys_are_listed() -> None:
    config = composed("train", "seed=null", "threads=0", "trainer.max_steps=.nan", "method.optimizer.lr=abc")
    with pytest.raises(ValueError, match="takes") as refusal:
        check_settings(config, "train")
    named = [line.split("=")[0].strip() for line in str(refusal.value).splitlines()[1:]]
    assert {*named} == {"trainer.max_steps", "seed", "threads", "method.optimizer.lr"}
    assert len(named) == 4


def test_the_key_that_others_refer_to_is_named() -> None:
    config = composed("train", "localization.localization_weight=-1")
    with pytest.raises(ValueError, match=r"localization\.localization_weight=-1: takes a number") as refusal:
        check_settings(config, "train")
    assert "method.model" not in str(refusal.value)


def test_more_processes_than_cores_are_refused() -> None:
    with pytest.raises(ValueError, match=r"trainer\.devices=9999"):
        check_settings(composed("train", "trainer.devices=9999"), "train")


@pytest.mark.parametrize(
    ("overrides", "named"),
    [
        (["num_images=abc", "alpha=[1]", "references=5"], ["num_images=abc", "alpha=[1]", "references=5"]),
        (["sampler=null"], ["sampler=null"]),
        (
            ["sampler.guidance_scale=.inf", "sampler.num_inference_steps=-1"],
            ["guidance_scale", "inference_steps"],
        ),
        (["output={file}"], ["hydra.run.dir", "not a folder"]),
        (["output={folder}/" + 300 * "a"], ["too long"]),
    ],
)
def test_a_refused_command_ends_at_once_and_makes_nothing(
    overrides: list[str], named: list[str], tmp_path: Path
) -> None:
    file = tmp_path / "file"
    file.touch()
    given = [one.format(file=file, folder=tmp_path) for one in overrides]
    output = [] if any(one.startswith("output") for one in given) else [f"output={tmp_path / 'made'}"]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    call = [sys.executable, "-m", "fastcomposer", "generate", *given, *output]
    result = subprocess.run(call, capture_output=True, text=True, timeout=60)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert result.returncode == 1
    assert result.stderr.startswith("error: ")
    assert "Traceback" not in result.stderr
    assert all(name in result.stderr for name in named)
    assert after.ru_utime - before.ru_utime < 3
    assert [*tmp_path.iterdir()] == [file]


def test_a_sweep_into_a_file_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    call = [sys.executable, "-m", "fastcomposer", "train", "-m", "seed=1,2", f"hydra.sweep.dir={file}"]
    result = subprocess.run(call, capture_output=True, text=True, timeout=60)
    assert result.returncode == 1
    assert result.stderr.startswith(f"error: hydra.sweep.dir={file}")
