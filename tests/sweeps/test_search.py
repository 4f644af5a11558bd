"""Searches of settings, by a grid and by optuna, from the call to the best setting."""

from __future__ import annotations

import csv
import multiprocessing
import shlex
import signal
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.samplers import TPESampler
from toy_evaluation import SIZE, judged_base, write_checkpoint, write_definitions

from fastcomposer.cli import evaluate, report, train
from fastcomposer.evaluation.results import read_results
from fastcomposer.sweeps.jobs import Goal, Job, Plan, read_job, read_jobs
from fastcomposer.sweeps.search import Search, chosen_overrides, distribution
from fastcomposer.sweeps.session import begin_sweep
from fastcomposer.training.checkpoints import read_step
from hydra_plugins.fastcomposer_search import SearchSweeper


@pytest.fixture
def small_benchmark(small_base: Path, tmp_path: Path) -> list[str]:
    """Two people of a small world, a prompt of each category, two steps an image."""
    return [
        f"model.base={judged_base(small_base, tmp_path / 'base')}",
        f"model.resolution={SIZE}",
        f"benchmark.folder={write_definitions(tmp_path / 'definitions')}",
        "benchmark.people.numbers=[0,5]",
        "benchmark.people.scenes.num_identities=8",
        "benchmark.part.prompts_per_category=1",
        f"+sampler.height={SIZE}",
        f"+sampler.width={SIZE}",
        "sampler.num_inference_steps=2",
    ]


def test_learning_rate_and_steps_are_searched(
    run: Callable[..., tuple[int, str, str]], small_benchmark: list[str]
) -> None:
    method = "methods.textual_inversion.personalize.method"
    grid = [f"{method}.steps=1,2", f"{method}.optimizer.lr=0.01"]
    status, _, err = run(evaluate, "-m", "sweep=search_textual_inversion", *small_benchmark, *grid)
    assert status == 0, err
    folder = Path("multirun/search/textual_inversion")
    assert sorted(job.folder.name for job in read_jobs(folder)) == ["lr_0.01-steps_1", "lr_0.01-steps_2"]
    status, out, err = run(report, f"sweep={folder}")
    assert status == 0, err
    assert out.startswith(f"Textual Inversion, best of 2: {method}.steps=")
    assert "(best)" in (folder / "tables.md").read_text()


def bowl(overrides: Sequence[str]) -> float:
    """Smallest at x = 1, n = 3 and b."""
    found = dict(text.split("=") for text in overrides)
    return (float(found["x"]) - 1) ** 2 + abs(int(found["n"]) - 3) + (found["c"] != "b")


RANGES = {"x": "interval(-4.0,4.0)", "n": "range(1,6)", "c": "a,b"}


def begun(folder: Path, trials: int = 8, at_once: int = 1, seed: int = 42) -> Search:
    sampler = partial(TPESampler, n_startup_trials=3)
    settings = SearchSweeper(RANGES, "minimize", trials, at_once, 0.5, seed, sampler)
    return Search(folder, chosen_overrides(RANGES, ["fixed=1"]), settings)


def tried(folder: Path) -> list[tuple[int, str, dict[str, object], float | None]]:
    trials = begun(folder).study.get_trials(deepcopy=False)
    return [(t.user_attrs["job"], t.state.name, t.params, t.value) for t in trials if "job" in t.user_attrs]


@pytest.mark.parametrize("at_once", [1, 2])
def test_a_search_that_was_killed_continues_as_if_it_had_not_been(tmp_path: Path, at_once: int) -> None:
    launched: list[tuple[int, Sequence[str]]] = []

    def launch(jobs: Sequence[Sequence[str]], first: int) -> list[float | None]:
        launched.extend((first + place, job) for place, job in enumerate(jobs))
        if len(launched) == stop:
            raise KeyboardInterrupt
        return [bowl(job) for job in jobs]

    folders = [tmp_path / name for name in ("undisturbed", "killed")]
    for folder in folders:
        folder.mkdir()
    stop = 0
    begun(folders[0], at_once=at_once).run(launch)
    expected, launched = list(launched), []
    assert [number for number, _ in expected] == list(range(8))
    assert all(job[-1] == "fixed=1" for _, job in expected)
    stop = 4
    with pytest.raises(KeyboardInterrupt):
        begun(folders[1], at_once=at_once).run(launch)
    begun(folders[1]).study.ask()  # as if it had been killed while it chose
    begun(folders[1], at_once=at_once).run(launch)
    under_way = slice(4 - at_once, 4)
    assert launched[:4] + launched[4 + at_once :] == expected
    assert launched[4 : 4 + at_once] == expected[under_way]  # the same settings in the same folders
    assert tried(folders[1]) == tried(folders[0])
    launched.clear()
    begun(folders[1], at_once=at_once).run(launch)
    assert not launched  # nothing remains
    begun(folders[1], trials=9).run(launch)
    assert [number for number, _ in launched] == [8]


