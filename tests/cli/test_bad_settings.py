"""Settings of any kind: a constructor takes them, or the message names it."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
from configurations import composed
from hydra.utils import instantiate
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from omegaconf import DictConfig, OmegaConf

from fastcomposer.cli.common import message_of

_JUNK = (
    st.none()
    | st.booleans()
    | st.integers(-1000, 1000)
    | st.floats()
    | st.text(st.characters(exclude_characters="$?"), max_size=6)
    | st.lists(st.integers(-2, 2), max_size=3)
    | st.dictionaries(st.sampled_from(["a", "b"]), st.integers(-2, 2), max_size=2)
)
_NODES = ("data.module", "trainer", "method.model.loss_config", "callbacks.checkpoint")
_PATHS = {
    "root",
    "dirpath",
    "default_root_dir",
    "pretrained_model_name_or_path",
    "path",
}  # nothing is made there


def leaves(node: Any, before: str = "") -> list[str]:
    """Keys of all values in a node, without targets and paths."""
    found = []
    for key, value in node.items():
        if isinstance(value, dict):
            found += leaves(value, f"{before}{key}.")
        elif not key.startswith("_") and key not in _PATHS:
            found.append(f"{before}{key}")
    return found


@pytest.fixture(scope="module")
def nodes(world: Path, small_base: Path) -> dict[str, DictConfig]:
    """Parts of the configuration of a small training, resolved."""
    config = composed("train", "experiment=mini", f"model.base={small_base}", f"data.root={world}")
    found = {name: OmegaConf.select(config, name) for name in _NODES}
    return {
        name: OmegaConf.create(OmegaConf.to_container(node, resolve=True)) for name, node in found.items()
    }


@settings(max_examples=80, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_any_value_is_taken_or_named(data: st.DataObject, nodes: dict[str, DictConfig]) -> None:
    name = data.draw(st.sampled_from(_NODES))
    node = copy.deepcopy(nodes[name])
    keys = leaves(OmegaConf.to_container(node))
    key = data.draw(st.sampled_from(keys))
    value = data.draw(_JUNK)
    OmegaConf.update(node, key, value, merge=False)
    try:
        instantiate(node)
    except Exception as error:
        words = message_of(error)
        assert words, f"{key}={value!r} of {name}: a trace, of {error!r}"
        assert "\n" not in words or not words.startswith("Error in call")


def test_wrong_types_are_named_with_their_constructor(nodes: dict[str, DictConfig]) -> None:
    node = copy.deepcopy(nodes["data.module"])
    node.batch_size = "many"
    with pytest.raises(Exception, match=r"batch_size|str") as end:
        instantiate(node)
    words = message_of(end.value)
    assert words is not None
    assert "SubjectDataModule" in words
    assert "HYDRA_FULL_ERROR=1" in words


def test_defects_keep_their_trace() -> None:
    assert message_of(TypeError("a defect")) is None
    assert message_of(ValueError("a setting")) == "a setting"


@pytest.mark.parametrize(
    ("package", "remedy"),
    [("gradio", "pip install 'fastcomposer[demo]'"), ("facenet_pytorch", "--no-deps facenet-pytorch==2.6.0")],
)
def test_a_missing_extra_is_named(package: str, remedy: str) -> None:
    assert remedy in str(message_of(ModuleNotFoundError(f"No module named {package!r}", name=package)))
    assert message_of(ModuleNotFoundError("No module named 'fastcomposer.x'", name="fastcomposer.x")) is None
