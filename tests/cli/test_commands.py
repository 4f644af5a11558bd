"""The commands as a user calls them, on a tiny model."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from fastcomposer import __version__
from fastcomposer.cli import bench, evaluate, generate, prepare, train
from fastcomposer.cli.common import quoted
from fastcomposer.provenance import read_facts

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def settings(world: Path, small_base: Path) -> list[str]:
    """A training of seconds."""
    return [
        "experiment=mini",
        "callbacks=samples",
        f"model.base={small_base}",
        "model.resolution=32",
        "model.reference_size=56",
        f"data.root={world}",
        "data.module.batch_size=2",
        "method.vision_layers=1",
        "trainer.max_time=null",
        "trainer.max_steps=3",
        "trainer.val_check_interval=2",
        "trainer.limit_val_batches=1",
        "+sampler.height=32",
        "+sampler.width=32",
        "sampler.num_inference_steps=2",
    ]


def test_prepare_train_resume_generate_evaluate(
    run: Run, settings: list[str], world: Path, small_base: Path
) -> None:
    status, _, err = run(train, *settings)
    assert status == 0, err
    folder = Path("outputs/mini")
    assert torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["global_step"] == 3
    assert (folder / "samples" / "step_000002.png").exists()

    status, _, err = run(train, *settings)
    assert status == 1
    assert "resume=auto" in err

    status, _, err = run(train, *settings, "trainer.max_steps=5", "resume=auto")
    assert status == 0, err
    assert torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["global_step"] == 5

    portraits = sorted(str(path) for path in (world / "references").glob("*.png"))[:2]
    shown = [
        f"model.base={small_base}",
        "checkpoint=outputs/mini",
        "prompt=a man <|image|> and a woman <|image|> on the beach",
        f"references=[[{portraits[0]},{portraits[0]}],{portraits[1]}]",
        "sampler=dpm",
        "sampler.num_inference_steps=2",
        "num_images=2",
        "alpha=0.7",
        "output=pictures",
    ]
    status, out, err = run(generate, *shown)
    assert status == 0, err
    files = sorted(Path("pictures").glob("*.png"))
    assert [str(file) for file in files] == out.split()
    assert len(files) == 3  # two pictures and a sheet of them beside their references
    stored = json.loads(Image.open(files[1]).text["fastcomposer"])  # type: ignore[attr-defined]
    assert stored["seed"] == 43
    assert stored["alpha"] == 0.7
    assert stored["sampler"]["scheduler"]["name"] == "DPMSolverMultistepScheduler"
    assert stored["references"] == [[portraits[0]] * 2, portraits[1]]
    assert stored["version"] == __version__

    recalled = [f"settings={files[1]}", f"model.base={small_base}"]
    status, out, err = run(generate, *recalled, "output=again")
    assert status == 0, err
    assert "other reference pictures" not in err
    again = Path("again") / files[1].name
    assert out.split()[0] == str(again)
    difference = np.asarray(Image.open(again), dtype=int) - np.asarray(Image.open(files[1]), dtype=int)
    assert np.abs(difference).max() <= 2  # it was one of two in a batch, whose products round otherwise
    assert {**read_facts(again), "output": "pictures"} == stored
    status, _, err = run(
        generate, *recalled, "output=other", f"references=[{portraits[0]},{portraits[1]}]", "sampler=mini"
    )
    assert status == 0, err
    assert f"{files[1]} was drawn from other reference pictures" in err
    changed = read_facts(Path("other") / files[1].name)
    assert changed["sampler"]["scheduler"] is None  # the command line's sampler, and the picture's α
    assert (changed["alpha"], changed["sampler"]["num_inference_steps"]) == (0.7, 30)

    measured = [
        f"model.base={small_base}",
        "model.resolution=32",
        "model.reference_size=56",
        f"data.root={world}",
    ]
    status, _, err = run(
        evaluate,
        *measured,
        "what=attention",
        "data.module.batch_size=4",
        "checkpoints=[outputs/mini]",
        "num_batches=1",
    )
    assert status == 0, err
    share = json.loads(Path("outputs/evaluate/attention.json").read_text())["outputs/mini"]
    assert 0 < share["inside"] < 1
    assert share["subjects"] >= 4


def test_prepare_writes_a_world(run: Run) -> None:
    call = [
        "data.root=world",
        "data.prepare.num_train=3",
        "data.prepare.num_test=2",
        "data.prepare.num_workers=0",
    ]
    status, out, err = run(prepare, *call)
    assert status == 0, err
    assert "5 records made" in out
    assert len(list(Path("world").rglob("*.jpg"))) == 5
    status, _, err = run(prepare, *call, "data.prepare.scenes.seed=1")
    assert status == 1
    assert "holds another world" in err


def test_train_from_shards_and_a_cache(run: Run, settings: list[str], world: Path, small_base: Path) -> None:
    made = [
        f"model.base={small_base}",
        "model.resolution=32",
        "model.reference_size=56",
        f"data.root={world}",
    ]
    status, out, err = run(prepare, *made, "cache=cache", "precompute.records_per_file=16")
    assert status == 0, err
    assert out.endswith("data.module.cache=cache\n")
    assert len(list(Path("cache").glob("part-*.safetensors"))) == 3
    status, out, err = run(prepare, *made, "shards=shards", "sharding.num_workers=0")
    assert status == 0, err
    assert out.endswith("32 records written; data=streaming data.root=shards\n")
    streamed = [*settings, "data=streaming", "data.root=shards", "data.module.reference=other_image"]
    streamed += ["data.module.cache=cache", "~callbacks.samples"]
    status, _, err = run(train, *streamed)
    assert status == 0, err
    assert torch.load("outputs/mini/checkpoints/last.ckpt", weights_only=True)["global_step"] == 3
    status, _, err = run(train, *streamed, "name=other", "model.resolution=64")
    assert status == 1
    assert (
        "data.module.cache=cache is stale: resolution: 32, not 64; python -m fastcomposer.cli.prepare" in err
    )


@pytest.mark.slow
def test_two_processes_fill_the_cache_of_one(tmp_path: Path, world: Path, small_base: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "fastcomposer.cli.prepare",
        f"model.base={small_base}",
        f"data.root={world}",
    ]
    command += ["model.resolution=32", "model.reference_size=56", "precompute.records_per_file=7"]
    ddp = ["trainer.strategy=ddp", "trainer.devices=2"]
    for name, options in (("one", []), ("two", ddp), ("two", ddp)):  # the second time there is nothing to do
        subprocess.run([*command, *options, f"cache={name}"], cwd=tmp_path, check=True)
    files = sorted((tmp_path / "one").iterdir())
    assert len(files) == 7  # 24 and 8 records, and what they were made from
    for file in files:
        other = tmp_path / "two" / file.name
        if file.suffix != ".safetensors":
            assert other.read_bytes() == file.read_bytes()
            continue
        one, two = load_file(file), load_file(other)
        assert one.keys() == two.keys()
        for name, value in one.items():  # products of matrices may round differently in another process
            torch.testing.assert_close(two[name], value, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["checkpoint=null"], "checkpoint: name trained weights"),
        (["checkpoint=nowhere.ckpt"], "checkpoint nowhere.ckpt: no such file"),
        (["checkpoint=x", "compile=quick"], "compile=quick: torch has the backends "),
        (["sampler.scheduler={name:Nobody}"], "sampler.scheduler.name=Nobody: no scheduler of diffusers"),
        (["checkpoint=x", "references=[nobody.png]"], "references: no such file: nobody.png"),
        (["checkpoint=x", "references=[[nobody.png,b.png]]"], "references: no such file: nobody.png, b.png"),
        (["settings=nothing.png"], "settings=nothing.png: no whole PNG with settings of this program"),
        (["checkpoint=x", "references=."], "references: folder . has no picture (.png, .jpg, .jpeg, .webp)"),
    ],
)
def test_generate_says_what_is_wrong_before_it_loads(run: Run, arguments: list[str], message: str) -> None:
    status, _, err = run(generate, "prompt=hello", *arguments)
    assert status == 1
    assert err.strip() == f"error: {message}" or message in err
    assert "Traceback" not in err


def test_generate_wants_a_prompt(run: Run) -> None:
    message = "error: prompt: say what the picture should show, or name a picture in settings"
    status, _, err = run(generate, "checkpoint=x")
    assert (status, err.strip()) == (1, message)


def test_references_on_the_command_line(tmp_path: Path) -> None:
    person = tmp_path / "ann"
    person.mkdir()
    ann = [str(person / name) for name in ("1.JPG", "2.png")]
    bob = str(tmp_path / "bob.png")
    for file in (*ann, bob, person / "notes.txt"):
        Path(file).write_bytes(b"")
    assert generate.reference_files(bob) == [[bob]]
    assert generate.reference_files(str(person)) == [ann]
    assert generate.reference_files([str(person), bob]) == [ann, [bob]]
    assert generate.reference_files([[bob, ann[1]], ann[0]]) == [[bob, ann[1]], [ann[0]]]
    assert generate.reference_files([]) == []


def test_subjects_are_counted_before_anything_loads(run: Run, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"")
    call = ["prompt=a man <|image|> and a woman <|image|>", "references=[[a.png,a.png]]", "checkpoint=x"]
    status, _, err = run(generate, *call)
    assert status == 1
    assert "1 reference image(s) for 2 marker(s)" in err
    assert "several images of one subject are a list of their own" in err


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ("a man on the beach", "1 reference image(s) for 0 marker(s)"),
        ("<|image|> on the beach", "has no word before it"),
        (f"{'very ' * 80}old man <|image|>", "subject 1 is token"),
    ],
)
def test_generate_explains_prompts(
    run: Run, settings: list[str], world: Path, small_base: Path, prompt: str, message: str
) -> None:
    assert run(train, *settings, "trainer.max_steps=1", "trainer.limit_val_batches=0")[0] == 0
    portrait = sorted((world / "references").glob("*.png"))[0]
    status, _, err = run(
        generate,
        f"model.base={small_base}",
        "checkpoint=outputs/mini",
        f'prompt="{prompt}"',
        f"references=[{portrait}]",
    )
    assert status == 1
    assert message in err
    assert "Traceback" not in err


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model.base=nowhere", "nowhere"),
        ("model.resolution=36", "multiple"),
        ("data.root=nowhere", "nowhere"),
        ("resume=nowhere.ckpt", "resume=nowhere.ckpt"),
        ("method.model.loss_config.mask_loss_probability=2", "mask_loss_probability"),
        ("method.caption_dropout=-1", "method.caption_dropout"),
        ("localization.blocks=[attic]", "attic"),
        ("localization.loss=l2", "localization.loss"),
        ("method.model.fusion.mode=max", "method.model.fusion.mode='max'"),
        ("data.module.background=blur", "background must be one of"),
        ("matmul_precision=fast", "matmul_precision=fast: one of highest"),
        ("data.module.batch_size=0", "batch_size"),
    ],
)
def test_train_says_what_is_wrong(run: Run, settings: list[str], override: str, message: str) -> None:
    status, _, err = run(train, *settings, override)
    assert status == 1
    assert message in err
    assert "Traceback" not in err


def test_unknown_keys_are_refused(run: Run) -> None:
    call = [sys.executable, "-m", "fastcomposer.cli.train", "trainer.max_stepz=3"]
    result = subprocess.run(call, capture_output=True, text=True, check=False)
    assert result.returncode == 1
    assert "max_stepz" in result.stderr


TINY_STEP = [
    "step.resolution=64",
    "step.unet.sample_size=8",
    "step.unet.block_out_channels=[8,8,16,16]",
    "step.unet.layers_per_block=1",
    "step.unet.norm_num_groups=4",
    "step.unet.cross_attention_dim=16",
    "step.vae.block_out_channels=[8,8,8,8]",
    "+step.vae.norm_num_groups=4",
    "step.text_encoder={vocab_size:99,hidden_size:16,intermediate_size:16,num_hidden_layers:1,num_attention_heads:2,"
    "max_position_embeddings:77}",
    "step.image_encoder={hidden_size:16,intermediate_size:16,num_hidden_layers:2,num_attention_heads:2,image_size:32,"
    "patch_size:16,projection_dim:16}",
]


def test_bench_measures_what_is_asked(run: Run, small_base: Path, world: Path) -> None:
    common = [
        f"model.base={small_base}",
        "model.resolution=32",
        "model.reference_size=56",
        f"data.root={world}",
        "min_seconds=0",
        "min_rounds=2",
        "sampler.num_inference_steps=4",
        "sampler_batches=[1,2]",
        "loader={records:1,side:96}",
        "readme=README.md",
        "variants=[tuned without localization]",  # each starts a process
        *TINY_STEP,
    ]
    Path("README.md").write_text(
        "before\n<!-- bench: written by make bench -->\nold\n<!-- bench: end -->\nafter\n"
    )
    status, _, err = run(bench, *common, "suites=[loader,step,sampler,evaluation]")
    assert status == 0, err
    content = json.loads(Path("outputs/bench/bench.json").read_text())
    rows = content["rows"]
    assert list(dict.fromkeys(row["suite"] for row in rows)) == [
        "loader",
        "step",
        "sampler",
        "evaluation",
    ]
    assert all(row["value"] > 0 for row in rows)
    (step,) = (row for row in rows if row["suite"] == "step")
    assert step["peak_memory_bytes"] > 2**27
    assert 0 < step["share_of_peak"] < 1
    calls = {row["what"]: row["unet_calls"] for row in rows if row["suite"] == "evaluation"}
    assert calls == {"three alphas, each by itself": 12, "three alphas, shared steps": 11}
    readme = Path("README.md").read_text()
    assert readme.startswith("before\n") and readme.endswith("after\n") and "stale" not in readme
    assert readme.count("\n| step | tuned without localization | ") == 1
    assert "- loader over plain order: " in readme
    for wrong, message in (
        ("suites=[nothing]", "suites: unknown nothing"),
        ("variants=[quick]", "variants: there are 'plain"),
        ("readme=nowhere.md", "readme: no such file: nowhere.md"),
    ):
        status, _, err = run(bench, *common, wrong)
        assert status == 1
        assert message in err


def test_bench_measures_reading_beside_the_step_it_is_for(run: Run, small_base: Path) -> None:
    call = [f"model.base={small_base}", "model.resolution=64", "model.reference_size=56", "min_seconds=0"]
    few = ["reading.records=9", "reading.batch_size=4", "reading.workers=[1]", "min_rounds=2"]
    status, out, err = run(bench, *call, *few, "suites=[reading]")
    assert status == 0, err
    rows = {row["what"]: row for row in json.loads(Path("outputs/bench/bench.json").read_text())["rows"]}
    sources = ["data folder", "data folder and cache", "shards", "shards and cache"]
    steps, one = ["training step", "training step from a cache"], "batches from data folder, 1 workers"
    assert [*rows] == ["fill a cache", *(f"batches from {source}" for source in sources), *steps, one]
    assert all(row["value"] > 0 for row in rows.values())
    reading, step = rows["batches from shards and cache"]["value"], rows[steps[1]]["value"]
    share = step / (step + reading)
    assert f"- reading from shards and cache: {share:.1%} of the time" in out


@pytest.mark.parametrize("weights", ["pretrained", "random"])
def test_bench_projects_what_personalisation_takes(run: Run, small_base: Path, weights: str) -> None:
    call = [f"model.base={small_base}", "model.resolution=32", "sampler.num_inference_steps=40", "repeats=2"]
    architecture = f"model.architecture={small_base}"
    status, out, err = run(bench, *call, architecture, "suites=[personalization]", f"weights={weights}")
    assert status == 0, err
    assert "Projection" in out
    content = json.loads(Path("outputs/bench/projection.json").read_text())
    assert content["projection"] is True
    ours, *others = content["rows"]
    assert (ours["method"], ours["projected_personalization_seconds"]) == ("fastcomposer", 0)
    steps = {row["method"]: row["training_steps"] for row in others}
    assert steps == {"textual_inversion": 3000, "dreambooth": 800, "custom_diffusion": 250}
    for row in others:
        assert row["seconds_per_training_step"] > 0
        learned = row["seconds_per_training_step"] * row["training_steps"]
        assert row["projected_personalization_seconds"] == pytest.approx(learned)
        assert row["projected_seconds"] == pytest.approx(learned + row["projected_seconds_per_image"])
        assert row["projected_seconds_per_image"] == ours["projected_seconds_per_image"]
    assert not Path("outputs/bench/bench.json").exists()


@pytest.mark.parametrize("logger", ["tensorboard", "wandb"])
def test_loggers_receive_losses_and_pictures(
    run: Run, settings: list[str], logger: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_SILENT", "true")
    status, _, err = run(train, *settings, f"logger={logger}", "trainer.log_every_n_steps=1")
    assert status == 0, err
    folder = Path("outputs/mini")
    assert "train/localization_loss" in (folder / "logs" / "metrics.csv").read_text()
    if logger == "wandb":
        assert list(folder.glob("wandb/offline-run-*/*.wandb"))
        assert list(folder.glob("wandb/offline-run-*/files/media/images/samples/pictures*.png"))
        return
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder / "tensorboard")).Reload()
    assert [event.step for event in events.Scalars("train/denoise_loss")] == [0, 1, 2]
    assert [event.step for event in events.Images("samples/pictures")] == [2]


@pytest.mark.parametrize(
    ("argument", "expected"),
    [
        ("prompt=a man <|image|>, smiling", 'prompt="a man <|image|>, smiling"'),
        ('prompt="a man"', 'prompt="a man"'),
        ('prompt=a "man"', 'prompt="a \\"man\\""'),
        ("alpha=0.6", "alpha=0.6"),
        ("--help", "--help"),
    ],
)
def test_prompts_need_no_quotes_of_their_own(argument: str, expected: str) -> None:
    assert quoted(argument, "prompt") == expected
