"""Configurations that earlier versions saved."""

from __future__ import annotations

import pytest
from configurations import composed
from hydra._internal.utils import _locate
from omegaconf import OmegaConf

from fastcomposer.cli.moved import MOVED, rename_targets


@pytest.mark.parametrize(("was", "now"), MOVED.items())
def test_names_of_old_are_gone_and_those_of_today_are_there(was: str, now: str) -> None:
    with pytest.raises(ImportError):
        _locate(was)
    assert callable(_locate(now))


def test_targets_are_renamed_wherever_they_are_and_nothing_else_is() -> None:
    config = composed("train", "data=avatars")
    wanted = OmegaConf.to_container(config)
    was, now = next(iter(MOVED.items()))
    assert config.method.model._target_ == now
    config.method.model._target_ = was
    rename_targets(config)
    assert OmegaConf.to_container(config) == wanted
    nested = OmegaConf.create({"list": [{"_target_": was}], "name": was, "none": None, "missing": "???"})
    rename_targets(nested)
    plain = {"list": [{"_target_": now}], "name": was, "none": None, "missing": "???"}
    assert OmegaConf.to_container(nested) == plain
