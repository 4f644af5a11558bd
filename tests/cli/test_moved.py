"""Configurations that earlier versions saved."""

from __future__ import annotations

from pathlib import Path

import pytest
from configurations import composed
from hydra._internal.utils import _locate
from omegaconf import OmegaConf

from fastcomposer.cli.moved import MOVED, rename_targets, with_present_targets
from fastcomposer.cli.sweeps.job import as_job
from fastcomposer.runtime.jobs import JOB_NAME


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
    plain = {"list": [{"_target_": now}], "name": was, "none": None, "missing": "???"}
    saved = OmegaConf.to_container(nested)
    assert with_present_targets(saved) == plain
    assert saved != plain
    rename_targets(nested)
    assert OmegaConf.to_container(nested) == plain


def test_a_job_that_finished_before_a_target_moved_is_not_done_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    record = Path("outputs/test", JOB_NAME)  # of `composed`
    record.parent.mkdir(parents=True)
    config = composed("train", "data=avatars", "resume=auto", "hydra.job.num=0")
    assert as_job(lambda: 0.5, config, str) == 0.5
    was, now = next(iter(MOVED.items()))
    text = record.read_text()
    assert text.count(f'"{now}"') == 1
    record.write_text(text.replace(f'"{now}"', f'"{was}"'))
    assert as_job(lambda: pytest.fail("done again"), config, str) == 0.5
