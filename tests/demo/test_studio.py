"""Images of the page: those of the pipeline, with their settings in the file."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from torch import Generator

from fastcomposer import __version__
from fastcomposer.demo.studio import Order, Studio, file_name, overlays
from fastcomposer.utils.provenance import read_metadata

Make = Callable[..., Order]


def ignore(done: int, total: int) -> None:
    """Ignore progress."""


def test_images_are_those_of_the_pipeline(studio: Studio, order: Make) -> None:
    wanted = order()
    alphas, calls = [0.0, 0.5, 1.0], []
    made = studio.generate(wanted, alphas, 2, lambda done, total: calls.append((done, total)))
    # All four steps of text alone; then two and four of their own.
    assert calls == [(i + 1, 10) for i in range(10)]
    for alpha, images in zip(alphas, made, strict=True):
        expected = studio.pipeline(
            wanted.prompt,
            references=[[str(reference.file)] for (reference,) in wanted.references],
            alpha=alpha,
            num_inference_steps=4,
            guidance_scale=3.0,
            num_images_per_prompt=2,
            generator=[Generator().manual_seed(seed) for seed in (5, 6)],
        ).images
        for own, other in zip(images, expected, strict=True):
            np.testing.assert_array_equal(np.asarray(own.image), np.asarray(other))
        assert [(one.seed, one.alpha, one.withheld) for one in images] == [(n, alpha, False) for n in (5, 6)]
    assert made[0][0].attention is None
    attention = made[1][0].attention
    assert attention is not None and attention.shape == (2, 16, 16)
    assert [caption for _, caption in overlays(made[1][0])] == ["1 · man", "2 · woman"]


def test_several_images_of_a_person_are_combined(studio: Studio, order: Make, tmp_path: Path) -> None:
    (man,), (woman,) = order().references
    both, only = (
        order(prompt="a man <|image|> at home", references=(person,), steps=2)
        for person in ((man, woman), (man,))
    )
    ((one,),), ((alone,),) = (studio.generate(wanted, [1.0], 1, ignore) for wanted in (both, only))
    assert np.abs(np.asarray(alone.image, dtype=float) - np.asarray(one.image)).max() > 8
    (tmp_path / "one.png").write_bytes(studio.png(one))
    metadata: Any = read_metadata(tmp_path / "one.png")
    assert metadata["reference_digests"] == [[man.digest, woman.digest]]


def test_a_prompt_without_people(studio: Studio, order: Make) -> None:
    calls: list[tuple[int, int]] = []
    plain = order(prompt="a beach", references=(), steps=2)
    ((one,),) = studio.generate(plain, [0.8], 1, lambda done, total: calls.append((done, total)))
    assert calls == [(1, 2), (2, 2)]
    assert one.attention is None
    assert overlays(one) == []


def test_the_file_holds_all_settings_but_no_people(studio: Studio, order: Make, tmp_path: Path) -> None:
    wanted = order(negative_prompt="snow", steps=2)
    ((one,),) = studio.generate(wanted, [0.6], 1, ignore)
    file = tmp_path / file_name(one)
    assert file.name == "a_man_and_a_woman_on_the_beach_5.png"
    file.write_bytes(studio.png(one))
    metadata: Any = read_metadata(file)
    assert metadata["version"] == __version__
    expected = {"prompt": wanted.prompt, "seed": 5, "alpha": 0.6, "num_images": 1}
    expected |= {key: studio.settings[key] for key in ("checkpoint", "model")}
    assert expected.items() <= metadata.items()
    chosen = {"num_inference_steps": 2, "guidance_scale": 3.0, "negative_prompt": "snow", "alpha": 0.6}
    assert metadata["sampler"] == {**chosen, "scheduler": None}
    assert metadata["reference_digests"] == [[reference.digest] for (reference,) in wanted.references]
    assert wanted.references[0][0].name not in json.dumps(metadata)
    assert b"trainedAlgorithmicMedia" in file.read_bytes()


def test_the_command_generates_it_again(
    studio: Studio, order: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from command_line import called

    from fastcomposer.cli import generate

    monkeypatch.chdir(tmp_path)
    wanted = order(negative_prompt="snow", steps=3)
    ((one,),) = studio.generate(wanted, [0.6], 1, ignore)
    file = tmp_path / file_name(one)
    file.write_bytes(studio.png(one))
    status, _, err = called(generate, f"settings={file}", "output=again")
    assert status == 1
    assert "holds no reference images: references=[…], 2 of them" in err
    people = ",".join(str(reference.file) for (reference,) in wanted.references)
    status, _, err = called(generate, f"settings={file}", f"references=[{people}]", "output=again")
    assert status == 0, err
    assert "other reference images" not in err
    with Image.open(tmp_path / "again" / file.name) as again:
        np.testing.assert_array_equal(np.asarray(again), np.asarray(one.image))


def test_a_safety_checker_stays_on(checked_pipeline: Path, studio: Studio, order: Make) -> None:
    from fastcomposer.evaluation.pipelines import load_trained

    pipeline = load_trained("unused", checkpoint=str(checked_pipeline), safety_checker=True)
    sampler = {**studio.settings["sampler"], "height": 32, "width": 32}
    checked = Studio(pipeline, {**studio.settings, "sampler": sampler})
    ((one,),) = checked.generate(order(prompt="a man", references=(), steps=1), [0.0], 1, ignore)
    assert one.withheld
    assert np.asarray(one.image).max() == 0


def test_a_cancelled_request_ends(studio: Studio, order: Make) -> None:
    def leave(done: int, total: int) -> None:
        raise InterruptedError("gone")

    with pytest.raises(InterruptedError):
        studio.generate(order(), [1.0], 1, leave)
    assert len(studio.generate(order(steps=1), [1.0], 1, ignore)) == 1  # the next one runs


def test_the_end_of_a_long_prompt_is_not_read(studio: Studio) -> None:
    limit = studio.pipeline.tokenizer.model_max_length - 2
    words = ["man", "<|image|>", *["man"] * (limit - 1)]
    assert studio.unread(" ".join(words)) == ""
    assert studio.unread(" ".join([*words, "woman", "man"])) == "woman man"