def test_trials_that_fail_do_not_end_a_search_and_are_tried_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def launch(jobs: Sequence[Sequence[str]], first: int) -> list[float | None]:
        launched.append(first)
        return [None if first in broken else bowl(job) for job in jobs]

    launched: list[int] = []
    broken = {1, 4}
    begun(tmp_path, trials=6).run(launch)
    assert launched == [0, 1, 2, 3, 4, 5]
    failed = {job: params for job, state, params, _ in tried(tmp_path) if state == "FAIL"}
    assert set(failed) == broken
    broken, launched = {4}, []
    begun(tmp_path, trials=7).run(launch)
    assert launched == [1, 4, 6]
    again = tried(tmp_path)[6:]
    assert [(job, state) for job, state, *_ in again] == [(1, "COMPLETE"), (4, "FAIL"), (6, "COMPLETE")]
    assert all(params == failed[job] for job, _, params, _ in again[:2])
    (tmp_path / "search.db").unlink()
    broken, launched = set(range(20)), []
    begun(tmp_path).run(launch)
    assert launched == [0, 1, 2]
    assert (
        "3 of 3 trials have failed, more than hydra.sweeper.max_failure_rate=0.5" in capsys.readouterr().err
    )


def test_what_a_key_is_chosen_from() -> None:
    def of(text: str) -> object:
        return distribution(chosen_overrides({}, [f"key={text}"])["key"])

    assert of("tag(log,interval(1e-4,2e-3))") == FloatDistribution(1e-4, 2e-3, log=True)
    assert of("int(interval(1,8))") == IntDistribution(1, 8)
    assert of("range(2,9,2)") == IntDistribution(2, 8, step=2)
    assert of("range(0.25,1.1,0.25)") == FloatDistribution(0.25, 1.0, step=0.25)
    assert of("mini,'a b',null") == CategoricalDistribution(["mini", "'a b'", "null"])
    with pytest.raises(ValueError, match=r"key=tag\(log,interval\(0.0,1.0\)\): nothing can be chosen"):
        of("tag(log,interval(0.0,1.0))")


@pytest.fixture
def trained(settings: list[str]) -> list[str]:
    """A search among trainings of a second."""
    shorter = ["~callbacks.samples", "trainer.max_steps=2", "trainer.val_check_interval=1", "threads=1"]
    kept = [text for text in settings if not text.startswith(("callbacks.samples", "trainer.", "+sampler"))]
    limits = ["trainer.max_time=null", "trainer.limit_val_batches=1"]
    return ["-m", "sweep=search_training", *kept, *limits, *shorter]


def test_a_training_is_searched_and_continues_where_it_was_stopped(
    run: Callable[..., tuple[int, str, str]], trained: list[str]
) -> None:
    folder = Path("multirun/search_training")
    stop = ["+callbacks.notice._target_=notices.SignalAt", "+callbacks.notice.step=1"]
    call = [*trained, "hydra.sweeper.n_trials=2"]
    status, _, err = run(train, *call, *stop, "+callbacks.notice.name=SIGTERM")
    assert status == 143
    assert "job 0 (method.optimizer.lr=" in err and "): stopped by signal 15" in err
    assert "job 1: has not begun" in err
    status, _, err = run(train, *call, "seed=1", "resume=auto")
    assert "holds a search under other settings" in err and "(seed: 42, not 1)" in err
    before = read_job(folder / "0")
    status, out, err = run(train, *call, "resume=auto")
    assert status == 0, err
    jobs = read_jobs(folder)
    assert [job.status for job in jobs] == ["finished"] * 2
    assert before is not None and jobs[0].overrides == tuple(
        text for text in before.overrides if not text.startswith("+callbacks.notice")
    )
    assert read_step(folder / "0" / "checkpoints" / "last.ckpt") == 2
    best = min(jobs, key=lambda job: job.value or 0)
    assert f"Best of 2: job {best.number} (method.optimizer.lr=" in out
    line = next(text for text in out.splitlines() if text.startswith("  fastcomposer train"))
    again = shlex.split(line)[2:]
    assert "sweep=search_training" not in again
    assert f"method.optimizer.lr={best.chosen['method.optimizer.lr']}" in again


