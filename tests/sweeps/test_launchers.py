"""Sweeps whose jobs others start: a real cluster of Ray, and SLURM, whose commands are stood in for."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from configurations import composed
from hydra.utils import instantiate
from safetensors.torch import load_file
from small_training import bare_training

from fastcomposer.cli import train
from fastcomposer.sweeps.job import as_job, check_processes, devices_of
from fastcomposer.sweeps.jobs import read_job, read_jobs

_RAY = ["hydra/launcher=ray_cluster", "hydra.launcher.ray.init.address=local"]


@pytest.mark.slow
def test_jobs_on_a_cluster_of_ray_are_those_of_plain_calls(
    world: Path, small_base: Path, tmp_path: Path
) -> None:
    settings = bare_training(small_base, world, 2, "threads=1")
    # Processes of their own: they end with what they have started, Ray's cluster too.
    for more in (["-m", "seed=1,2", "name=both", *_RAY], ["seed=2", "name=alone"]):
        call = [sys.executable, "-m", "fastcomposer.cli.train", *more, *settings]
        result = subprocess.run(call, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert result.returncode == 0, result.stderr
    folder = tmp_path / "multirun" / "both"
    jobs = read_jobs(folder)
    found = [(job.status, job.chosen["seed"], job.folder.name) for job in jobs]
    assert found == [("finished", "1", "0"), ("finished", "2", "1")]
    one, two, alone = (
        load_file(at / "fastcomposer.safetensors")
        for at in (folder / "0", folder / "1", tmp_path / "outputs" / "alone")
    )
    assert two.keys() == alone.keys()
    assert all(torch.equal(two[name], alone[name]) for name in two)
    assert not all(torch.equal(one[name], alone[name]) for name in one)


def test_slurm_is_asked_for_what_the_trainer_takes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from submitit.core.utils import FailedJobError

    commands = tmp_path / "bin"
    commands.mkdir()
    for name, does in {"sbatch": 'cp "$1" asked\nexit 1', "srun": ""}.items():
        (commands / name).write_text(f"#!/bin/sh\n{does}\n")
        (commands / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{commands}:{os.environ['PATH']}")
    monkeypatch.chdir(tmp_path)
    call = ["hydra/launcher=slurm", "hydra.launcher.partition=a100"]
    config = composed("train", *call, "trainer.devices=8", "trainer.num_nodes=2")
    launcher = instantiate(config.hydra.launcher)
    launcher.setup(hydra_context=None, task_function=print, config=config)
    with pytest.raises(FailedJobError):  # nobody took it
        launcher.launch([["seed=1"], ["seed=2"], ["seed=3"]], 0)
    lines = (tmp_path / "asked").read_text().splitlines()
    asked = {line.removeprefix("#SBATCH --") for line in lines if line.startswith("#SBATCH")}
    wanted = "array=0-2%3 partition=a100 nodes=2 ntasks-per-node=8 gpus-per-node=8 cpus-per-task=8 mem=64GB"
    assert asked.issuperset([*wanted.split(), "time=1440", "signal=USR1@120", "requeue", "open-mode=append"])
    folder = tmp_path / "multirun" / "fastcomposer" / ".submitit"
    assert f"output={folder}/%A_%a/%A_%a_0_log.out" in asked
    signal = lines.index("export SUBMITIT_PREEMPT_SIGNAL=USR1")
    assert signal < next(number for number, line in enumerate(lines) if line.startswith("srun "))
    launcher = composed("report", "hydra/launcher=slurm").hydra.launcher
    assert (launcher.nodes, launcher.gpus_per_node, launcher.tasks_per_node) == (1, None, 1)


def test_a_job_in_the_queue_again_is_not_finished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from submitit.core.job_environment import SignalHandler
    from submitit.core.utils import DelayedSubmission, JobPaths
    from submitit.slurm.slurm import SlurmJobEnvironment

    asked: list[int] = []
    monkeypatch.setattr(SlurmJobEnvironment, "_requeue", lambda self, countdown: asked.append(countdown))
    monkeypatch.setenv("SLURM_JOB_ID", "42")
    paths = JobPaths(tmp_path, job_id="42")
    task: Any = SimpleNamespace(checkpoint=lambda: DelayedSubmission(print))
    submission = DelayedSubmission(task)
    submission.set_timeout(1440, 20)
    handler = SignalHandler(SlurmJobEnvironment(), paths, submission)
    monkeypatch.chdir(tmp_path)
    folder = Path("outputs/test")  # of `composed`
    folder.mkdir(parents=True)
    config = composed("evaluate", "hydra.job.num=0")
    with pytest.raises(SystemExit):
        as_job(lambda: handler.checkpoint_and_try_requeue(10), config, str)
    assert asked == [20]
    job = read_job(folder)
    assert job is not None
    assert (job.status, job.reason) == ("stopped", "put into the queue again")


@pytest.mark.parametrize("launcher", ["joblib", "ray_cluster"])
def test_workers_of_a_launcher_are_not_given_jobs_of_several_processes(
    run: Callable[..., tuple[int, str, str]], launcher: str
) -> None:
    call = ["-m", "experiment=mini", "seed=1,2", f"hydra/launcher={launcher}"]
    status, _, err = run(train, *call, "trainer=ddp", "trainer.devices=2")
    assert status == 1
    assert f"error: hydra/launcher={launcher} with trainer.devices=2 and trainer.num_nodes=1" in err
    assert not Path("multirun").exists()  # before anything is begun


def test_a_job_counts_the_devices_that_it_sees() -> None:
    for call, gpus, several in (
        (["hydra/launcher=joblib"], 2, True),
        (["hydra/launcher=joblib"], 1, False),
        (["hydra/launcher=joblib", "hydra.launcher.n_jobs=1"], 2, False),
        (["hydra/launcher=joblib", "trainer=cpu"], 2, False),
        (["hydra/launcher=joblib", "trainer.devices=1", "trainer.num_nodes=2"], 2, True),
        (["hydra/launcher=slurm", "hydra.launcher.tasks_per_node=2"], 2, False),
        ([], 2, False),
    ):
        config = composed("train", "trainer=ddp", *call)
        if several:
            with pytest.raises(ValueError, match=r"hydra/launcher=joblib with trainer.devices=(-1|1) and"):
                check_processes(config, config.hydra, lambda gpus=gpus: gpus)  # type: ignore[misc]
        else:
            check_processes(config, config.hydra, lambda gpus=gpus: gpus)  # type: ignore[misc]


def test_devices_are_counted_as_lightning_does() -> None:
    asked: tuple[Any, ...] = (1, "2", [0, 3], "0,1,3", "1,", -1, "auto")
    assert [devices_of(one, "gpu", lambda: 8) for one in asked] == [1, 2, 2, 3, 1, 8, 8]
    assert devices_of("auto", "cpu", lambda: 8) == 1
