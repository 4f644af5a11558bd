"""What ``doctor`` says of a bare machine, a prepared one and damaged data."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from shutil import copytree
from typing import Any

import pytest
from hydra.utils import get_object
from tiny_architectures import narrow

from fastcomposer import FastComposer
from fastcomposer.cli import doctor
from fastcomposer.cli.app import COMMANDS
from fastcomposer.data.shards import write_shards
from fastcomposer.doctor import machine
from fastcomposer.doctor.examine import examine
from fastcomposer.doctor.inputs import DATA_MODULES, READ, READERS, ROOTS
from fastcomposer.models.lora import LoRASettings

Run = Callable[..., tuple[int, str, str]]
MINI = Path(__file__).parents[2] / "data" / "mini"


@pytest.fixture
def examined(run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """Status and findings of a call on a machine whose caches are empty."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))

    def call(*arguments: str) -> dict[str, Any]:
        status, out, err = run(doctor, *arguments, "--json")
        assert out, err
        found: dict[str, Any] = json.loads(out)
        assert status == (0 if found["ready"] else 1)
        return found

    return call


def missing(found: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {one["name"]: one for one in found["findings"] if one["state"] == "missing"}


def test_a_bare_machine_lacks_every_file_of_the_paper_at_once(examined: Any) -> None:
    found = missing(examined("experiment=paper"))
    # As the hub lists them.
    unet, vae = (f"{name}/diffusion_pytorch_model.safetensors" for name in ("unet", "vae"))
    texts = {"text_encoder/config.json", "text_encoder/model.safetensors"}
    tokens = {"tokenizer/vocab.json", "tokenizer/merges.txt"}
    configs = {"model_index.json", "scheduler/scheduler_config.json", "unet/config.json", "vae/config.json"}
    assert {*found["model.base"]["files"]} == {unet, vae} | texts | tokens | configs
    assert {*found["model.image_encoder"]["files"]} == {"config.json", "model.safetensors"}
    assert "hf download stable-diffusion-v1-5/stable-diffusion-v1-5" in found["model.base"]["remedy"]
    assert {"data.root", "trainer.accelerator"} <= found.keys()


def test_the_mini_base_is_looked_for_in_the_clone(examined: Any) -> None:
    found = missing(examined("experiment=mini"))
    assert "clone" in found["model.base"]["remedy"] and "hf download" not in found["model.base"]["remedy"]


def test_an_evaluation_lacks_metrics_and_references(examined: Any) -> None:
    settings = ("model=sd15", "sampler=paper", "metrics=paper", "benchmark=paper", "fid=true", "data=ffhq")
    found = missing(examined("evaluate", *settings))
    references = found["benchmark.images"]["files"]
    assert (len(references), references[10]) == (15, "002880/")
    assert "20180402-114759-vggface2.pt" in found["scoring.faces"]["detail"]
    assert "weights-inception-2015-12-05-6726825d.pth" in found["distances.features"]["detail"]
    assert "merges.txt" in found["scoring.image_text.model"]["files"]
    assert {"model.base", "model.image_encoder", "checkpoint", "data.root"} <= found.keys()


def test_a_benchmark_of_others_lacks_its_list(examined: Any, tmp_path: Path) -> None:
    settings = ("checkpoint=x", "benchmark=multihuman", f"benchmark.images={tmp_path}")
    found = missing(examined("evaluate", *settings))["benchmark.images"]
    assert "multihuman_metadata.json" in found["detail"]


def test_people_that_are_rendered_are_counted(examined: Any) -> None:
    found = examined("evaluate", "benchmark=training_people", "methods=[text_only]")
    (images,) = (one for one in found["findings"] if one["name"] == "output")
    assert images["state"] == "ok"


def test_a_preparation_lacks_its_networks(examined: Any) -> None:
    found = missing(examined("prepare", "data=folder", "source=photos"))
    parts = {"captioner", "segmenter", "phrases", "matcher.image_text"}
    assert {f"data.prepare.{part}.model" for part in parts} | {"source"} <= found.keys()


def test_the_mini_world_is_ready_in_seconds(world: Path, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "mini").symlink_to(MINI)
    call = [sys.executable, "-m", "fastcomposer.cli.doctor", "experiment=mini", f"data.root={world}"]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    result = subprocess.run(call, capture_output=True, text=True, check=False, cwd=tmp_path)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert result.returncode == 0, result.stdout + result.stderr
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 5
    assert [*tmp_path.iterdir()] == [tmp_path / "data"]


def test_data_that_do_not_fit_are_found(
    examined: Any, settings: list[str], tmp_path: Path, world: Path
) -> None:
    assert examined(*settings)["ready"]
    copytree(world, tmp_path / "copy")
    image = next((tmp_path / "copy").glob("*/*.jpg"))
    image.unlink()
    image.with_suffix(".npy").unlink()
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "cache.json").write_text("{")
    found = missing(
        examined(*settings, "data.root=copy", "data.module.cache=cache", "data.module.batch_size=99")
    )
    assert f"{image.parent.name}/{image.name}" in found["data.root"]["files"]
    assert {"data.module.cache", "data.module.batch_size"} <= found.keys()


