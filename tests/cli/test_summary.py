"""What a command says at its end: places that exist, and commands that work as they are printed."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

import pytest
from command_line import called
from example_calls import calls, compose_call
from toy_evaluation import make_toy

from fastcomposer.cli import summary

Run = Callable[..., tuple[int, str, str]]


def followed(err: str) -> dict[str, str]:
    """The commands that are proposed, composed; arguments by command."""
    found = calls(err)
    for command, arguments in found:
        compose_call(command, arguments)
    return dict(reversed(found))


def call(command: str, arguments: str, *more: str) -> str:
    """Call a proposed command as a shell would; returns what it says at its end."""
    module = import_module(f"fastcomposer.cli.{command}")
    status, _, err = called(module, *shlex.split(arguments), *more)
    assert status == 0, err
    return err


def places(err: str) -> list[str]:
    """Paths that are named above the commands."""
    lines = err.partition("\nNext\n")[0].rpartition("\n\n")[2].splitlines()
    return [line.rpartition("  ")[2] for line in lines if line.startswith("  ")]


@pytest.fixture
def small(world: Path, small_base: Path) -> list[str]:
    """A model and data of seconds."""
    model = [f"model.base={small_base}", "model.resolution=32", "model.reference_size=56"]
    return [*model, f"data.root={world}"]


@pytest.fixture
def training(small: list[str]) -> list[str]:
    drawn = ["+sampler.height=32", "+sampler.width=32", "sampler.num_inference_steps=2"]
    steps = ["trainer.max_time=null", "trainer.max_steps=2", "trainer.limit_val_batches=0"]
    steps += ["trainer.log_every_n_steps=1"]
    return [
        "callbacks.samples.scores=null",
        *small,
        *drawn,
        *steps,
        "data.module.batch_size=2",
        "data.module.num_workers=0",
    ]


def test_a_training_leads_to_pictures_and_these_to_others(run: Run, training: list[str]) -> None:
    err = call("train", "experiment=mini 'name=my run'", *training)
    run_dir = "outputs/my run"
    names = [
        run_dir,
        f"{run_dir}/checkpoints",
        f"{run_dir}/logs/metrics.csv",
        f"{run_dir}/.hydra/config.yaml",
    ]
    assert places(err) == names
    following = followed(err)
    assert [*following] == ["evaluate", "generate"]
    assert "outputs/evaluation/my run" in following["evaluate"]
    err = call("generate", following["generate"], "output='pictures here'", "num_images=1")
    assert places(err) == ["pictures here"]
    assert len(list(Path("pictures here").glob("*_42.png"))) == 1
    following = dict(calls(err)[:1])
    assert "seed=43" in shlex.split(following["generate"])
    call("generate", following["generate"])
    assert len(list(Path("pictures here").glob("*_43.png"))) == 1
    assert "alpha=0.6" in shlex.split(calls(err)[1][1])


def test_a_training_that_was_stopped_says_how_to_go_on(run: Run, training: list[str]) -> None:
    from fastcomposer.cli import train

    stop = "+callbacks.signal._target_=stopping.StopAfterOneStep"
    status, _, err = run(train, "experiment=mini", *training, stop)
    assert status == 143
    assert [command for command, _ in calls(err)] == ["train", "generate", "evaluate"]
    following = calls(err)[0][1]
    assert "resume=auto" in following
    call("train", following.replace(shlex.quote(stop), ""))


def test_data_leads_to_trainings(run: Run, small: list[str], training: list[str]) -> None:
    rendered = ["data.root=my/world", "data.prepare.num_train=3", "data.prepare.num_test=2"]
    err = call("prepare", "data.prepare.num_workers=0", *rendered)
    assert places(err) == ["my/world", "my/world/references"]
    assert followed(err) == {"train": "experiment=mini data.root=my/world data.module.batch_size=3"}
    none = call(
        "prepare", "data.prepare.num_workers=0 data.prepare.num_train=0", "data.root=held/out", *rendered[2:]
    )
    assert followed(none) == {}

    err = call("prepare", "cache=cache", *small)
    assert places(err) == ["cache"]
    assert "data.module.cache=cache" in followed(err)["train"].split()

    err = call("prepare", "shards=shards sharding.num_workers=0", *small)
    arguments = followed(err)["train"]
    assert "data=streaming data.root=shards" in arguments
    rest = [given for given in training if given not in small and not given.startswith("callbacks.samples")]
    call("train", arguments, *rest)


def test_scores_lead_to_a_page(run: Run, small_base: Path, tmp_path: Path) -> None:
    toy = make_toy(small_base, tmp_path / "toy")
    less = ["methods=[text_only]", "benchmark.multi=null", "sampler.num_inference_steps=1"]
    err = call("evaluate", shlex.join(toy.arguments(*less)))
    assert places(err) == ["outputs/evaluate/results.json", "outputs/evaluate"]
    err = call("report", followed(err)["report"])
    assert places(err) == ["outputs/evaluate"]
    page = Path("outputs/evaluate/report.html").absolute().as_uri()
    assert f"  python -m webbrowser -t {page}" in err.splitlines()


@pytest.mark.parametrize(
    ("text", "written"),
    [
        ("outputs/mini", "outputs/mini"),
        ("step=000002.ckpt", '"step=000002.ckpt"'),
        ("my photos/a.png", '"my photos/a.png"'),
        ("null", '"null"'),
        ("12", '"12"'),
        ('a "b"', '"a \\"b\\""'),
    ],
)
def test_values_are_quoted_as_hydra_reads_them(text: str, written: str) -> None:
    from hydra.core.override_parser.overrides_parser import OverridesParser

    assert summary.value(text) == written
    assert OverridesParser.create().parse_override(f"key={written}").value() == text


def test_paths_are_short_inside_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert summary.shown(tmp_path / "outputs" / "mini") == "outputs/mini"
    assert summary.shown("outputs") == "outputs"
    assert summary.shown("/elsewhere/outputs") == "/elsewhere/outputs"