def test_a_trial_killed_before_its_last_validation_gets_its_objective(
    run: Callable[..., tuple[int, str, str]], trained: list[str]
) -> None:
    call = [*trained, "hydra.sweeper.n_trials=1", "trainer.val_check_interval=2", "resume=auto"]
    call += ["callbacks.checkpoint.every_n_train_steps=2"]
    killed = multiprocessing.get_context("fork").Process(
        target=run, args=(train, *call, "+callbacks.kill._target_=notices.KillBeforeValidation")
    )
    killed.start()
    killed.join()
    assert killed.exitcode == -signal.SIGKILL
    folder = Path("multirun/search_training/0")
    assert read_step(folder / "checkpoints" / "last.ckpt") == 2  # all of its steps are done
    status, out, err = run(train, *call)
    assert status == 0, err
    (job,) = read_jobs(folder.parent)
    with (folder / "logs" / "metrics.csv").open() as file:
        (value,) = [row["val/denoise_loss"] for row in csv.DictReader(file) if row["val/denoise_loss"]]
    assert job.status == "finished" and job.value == pytest.approx(float(value))
    assert "Best of 1: job 0" in out


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["objective=val/loss"], "objective=val/loss: not logged; there is train/denoise_loss"),
        (["objective=null"], "objective: train needs one to search by"),
        (["trainer.limit_val_batches=0"], "trainer.limit_val_batches=0 leaves validation out"),
        (["hydra.sweeper.direction=max"], "hydra.sweeper.direction=max: one of minimize, maximize"),
        (["hydra.sweeper.n_trials=0"], "hydra.sweeper.n_trials=0: 1 at least"),
        (["localization.localization_weight=tag(log,interval(0.0,1.0))"], "nothing can be chosen from it"),
    ],
)
def test_a_search_that_cannot_be_made_ends_before_its_first_job(
    run: Callable[..., tuple[int, str, str]], changes: list[str], message: str
) -> None:
    call = ["-m", "sweep=search_training", "experiment=mini", "callbacks=default"]
    status, _, err = run(train, *call, *changes)
    assert status == 1 and message in err
    assert not Path("multirun").exists()


def test_alpha_and_guidance_are_searched(
    run: Callable[..., tuple[int, str, str]], small_benchmark: list[str], small_base: Path, tmp_path: Path
) -> None:
    trained = f"checkpoint={write_checkpoint(small_base, tmp_path / 'trained.safetensors')}"
    call = ["-m", "sweep=search_sampling", *small_benchmark, trained, "hydra.sweeper.n_trials=2"]
    status, _, err = run(evaluate, *call, "objective=identity")
    assert status == 1 and "objective=identity: no such measure" in err
    status, out, err = run(evaluate, *call)
    assert status == 0, err
    folder = Path("multirun/search_sampling")
    for job in read_jobs(folder):
        (row,) = read_results(job.folder / "results.json").rows
        assert row.settings["alpha"] == pytest.approx(float(job.chosen["sampler.alpha"]), abs=1e-6)
        assert job.value == pytest.approx(row.identity_preservation.mean * row.prompt_consistency.mean)
    status, out, err = run(report, f"sweep={folder}")
    assert status == 0, err
    assert out.startswith("Best of 2: job ") and "identity_x_prompt" in out
    assert trained in out.splitlines()[1]


def test_what_an_earlier_search_left_is_continued_forgotten_or_refused(tmp_path: Path) -> None:
    goal = Goal("loss", "minimize", 3, {"x": "interval(0.0,1.0)"}, {"seed": 1, "data": {"root": "a"}})
    plan = Plan("train", "fastcomposer train -m x=1", ("x",), goal=goal)
    job = Job(0, tmp_path / "0", ("x=0.5",))
    job.ended("finished", value=0.1).write()
    with pytest.raises(ValueError, match="holds jobs of a sweep that was no search: name=<other>"):
        begin_sweep(tmp_path, plan, "auto")
    begun(tmp_path)
    plan.write(tmp_path)
    begin_sweep(tmp_path, plan, "auto")
    assert [one.status for one in read_jobs(tmp_path)] == ["finished", "waiting", "waiting"]
    more = replace(goal, trials=9, common={**goal.common, "logger": 1})
    begin_sweep(tmp_path, replace(plan, goal=more), "auto")
    ranges = {"x": "interval(0.0,2.0)"}
    others = [
        (replace(goal, ranges=ranges), r"range of x: 'interval\(0.0,1.0\)', not 'interval\(0.0,2.0\)'"),
        (replace(goal, direction="maximize"), "hydra.sweeper.direction: 'minimize', not 'maximize'"),
        (replace(goal, common={"seed": 1, "data": {"root": "b"}}), "data.root: 'a', not 'b'"),
    ]
    for other, message in others:
        with pytest.raises(ValueError, match=message):
            begin_sweep(tmp_path, replace(plan, goal=other), "auto")
    with pytest.raises(ValueError, match="an earlier sweep, of which 1 jobs have finished; resume=auto"):
        begin_sweep(tmp_path, plan, None)
    with pytest.raises(ValueError, match=r"hydra.sweep.subdir: a search names the folders of its jobs by"):
        begin_sweep(tmp_path, plan, "auto", by_number=False)
    begin_sweep(tmp_path, plan, "restart")
    assert not (tmp_path / "search.db").exists() and not job.folder.exists()
    assert [one.status for one in read_jobs(tmp_path)] == ["waiting"] * 3
