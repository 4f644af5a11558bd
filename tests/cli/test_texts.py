"""Prompts and other texts are data in every command; so is all that an image given to ``settings=`` holds."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from configurations import composed
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from PIL import Image

from fastcomposer.cli import evaluate, generate, prepare, train
from fastcomposer.cli.recalled import Sampler
from fastcomposer.utils.provenance import image_text, read_metadata
from fastcomposer.utils.texts import as_data, escaped, keep_texts, plain

Run = Callable[..., tuple[int, str, str]]
SECRET = "correct horse battery staple"
TEXT = "a ${seed} of ${oc.env:SECRET}"
NEGATIVE = f"sampler.negative_prompt='{TEXT}'"


@pytest.fixture(autouse=True)
def secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET", SECRET)


@pytest.fixture
def sampled(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What ``generate`` asks its pipeline for; the images are black."""
    calls: list[dict[str, Any]] = []

    def pipeline(prompt: str, **options: Any) -> Any:
        calls.append({"prompt": prompt, **options})
        return SimpleNamespace(images=[Image.new("RGB", (8, 8))] * options["num_images_per_prompt"])

    def load(config: DictConfig, scheduler: Any) -> Any:
        calls.append({"base": config.model.base, "checkpoint": config.checkpoint})
        return pipeline

    monkeypatch.setattr(generate, "trained_pipeline", load)
    return calls


@pytest.fixture
def given(monkeypatch: pytest.MonkeyPatch) -> list[DictConfig]:
    """Configurations that reach the work of the other commands, which is not done."""
    configs: list[DictConfig] = []
    monkeypatch.setattr(train, "train", configs.append)
    monkeypatch.setattr(evaluate, "measure_scores", configs.append)
    monkeypatch.setattr(prepare, "make_folder", configs.append)
    return configs


def hostile(folder: Path, **settings: Any) -> str:
    """An image with settings."""
    file = folder / "hostile.png"
    Image.new("RGB", (8, 8)).save(file, pnginfo=image_text({"checkpoint": "x", **settings}))
    return f"settings={file}"


@pytest.mark.parametrize(
    "prompt",
    [
        "a ${seed} man",
        "${oc.env:SECRET}",
        "half an ${interpolation",
        "a \\${seed} man",
        'a "man", {smiling} \\',
        "[${seed}] = \\\\${x}: null",
    ],
)
def test_a_prompt_is_sampled_as_it_is(
    prompt: str, run: Run, sampled: list[dict[str, Any]], tmp_path: Path
) -> None:
    call = [f"prompt={prompt}", "checkpoint=x", "num_images=1", NEGATIVE]
    status, out, err = run(generate, *call)
    assert status == 0, err
    file = Path(out.splitlines()[0])
    metadata = read_metadata(file)
    assert (
        metadata is not None
        and metadata["prompt"] == prompt
        and metadata["sampler"]["negative_prompt"] == TEXT
    )
    assert SECRET not in f"{out} {err} {[*tmp_path.rglob('*')]} {metadata}"
    assert run(generate, f"settings={file}", "output=again")[0] == 0
    for one in (sampled[1], sampled[3]):
        assert (one["prompt"], one["negative_prompt"]) == (prompt, TEXT)
    assert (tmp_path / "again" / file.name).is_file()


def test_nothing_in_an_image_s_settings_is_resolved(
    run: Run, sampled: list[dict[str, Any]], tmp_path: Path
) -> None:
    call = hostile(
        tmp_path,
        prompt="../../up ${oc.env:SECRET}",
        checkpoint="${oc.env:SECRET}",
        model={"base": "${oc.env:SECRET}"},
        sampler={"negative_prompt": "${sampler}", "prompt_2": "${oc.env:SECRET}"},
        num_images=1,
        output=str(tmp_path / "elsewhere"),
        threads="${oc.env:SECRET}",
        hydra={"run": {"dir": str(tmp_path / "elsewhere")}},
        _target_="os.system",
    )
    status, out, err = run(generate, call, "output=here")
    assert status == 0, err
    loaded, asked = sampled
    assert loaded == {"base": "${oc.env:SECRET}", "checkpoint": "${oc.env:SECRET}"}
    assert asked["prompt"] == "../../up ${oc.env:SECRET}"
    assert (asked["negative_prompt"], asked["prompt_2"]) == ("${sampler}", "${oc.env:SECRET}")
    made = sorted(str(file.relative_to(tmp_path)) for file in tmp_path.rglob("*") if file.is_file())
    assert made == ["here/up_oc_env_SECRET_42.png", "here/up_oc_env_SECRET_sheet.png", "hostile.png"]
    assert SECRET not in out + err + json.dumps([read_metadata(tmp_path / file) for file in made])