def test_a_damaged_shard_is_found(examined: Any, settings: list[str], world: Path, tmp_path: Path) -> None:
    write_shards(world, tmp_path / "shards", num_workers=0, records_per_shard=16)
    streamed = [one for one in settings if not one.startswith("data.root")]
    streamed += ["data=streaming", "data.root=shards", "~callbacks.samples"]
    assert examined(*streamed)["ready"]
    chunk = tmp_path / "shards" / "train" / "chunk-0-1.bin"
    os.truncate(chunk, chunk.stat().st_size - 1)
    assert chunk.name in missing(examined(*streamed))["data.root"]["detail"]


@pytest.mark.parametrize(
    ("override", "key"),
    [
        ("trainer.devices=99", "trainer.devices"),
        ("trainer.accelerator=gpu", "trainer.accelerator"),
        ("resume=other.ckpt", "resume"),
        ("method.weights=none.safetensors", "method.weights"),
        ("run_dir=/proc/version/run", "run_dir"),
    ],
)
def test_what_the_machine_does_not_have_is_found(
    examined: Any, settings: list[str], override: str, key: str
) -> None:
    assert key in missing(examined(*settings, override))


def test_costs_are_those_that_bench_measured(examined: Any, settings: list[str], small_base: Path) -> None:
    content = {"model": str(small_base), "measured": {"seconds_per_step": 7.0, "batch_size": 4}}
    Path("outputs/bench").mkdir(parents=True)
    cost = examined(*settings)["findings"][-1]
    assert "suites=[plan]" in cost["remedy"]
    Path("outputs/bench/plan.json").write_text(json.dumps(content))
    assert "3.5 s" in examined(*settings)["findings"][-1]["detail"]


@pytest.mark.parametrize(
    ("backbone", "name"), [("true", "sd15"), ("false", "sd15"), ("lora", "sd15"), ("lora", "sd3")]
)
def test_memory_is_that_of_what_is_trained(
    backbone: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = narrow(name, tmp_path / name)
    model = FastComposer.from_pretrained("no/base", architecture=folder, weights="random")
    model.to_pipeline(safety_checker=False).save_pretrained(tmp_path / "base")
    settings = [f"model.base={tmp_path / 'base'}", f"method.train_backbone={backbone}", "method.lora.rank=3"]
    config = doctor.composed("train", [*settings, "method.vision_layers=1", "method.ema_decay=0.9"])
    chosen = LoRASettings(rank=3) if backbone == "lora" else backbone == "true"
    model.set_trainable(backbone=chosen, fusion=False, vision_layers=1)
    trained = sum(value.numel() for value in model.trainable_parameters())
    networks = [network for part, network in model.networks().items() if part != "fusion"]
    total = sum(value.numel() for network in networks for value in network.state_dict().values())
    needed: list[float] = []
    monkeypatch.setattr(machine, "_fits", lambda *given: needed.append(given[3]))
    examine("train", config)
    assert needed == [4 * total + trained * (4 + 8 + 4)]
    config["trainer"]["precision"] = "bf16-true"
    examine("train", config)
    assert needed[1] == needed[0] / 2


def test_every_target_that_is_examined_exists() -> None:
    assert [get_object(target) for target in (*READERS, *ROOTS, *DATA_MODULES)]
    assert READ.keys() <= COMMANDS.keys()


def test_an_unknown_key_or_command_is_an_error(run: Run) -> None:
    for arguments in (["nokey=3"], ["report"]):
        status, out, err = run(doctor, *arguments)
        assert (status, out) == (1, "")
        assert arguments[0].partition("=")[0] in err