@pytest.mark.parametrize(
    ("settings", "key"),
    [
        ({"sampler": {"_target_": "os.system"}}, "sampler._target_"),
        ({"sampler": {"output_type": "latent"}}, "sampler.output_type"),
        ({"sampler": {"scheduler": {"name": {"_target_": "os.system"}}}}, "sampler.scheduler.name"),
        ({"sampler": {"num_inference_steps": 10**9}}, "sampler.num_inference_steps"),
        ({"sampler": {"height": 10**6}}, "sampler.height"),
        ({"sampler": {"guidance_scale": "5"}}, "sampler.guidance_scale"),
        ({"sampler": "paper"}, "sampler"),
        ({"model": {"trust_remote_code": True}}, "model.trust_remote_code"),
        ({"model": {"max_subjects": 10**30}}, "model.max_subjects"),
        ({"model": {"base": ["x"]}}, "model.base"),
        ({"seed": 2**70}, "seed"),
        ({"seed": True}, "seed"),
        ({"num_images": 10**7}, "num_images"),
        ({"alpha": float("nan")}, "alpha"),
        ({"prompt": ["a man"]}, "prompt"),
        ({"references": {"0": "a.png"}}, "references"),
        ({"checkpoint": 3}, "checkpoint"),
    ],
)
def test_settings_of_other_kinds_are_named(
    settings: dict[str, Any], key: str, run: Run, sampled: list[dict[str, Any]], tmp_path: Path
) -> None:
    call = hostile(tmp_path, **{"prompt": "hello", **settings})
    status, _, err = run(generate, call)
    assert (status, sampled) == (1, [])
    assert err.startswith(f"error: {call}: {key}: ")
    assert "Traceback" not in err


def test_what_the_command_line_names_is_not_looked_at(
    run: Run, sampled: list[dict[str, Any]], tmp_path: Path
) -> None:
    call = hostile(tmp_path, prompt="hello", seed="x", sampler={"num_inference_steps": 10**9})
    assert run(generate, call, "seed=3", "sampler.num_inference_steps=2", "num_images=1")[0] == 0
    assert sampled[1]["num_inference_steps"] == 2


def test_the_sampler_s_own_keys_can_be_recalled() -> None:
    for file in (Path(__file__).parents[2] / "conf" / "sampler").glob("*.yaml"):
        sampler: Any = OmegaConf.to_container(composed("generate", f"sampler={file.stem}").sampler)
        Sampler.model_validate(sampler)


def test_training_samples_its_prompts_as_they_are(run: Run, given: list[DictConfig], tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    prompt = f"a man <|image|> {TEXT}"
    samples = ["callbacks=samples", f'callbacks.samples.prompts=["{prompt}"]']
    status, _, err = run(train, *samples, "callbacks.samples.references=[[a.png]]", NEGATIVE)
    assert status == 0, err
    callback = instantiate(given[0].callbacks.samples)
    assert list(callback.prompts) == [prompt]
    assert callback.sampler["negative_prompt"] == TEXT
    assert plain(OmegaConf.masked_copy(given[0].callbacks.samples, "prompts")) == {"prompts": [prompt]}


def test_evaluation_takes_labels_and_prompts_as_they_are(run: Run, given: list[DictConfig]) -> None:
    status, _, err = run(evaluate, "checkpoint=x", NEGATIVE, f"labels={{note: '{TEXT}'}}")
    assert status == 0, err
    method = instantiate(given[0].methods.fastcomposer, _convert_="all")
    assert method.sampler["negative_prompt"] == TEXT
    assert method.settings[0]["note"] == TEXT


def test_preparation_captions_and_matches_with_texts_as_they_are(run: Run, given: list[DictConfig]) -> None:
    texts = f"data.captioner.prompt='{TEXT}'", f"data.matcher.template='{TEXT} {{}}'"
    status, _, err = run(prepare, "data=folder", "source=x", "data/phrases=words", *texts)
    assert status == 0, err
    parts = instantiate(given[0].data.prepare, _partial_=True, trainer=None).keywords
    assert parts["captioner"].prompt == TEXT
    assert parts["matcher"].template == f"{TEXT} {{}}"


@pytest.mark.parametrize("text", ["${x}", "\\${x}", "\\\\${x} ${", "plain \\ $", "$${{${"])
def test_escaping_is_undone(text: str) -> None:
    config = OmegaConf.create({"prompt": escaped(text), "other": "${prompt}"})
    assert config.prompt == text
    keep_texts(config)
    assert config.prompt == text == plain(config)["other"]


def test_texts_are_plain_once_they_leave() -> None:
    text = as_data(TEXT)._value()
    assert text == TEXT and type(pickle.loads(pickle.dumps(text))) is str
    assert json.loads(json.dumps({text: text})) == {TEXT: TEXT}


def test_interpolations_stay_where_no_text_is() -> None:
    config = OmegaConf.create({"seed": 3, "labels": "${mine}", "mine": {"a": 1}, "output": "run_${seed}"})
    keep_texts(config)
    assert plain(config) == {"seed": 3, "labels": {"a": 1}, "mine": {"a": 1}, "output": "run_3"}
